"""The `srpo` group: what is accepted, what is refused, and with which words."""

import math
import re
from copy import deepcopy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from srpo_verl.algos.routing import ROUTINGS
from srpo_verl.config.schema import default_values, parse
from srpo_verl.config.values import flatten
from srpo_verl.errors import ConfigError
from tests.config.keys import (
    CHOICES,
    DEFAULTS,
    FLAGS,
    GROUPS,
    GUARDS,
    INTEGERS,
    LISTS,
    NULLABLE,
    NUMBERS,
    OTHERS,
    refusal,
    with_values,
)


def test_the_defaults_are_those_of_the_interface():
    assert flatten(default_values(), "srpo.") == DEFAULTS
    types = {key: type(value) for key, value in flatten(default_values(), "srpo.").items()}
    assert types == {key: type(value) for key, value in DEFAULTS.items()}


def test_the_lists_above_cover_every_key():
    assert sorted([*NUMBERS, *INTEGERS, *FLAGS, *CHOICES, *LISTS, *OTHERS]) == sorted(DEFAULTS)


def test_parse_puts_every_value_where_its_name_says():
    # Values that differ from each other and from the defaults, so that no two fields can be swapped.
    config = parse(
        with_values(
            {
                "srpo.routing": "advantage_mix",
                "srpo.success_threshold": 0.25,
                "srpo.distillation.top_k": 7,
                "srpo.distillation.divergence_alpha": 0.125,
                "srpo.distillation.tail": False,
                "srpo.distillation.is_clip": 3.5,
                "srpo.schedule.kind": "linear",
                "srpo.schedule.start": 3,
                "srpo.schedule.end": 11,
                "srpo.weighting.beta": 0.75,
                "srpo.weighting.floor": 0.03125,
                "srpo.weighting.pass_rate": True,
                "srpo.advantage_mix.lambda": 0.625,
                "srpo.teacher.ema_rate": 0.375,
                "srpo.teacher.cpu_offload": True,
                "srpo.demonstration.sources": ["memory", "sibling", "reference"],
                "srpo.demonstration.memory.per_prompt": 5,
                "srpo.demonstration.memory.max_prompts": 6,
                "srpo.demonstration.reference_column": "extra_info.solution",
                "srpo.demonstration.select": "shortest",
                "srpo.demonstration.strip_thinking": False,
                "srpo.demonstration.max_prompt_tokens": 77,
                "srpo.demonstration.show": False,
                "srpo.demonstration.environment_feedback": True,
                "srpo.budget.hours": [0.5, 3],
                "srpo.budget.stop_at_hours": 4.5,
                "srpo.checkpoints.keep_best": False,
                "srpo.checkpoints.max_disk_gib": 12.5,
                "srpo.checkpoints.trust_pickles": True,
                "srpo.guards.entropy": "checkpoint",
                "srpo.guards.length_growth": 1.5,
                "srpo.guards.length_shrink": 0.25,
                "srpo.guards.entropy_floor": 0.5,
                "srpo.guards.stall_minutes": 7.5,
                "srpo.kernels.compile": True,
                "srpo.token_sample.every": 7,
                "srpo.token_sample.rollouts": 3,
                "srpo.token_sample.tokens": 11,
            }
        )
    )
    assert (config.routing, config.success_threshold, config.mix_lambda) == ("advantage_mix", 0.25, 0.625)
    assert vars(config.distillation) == {"top_k": 7, "divergence_alpha": 0.125, "tail": False, "is_clip": 3.5}
    assert vars(config.kernels) == {"compile": True}
    assert vars(config.token_sample) == {"every": 7, "rollouts": 3, "tokens": 11}
    assert vars(config.schedule) == {"kind": "linear", "start": 3, "end": 11}
    assert vars(config.weighting) == {"beta": 0.75, "floor": 0.03125, "pass_rate": True}
    assert vars(config.teacher) == {"kind": "ema", "ema_rate": 0.375, "cpu_offload": True}
    assert vars(config.demonstration.memory) == {"per_prompt": 5, "max_prompts": 6}
    assert {name: value for name, value in vars(config.demonstration).items() if name != "memory"} == {
        "sources": ("memory", "sibling", "reference"),
        "reference_column": "extra_info.solution",
        "select": "shortest",
        "strip_thinking": False,
        "max_prompt_tokens": 77,
        "show": False,
        "environment_feedback": True,
    }
    assert vars(config.budget) == {"hours": (0.5, 3.0), "stop_at_hours": 4.5}
    assert vars(config.checkpoints) == {"keep_best": False, "max_disk_gib": 12.5, "trust_pickles": True}
    levels = dict.fromkeys(GUARDS, "warn") | {"nonfinite": "stop", "entropy": "checkpoint"}
    numbers = {"length_growth": 1.5, "length_shrink": 0.25, "entropy_floor": 0.5, "stall_minutes": 7.5}
    assert vars(config.guards) == {"levels": levels, **numbers}


def test_a_dictconfig_and_a_dict_parse_alike_and_neither_is_changed():
    values = default_values()
    node, before = OmegaConf.create(values), deepcopy(values)
    assert parse(node) == parse(values)
    assert values == before
    assert OmegaConf.to_container(node) == before


def test_default_values_hands_out_a_fresh_copy():
    default_values()["distillation"]["top_k"] = -1
    assert default_values()["distillation"]["top_k"] == 100


@pytest.mark.parametrize(("kind", "copy"), [("ema", True), ("frozen", True), ("live", False)])
def test_which_teachers_need_weights_of_their_own(kind, copy):
    config = parse(with_values({"srpo.teacher.kind": kind}))
    assert config.uses_teacher
    assert config.needs_teacher_copy is copy


@pytest.mark.parametrize("routing", ["none", "fixed_negative"])
def test_without_distillation_there_is_no_teacher(routing):
    config = parse(with_values({"srpo.routing": routing}))
    assert not config.uses_teacher
    assert not config.needs_teacher_copy


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, allowed in CHOICES.items() for value in allowed])
def test_every_documented_choice_is_accepted(key, value):
    parse(with_values({key: value}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("srpo.distillation.top_k", None),
        ("srpo.distillation.top_k", 1),
        ("srpo.distillation.is_clip", None),
        ("srpo.distillation.is_clip", 1e-9),
        ("srpo.distillation.divergence_alpha", 0),
        ("srpo.distillation.divergence_alpha", 1),
        ("srpo.weighting.beta", 0),
        ("srpo.weighting.floor", 0),
        ("srpo.weighting.floor", 0.999),
        ("srpo.teacher.ema_rate", 1),
        ("srpo.success_threshold", -3),
        ("srpo.demonstration.max_prompt_tokens", 1),
        ("srpo.budget.hours", []),
        ("srpo.budget.hours", [1e-9]),
        ("srpo.budget.stop_at_hours", 1e-9),
    ],
)
def test_the_ends_of_the_ranges_are_inside(key, value):
    parse(with_values({key: value}))


# --- refused: keys ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["srpo", *(f"srpo.{group}" for group in GROUPS)])
def test_an_unknown_key_is_refused_at_every_level(path):
    error = refusal({f"{path}.typo": 3}, f"{path}.typo")
    assert "3" in str(error)
    level = default_values() if path == "srpo" else default_values()[path.removeprefix("srpo.")]
    for known in level:  # the remedy: what may stand there
        assert f"{path}.{known}" in error.remedy


@pytest.mark.parametrize("key", sorted(DEFAULTS))
def test_a_missing_key_is_refused(key):
    values = default_values()
    *path, last = key.split(".")[1:]
    node = values
    for name in path:
        node = node[name]
    del node[last]
    with pytest.raises(ConfigError, match="is missing") as raised:
        parse(values)
    assert raised.value.key == key


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("value", [None, 5, "ema", [1]])
def test_a_group_is_not_a_value(group, value):
    refusal({f"srpo.{group}": value}, f"srpo.{group}")


@pytest.mark.parametrize("node", [None, 3, "srpo", [1, 2]])
def test_the_whole_group_has_to_be_one(node):
    with pytest.raises(ConfigError) as raised:
        parse(node)
    assert raised.value.key == "srpo"


# --- refused: types --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("value", [True, False, "0.5", "abc", "", [0.5], {"x": 0.5}])
def test_a_number_is_neither_flag_nor_text_nor_list(key, value):
    assert "number" in refusal({key: value}, key).remedy


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_are_finite(key, value):
    assert "number" in refusal({key: value}, key).remedy


@pytest.mark.parametrize("key", NUMBERS)
def test_an_integer_too_large_for_a_float_is_refused_like_infinity(key):
    assert "number" in refusal({key: 10**400}, key).remedy


@pytest.mark.parametrize("key", INTEGERS)
@pytest.mark.parametrize("value", [100.0, 100.5, True, "100", math.inf, math.nan, [100]])
def test_a_count_is_a_whole_number(key, value):
    assert "whole number" in refusal({key: value}, key).remedy


@pytest.mark.parametrize("key", LISTS)
@pytest.mark.parametrize(
    "value",
    [5, "1,5", True, {"1": 5}, ["1"], [True], [None], [[1]], [math.nan], [math.inf], [0], [-1, 5], [5, 1], [1, 1.0]],
)
def test_budgets_are_increasing_numbers_above_0(key, value):
    error = refusal({key: value}, key)
    assert "[1, 5, 10]" in error.remedy
    # The whole list is shown, not only its bad item.
    assert error.value is value


@pytest.mark.parametrize("key", FLAGS)
@pytest.mark.parametrize("value", [0, 1, 1.0, "true", "False", None, []])
def test_a_flag_is_true_or_false(key, value):
    if value is None and key in NULLABLE:
        parse(with_values({key: value}))
        return
    assert refusal({key: value}, key).remedy == "has to be true or false" + (", or null" if key in NULLABLE else "")


@pytest.mark.parametrize("key", sorted(CHOICES))
@pytest.mark.parametrize("value", ["SAMPLE", "", 1, True, None, ["ema"], {"ema": 1}])
def test_a_choice_is_one_of_its_names(key, value):
    error = refusal({key: value}, key)
    for allowed in CHOICES[key]:
        assert allowed in error.remedy


@pytest.mark.parametrize("key", sorted(set(DEFAULTS) - set(NULLABLE)))
def test_null_only_where_it_means_something(key):
    refusal({key: None}, key)


# --- refused: ranges -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("srpo.distillation.top_k", 0),
        ("srpo.distillation.top_k", -1),
        ("srpo.distillation.divergence_alpha", -0.001),
        ("srpo.distillation.divergence_alpha", 1.001),
        ("srpo.distillation.is_clip", 0),
        ("srpo.distillation.is_clip", -2.0),
        ("srpo.weighting.beta", -1e-9),
        ("srpo.weighting.floor", -1e-9),
        ("srpo.weighting.floor", 1),
        ("srpo.schedule.start", -1),
        ("srpo.schedule.end", 0),
        ("srpo.demonstration.memory.per_prompt", 0),
        ("srpo.demonstration.memory.max_prompts", 0),
        ("srpo.teacher.ema_rate", 0),
        ("srpo.teacher.ema_rate", 1.001),
        ("srpo.demonstration.max_prompt_tokens", 0),
        ("srpo.demonstration.max_prompt_tokens", -10240),
        ("srpo.budget.stop_at_hours", 0),
        ("srpo.budget.stop_at_hours", -1),
    ],
)
def test_out_of_range(key, value):
    bound = refusal({key: value}, key).remedy
    assert re.search(r"at least|above|at most", bound)


@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_lambda_is_a_share(value):
    refusal({"srpo.routing": "advantage_mix", "srpo.advantage_mix.lambda": value}, "srpo.advantage_mix.lambda")


# --- refused: without effect -----------------------------------------------------------------------------------------

OTHER = {  # another valid value of every key
    "srpo.distillation.top_k": 50,
    "srpo.distillation.divergence_alpha": 0.25,
    "srpo.distillation.tail": False,
    "srpo.distillation.is_clip": None,
    "srpo.schedule.kind": "linear",
    "srpo.weighting.beta": 0.0,
    "srpo.weighting.floor": 0.1,
    "srpo.weighting.pass_rate": True,
    "srpo.demonstration.sources": ["sibling", "memory"],
    "srpo.teacher.kind": "frozen",
    "srpo.teacher.ema_rate": 0.1,
    "srpo.teacher.cpu_offload": True,
    "srpo.demonstration.select": "random",
    "srpo.demonstration.strip_thinking": False,
    "srpo.demonstration.max_prompt_tokens": 4096,
    "srpo.demonstration.show": False,
    "srpo.demonstration.environment_feedback": True,
}


@pytest.mark.parametrize("routing", ["none", "fixed_negative"])
@pytest.mark.parametrize("key", sorted(OTHER))
def test_no_key_of_the_teacher_has_an_effect_without_distillation(key, routing):
    parse(with_values({key: OTHER[key]}))  # fine by itself, so it is the combination that is refused
    error = refusal({"srpo.routing": routing, key: OTHER[key]}, key)
    assert "no effect" in error.remedy
    assert f"srpo.routing={routing}" in error.remedy


def test_the_routings_are_those_of_the_registry():
    assert sorted(CHOICES["srpo.routing"]) == sorted(ROUTINGS)


@pytest.mark.parametrize("name", ["my_module:my_routing", "a.b_c.d:f"])
def test_a_routing_of_one_s_own_is_not_imported_here(name):
    """Workers parse the group as well, and need the shares only."""
    config = parse(with_values({"srpo.routing": name, "srpo.advantage_mix.lambda": 0.5}))
    assert config.routing == name
    assert config.uses_teacher


@pytest.mark.parametrize("name", ["my_module", "my_module:", ":f", "a b:f", "a:f()", "a..b:f"])
def test_what_is_not_the_name_of_a_function(name):
    assert "module:function" in refusal({"srpo.routing": name}, "srpo.routing").remedy


@pytest.mark.parametrize("routing", [name for name in CHOICES["srpo.routing"] if name != "fixed_negative"])
def test_the_fixed_advantage_needs_its_routing(routing):
    key = "srpo.fixed_negative.advantage"
    assert "routing=fixed_negative" in refusal({"srpo.routing": routing, key: 0.25}, key).remedy
    assert parse(with_values({"srpo.routing": "fixed_negative", key: 0.25})).negative_advantage == 0.25
    assert "above 0" in refusal({"srpo.routing": "fixed_negative", key: 0}, key).remedy


@pytest.mark.parametrize("routing", [name for name in CHOICES["srpo.routing"] if name != "advantage_mix"])
def test_lambda_needs_advantage_mix(routing):
    error = refusal({"srpo.routing": routing, "srpo.advantage_mix.lambda": 0.5}, "srpo.advantage_mix.lambda")
    assert f"srpo.routing={routing}" in error.remedy
    assert "routing=advantage_mix" in error.remedy
    parse(with_values({"srpo.routing": "advantage_mix", "srpo.advantage_mix.lambda": 0.5}))


@pytest.mark.parametrize("kind", ["frozen", "live"])
def test_the_ema_rate_needs_an_ema_teacher(kind):
    error = refusal({"srpo.teacher.kind": kind, "srpo.teacher.ema_rate": 0.1}, "srpo.teacher.ema_rate")
    assert f"srpo.teacher.kind={kind}" in error.remedy
    assert "kind=ema" in error.remedy


@pytest.mark.parametrize(("key", "value"), [("teacher.cpu_offload", True), ("demonstration.show", False)])
def test_a_live_teacher_is_the_student(key, value):
    error = refusal({"srpo.teacher.kind": "live", f"srpo.{key}": value}, f"srpo.{key}")
    assert "srpo.teacher.kind=live" in error.remedy
    parse(with_values({"srpo.teacher.kind": "frozen", "srpo.teacher.cpu_offload": True}))


@pytest.mark.parametrize(("key", "value"), [("srpo.schedule.start", 5), ("srpo.schedule.end", 50)])
def test_the_steps_of_a_schedule_need_a_line_between_them(key, value):
    assert "kind=linear" in refusal({key: value}, key).remedy
    parse(with_values({"srpo.schedule.kind": "linear", key: value}))


@pytest.mark.parametrize("end", [1, 10])
def test_a_schedule_ends_after_it_starts(end):
    error = refusal({"srpo.schedule.kind": "linear", "srpo.schedule.end": end}, "srpo.schedule.end")
    assert "srpo.schedule.start=10" in error.remedy


def test_the_coefficient_by_step():
    assert [parse(default_values()).schedule.coefficient(step) for step in (1, 100)] == [1.0, 1.0]
    schedule = parse(with_values({"srpo.schedule.kind": "linear"})).schedule
    assert [schedule.coefficient(step) for step in (1, 10, 25, 40, 41)] == [1.0, 1.0, 0.5, 0.0, 0.0]


CREDIT = {"srpo.routing": "none", "srpo.credit": "teacher_ratio"}


@pytest.mark.parametrize("routing", [name for name in CHOICES["srpo.routing"] if name != "none"])
def test_credit_goes_with_routing_none_alone(routing):
    error = refusal({**CREDIT, "srpo.routing": routing}, "srpo.credit")
    assert "srpo.routing=none" in error.remedy
    assert routing in error.remedy


def test_credit_has_a_teacher_and_nothing_to_distil():
    config = parse(with_values({**CREDIT, "srpo.teacher_ratio.epsilon": 0.25, "srpo.teacher.kind": "frozen"}))
    assert (config.uses_teacher, config.needs_teacher_copy, config.distils) == (True, True, False)
    assert (config.credit, config.credit_epsilon, config.distillation.top_k) == ("teacher_ratio", 0.25, 1)
    for key in ("srpo.distillation.top_k", "srpo.weighting.beta", "srpo.weighting.pass_rate"):
        assert "no effect" in refusal({**CREDIT, key: OTHER[key]}, key).remedy
    for key in ("srpo.teacher.ema_rate", "srpo.demonstration.select", "srpo.schedule.kind"):
        parse(with_values({**CREDIT, key: OTHER[key]}))
    fading = {**CREDIT, "srpo.teacher_ratio.lambda": 0.5, "srpo.schedule.kind": "linear"}
    assert [parse(with_values(fading)).credit_share(step) for step in (1, 25, 40)] == [0.5, 0.25, 0.0]


@pytest.mark.parametrize(("key", "values"), [("epsilon", (0, 1, -0.5)), ("lambda", (0, 1.5))])
def test_the_bounds_of_credit(key, values):
    for value in values:
        refusal({**CREDIT, f"srpo.teacher_ratio.{key}": value}, f"srpo.teacher_ratio.{key}")


@pytest.mark.parametrize(
    "value",
    [[], "sibling", ["sibling", "sibling"], ["memory", "teacher"], [None], [["sibling"]], {"sibling": 1}, None],
)
def test_sources_are_a_list_of_names_each_once(value):
    error = refusal({"srpo.demonstration.sources": value}, "srpo.demonstration.sources")
    for source in ("sibling", "memory", "reference"):
        assert source in error.remedy


@pytest.mark.parametrize(
    ("source", "key", "value"),
    [
        ("memory", "memory.per_prompt", 2),
        ("memory", "memory.max_prompts", 50),
        ("reference", "reference_column", "solution"),
        ("sibling", "select", "random"),
    ],
)
def test_a_setting_of_a_source_needs_the_source(source, key, value):
    key = f"srpo.demonstration.{key}"
    column = {"srpo.demonstration.reference_column": "solution"}
    others = [other for other in ("sibling", "memory", "reference") if other != source]
    known = column if "reference" in others else {}
    assert f"source {source}" in refusal({"srpo.demonstration.sources": others, **known, key: value}, key).remedy
    parse(with_values({"srpo.demonstration.sources": ["sibling", "memory", "reference"], **column, key: value}))


def test_the_source_reference_needs_a_column():
    sources = {"srpo.demonstration.sources": ["reference"]}
    assert "column" in refusal(sources, "srpo.demonstration.reference_column").remedy
    for wrong in ("", "a..b", ".a", 3, ["a"]):
        refusal({**sources, "srpo.demonstration.reference_column": wrong}, "srpo.demonstration.reference_column")


def test_a_memory_that_pass_rate_weights_leave_something_to():  # the others: tests/config/test_check.py
    changes = {"srpo.weighting.pass_rate": True, "srpo.demonstration.sources": ["sibling", "memory"]}
    parse(with_values({**changes, "srpo.routing": "all"}))
    parse(with_values({**changes, "srpo.demonstration.sources": ["memory", "sibling"]}))


def test_the_full_vocabulary_has_no_tail():
    error = refusal({"srpo.distillation.top_k": None, "srpo.distillation.tail": False}, "srpo.distillation.tail")
    assert "srpo.distillation.top_k=null" in error.remedy
    parse(with_values({"srpo.distillation.tail": False}))


# --- any value whatever ----------------------------------------------------------------------------------------------

ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**400, -(10**400)]),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=5),
    st.sampled_from(["none", "all", "sample", "live", "ema", "null", "true", "???"]),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@settings(max_examples=300)
@given(st.sampled_from(sorted(DEFAULTS)), ANYTHING)
def test_any_value_of_any_key_is_taken_or_refused_with_a_config_error(key, value):
    try:
        config = parse(with_values({key: value}))
    except ConfigError as refused:
        error = refused
    else:
        # Taken: then it has the type the rest of the package relies on.
        assert value is not None or key in NULLABLE
        # A bare `off` in a YAML file is false.
        is_off = value is False and key in (f"srpo.guards.{name}" for name in config.guards.levels)
        assert value is None or isinstance(value, bool) == (key in FLAGS or is_off)
        assert config.routing in CHOICES["srpo.routing"]
        return
    # All other keys have their defaults, so the one that was changed is the one to blame.
    assert error.key.startswith(key)
    assert str(error).startswith(f"{error.key}=")
