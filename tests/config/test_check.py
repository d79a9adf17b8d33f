"""The composed configuration as a whole: every setting of veRL that SRPO depends on."""

import os
from copy import deepcopy
from importlib.resources import files

import pytest
from hydra.utils import get_class
from omegaconf import OmegaConf, open_dict

from srpo_verl import installation
from srpo_verl.algos.routings import ROUTINGS, effects_of
from srpo_verl.config.check import check_run
from srpo_verl.config.schema import parse
from srpo_verl.errors import ConfigError
from srpo_verl.start import TASK_EVENTS, ConfigCheck
from tests.config import NAMES, compose

ACTOR, MODEL, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.model", "actor_rollout_ref.rollout"


@pytest.fixture(scope="module")
def shipped():
    return {"srpo": compose("srpo"), "grpo": compose("grpo"), "cpu": compose("srpo", "platform=cpu")}


@pytest.fixture
def change(shipped):
    """A copy of a shipped configuration with some keys set."""

    def changed(name="srpo", **values):
        config = deepcopy(shipped[name])
        for key, value in values.items():
            OmegaConf.update(config, key, value, force_add=True)
        return config

    return changed


def refusal(config, key, value):
    """The ConfigError of a configuration, checked to name key and value."""
    with pytest.raises(ConfigError) as raised:
        check_run(config)
    error = raised.value
    assert (error.key, error.value) == (key, value)
    assert str(error).startswith(f"{key}={value!r}: ")
    return error


@pytest.mark.parametrize("name", ["srpo", "grpo"])
@pytest.mark.parametrize(("is_level", "rs_level"), [("token", None), (None, "token_k1"), ("token", "token_k1")])
def test_rollout_correction_needs_the_rollout_engine_s_log_probs(change, name, is_level, rs_level):
    correction = "algorithm.rollout_correction"
    levels = {f"{correction}.rollout_is": is_level, f"{correction}.rollout_rs": rs_level}
    check_run(change(name, **levels))
    key = f"{ROLLOUT}.calculate_log_probs"
    error = refusal(change(name, **levels, **{key: False}), key, False)
    for setting, level in levels.items():
        assert (f"{setting}=null" in error.remedy) is (level is not None)
    check_run(change(name, **dict.fromkeys(levels), **{key: False}))


def test_bypass_mode_leaves_nothing_to_correct(change):
    """veRL skips its correction then, and leaves it to a policy loss of its own that ours replaces."""
    correction = "algorithm.rollout_correction"
    key, off = f"{correction}.bypass_mode", {f"{correction}.rollout_is": None}
    error = refusal(change("grpo", **{key: True, f"{correction}.rollout_rs": "token_k1"}), key, True)
    assert f"{correction}.rollout_is=null and {correction}.rollout_rs=null" in error.remedy
    check_run(change("grpo", **{key: True}, **off))
    log_probs = f"{ROLLOUT}.calculate_log_probs"
    assert "bypass_mode" in refusal(change("grpo", **{key: True, log_probs: False}, **off), log_probs, False).remedy
    refusal(change("grpo", **{f"{correction}.loss_type": "reinforce"}), f"{correction}.loss_type", "reinforce")


@pytest.mark.parametrize(
    ("key", "value"),
    [(f"{ACTOR}.use_kl_loss", True), ("algorithm.use_kl_in_reward", True), (f"{ACTOR}.entropy_coeff", 0.01)],
)
def test_a_term_of_the_policy_loss_needs_rows_that_take_it(change, key, value):
    """Refused where it is without effect (tests/verl_ext/test_kl.py), and nowhere else."""
    for routing in ("sample", "advantage_mix", "handover", "keep_negative", "tests.verl_ext.own_routing:my_routing"):
        check_run(change(**{"srpo.routing": routing, key: value}))
    check_run(change("grpo", **{key: value}))
    handing_over = {"srpo.schedule.kind": "linear"}
    for routing in ("all", "correct_only", "failed_only"):
        error = refusal(change(**{"srpo.routing": routing, key: value}), key, value)
        assert f"srpo.routing={routing}" in error.remedy
        check_run(change(**{"srpo.routing": routing, key: value}, **handing_over))
    refusal(change(**{"srpo.routing": "advantage_mix", "srpo.advantage_mix.lambda": 0, key: value}), key, value)


def test_what_a_routing_can_do_is_what_its_formulas_say():
    for name, rule in ROUTINGS.items():
        effects = effects_of(name)
        assert effects.takes_grpo == (rule.grpo != "0"), name
        assert effects.distils == (rule.sdpo != "0"), name
    assert {name for name in ROUTINGS if not effects_of(name).distils_correct} == {
        *("sample", "none", "failed_only", "handover", "keep_negative", "fixed_negative")
    }
    assert {name for name in ROUTINGS if not effects_of(name).distils_failed} == {
        *("none", "correct_only", "fixed_negative")
    }
    assert {name for name in ROUTINGS if effects_of(name).needs_group} == {"handover", "fixed_negative"}


CREDIT = {"srpo.routing": "none", "srpo.credit": "teacher_ratio"}
SOURCES, COLUMN = "srpo.demonstration.sources", {"srpo.demonstration.reference_column": "solution"}
SENSELESS = [
    # what is asked for, the key that is named, words of the reason or the remedy
    ({"srpo.routing": "sample", "srpo.credit": "teacher_ratio"}, "srpo.credit", "srpo.routing=none alone"),
    ({"srpo.routing": "fixed_negative", "srpo.credit": "teacher_ratio"}, "srpo.credit", "not with fixed_negative"),
    ({**CREDIT, "srpo.weighting.pass_rate": True}, "srpo.weighting.pass_rate", "srpo.routing=none"),
    ({**CREDIT, "srpo.distillation.top_k": 20}, "srpo.distillation.top_k", "srpo.routing=none"),
    ({"srpo.routing": "none", "srpo.schedule.kind": "linear"}, "srpo.schedule.kind", "srpo.routing=none"),
    ({"srpo.routing": "none", "srpo.weighting.pass_rate": True}, "srpo.weighting.pass_rate", "srpo.routing=none"),
    ({"srpo.routing": "none", SOURCES: ["sibling", "memory"]}, SOURCES, "srpo.routing=none"),
    ({"srpo.routing": "fixed_negative", SOURCES: ["memory"]}, SOURCES, "srpo.routing=fixed_negative"),
    ({"srpo.routing": "fixed_negative", f"{ROLLOUT}.n": 1}, f"{ROLLOUT}.n", "the other rollouts of the group"),
    ({"srpo.routing": "handover", SOURCES: ["memory"], f"{ROLLOUT}.n": 1}, f"{ROLLOUT}.n", "at least 2"),
    (
        {"srpo.routing": "correct_only", "srpo.demonstration.environment_feedback": True},
        "srpo.demonstration.environment_feedback",
        "it is on failed rollouts",
    ),
    ({"srpo.weighting.pass_rate": True, SOURCES: ["sibling", "memory"]}, SOURCES, "leave one of them out"),
    (
        {"srpo.routing": "all", "srpo.weighting.pass_rate": True, SOURCES: ["reference"], **COLUMN, f"{ROLLOUT}.n": 1},
        f"{ROLLOUT}.n",
        "a pass rate needs a group",
    ),
    ({"srpo.demonstration.memory.per_prompt": 2}, "srpo.demonstration.memory.per_prompt", "source memory"),
    (COLUMN, "srpo.demonstration.reference_column", "source reference"),
    ({SOURCES: ["reference"]}, "srpo.demonstration.reference_column", "has to name a column"),
    ({SOURCES: ["memory"], "srpo.demonstration.select": "random"}, "srpo.demonstration.select", "source sibling"),
    ({"srpo.teacher.kind": "live", "srpo.demonstration.show": False}, "srpo.demonstration.show", "kind=live"),
    ({"srpo.teacher_ratio.epsilon": 0.2}, "srpo.teacher_ratio.epsilon", "credit=teacher_ratio"),
    ({"srpo.teacher_ratio.lambda": 0.2}, "srpo.teacher_ratio.lambda", "credit=teacher_ratio"),
    ({"srpo.schedule.start": 5}, "srpo.schedule.start", "kind=linear"),
    ({"srpo.weighting.beta": 0.0, "srpo.weighting.floor": 0.1}, "srpo.weighting.floor", "all weights are 1"),
    ({"srpo.fixed_negative.advantage": 0.2}, "srpo.fixed_negative.advantage", "routing=fixed_negative"),
    ({"srpo.advantage_mix.lambda": 0.5}, "srpo.advantage_mix.lambda", "routing=advantage_mix"),
    (
        {**CREDIT, "algorithm.rollout_correction.bypass_mode": True},
        "algorithm.rollout_correction.bypass_mode",
        "divides by the old log-probs",
    ),
]


@pytest.mark.parametrize(("asked", "key", "words"), SENSELESS)
def test_a_combination_that_makes_no_sense(change, asked, key, words):
    """Each part is fine somewhere; together they would do nothing, or another thing than their names say."""
    assert words in refusal(change(**asked), key, asked.get(key)).remedy


HOOKS = [
    ("trainer.use_v1", False, "True"),
    ("trainer.v1.trainer_mode", "colocate_async", "'srpo'"),
    ("trainer.v1.trainer_mode", "sync", "'srpo'"),
    ("algorithm.adv_estimator", "grpo", "'srpo'"),
    (f"{ACTOR}.policy_loss.loss_mode", "vanilla", "'srpo'"),
    (f"{ACTOR}.loss_agg_mode", "seq-mean-token-mean", "'token-mean'"),
    (f"{ACTOR}.strategy", "megatron", "fsdp or fsdp2"),
    ("model_engine", "megatron", "'dp'"),
]
LORA = [
    (f"{MODEL}.lora.rank", 8, "set only that one"),
    (f"{MODEL}.lora_adapter_path", "adapter", "no effect without model.lora_rank"),
]
TEACHER_SIDE = [
    (f"{MODEL}.use_fused_kernels", True, "False"),
    ("distillation.enabled", True, "False"),
    ("algorithm.rollout_correction.bypass_mode", True, "False"),
    (f"{ROLLOUT}.n", 1, "at least 2"),
]


@pytest.mark.parametrize("name", ["srpo", "grpo"])
@pytest.mark.parametrize(("key", "value", "remedy"), HOOKS)
def test_a_hook_of_the_plugin_that_was_replaced(change, name, key, value, remedy):
    """Without any one of them veRL would train something else, and say nothing."""
    assert remedy in refusal(change(name, **{key: value}), key, value).remedy


@pytest.mark.parametrize("name", ["srpo", "grpo"])
@pytest.mark.parametrize(("key", "value", "remedy"), LORA)
def test_a_setting_of_lora_that_fsdp_would_ignore(change, name, key, value, remedy):
    assert remedy in refusal(change(name, **{key: value}), key, value).remedy


def test_agent_loops_of_several_turns_are_accepted(change):
    check_run(change(**{f"{ROLLOUT}.multi_turn.enable": True, f"{ROLLOUT}.agent.default_agent_loop": "tool_agent"}))


@pytest.mark.parametrize(("key", "value", "remedy"), TEACHER_SIDE)
def test_what_a_teacher_cannot_work_with(change, key, value, remedy):
    assert remedy in refusal(change("srpo", **{key: value}), key, value).remedy


@pytest.mark.parametrize(("key", "value", "remedy"), TEACHER_SIDE)
def test_runs_without_a_teacher_may_have_it(change, key, value, remedy):
    check_run(change("grpo", **{key: value, "algorithm.rollout_correction.rollout_is": None}))


def test_a_routing_of_one_s_own_is_imported_in_the_driver(change):
    check_run(change(**{"srpo.routing": "tests.verl_ext.own_routing:my_routing"}))
    for name in ("tests.verl_ext.own_routing:no_routing", "no_such_module:f"):
        assert "cannot be imported" in refusal(change(**{"srpo.routing": name}), "srpo.routing", name).remedy


def test_the_trainer_may_have_rewritten_its_mode(change):
    """SrpoTrainer checks, sets "sync" and hands the group to the workers; a second trainer may check again."""
    config = change()
    check_run(change(**{"trainer.v1.trainer_mode": "sync", "actor_rollout_ref.srpo": config.srpo}))


@pytest.mark.parametrize("strategy", ["fsdp", "fsdp2"])
def test_both_versions_of_fsdp(change, strategy):
    check_run(change(**{f"{ACTOR}.strategy": strategy}))


@pytest.mark.parametrize("key", ["algorithm.filter_groups.enable", "trainer.v1.sampler.sync_refill_failed_groups"])
def test_the_cpu_sampler_cannot_filter(change, key):
    refusal(change("cpu", **{key: True}), key, True)
    check_run(change("srpo", **{key: True}))  # veRL's own sampler can


def test_lora(change):
    """FSDP reads model.lora_rank; the rollout engine would take another rank from model.lora.rank."""
    lora = {f"{MODEL}.lora_rank": 8}
    check_run(change(**lora))
    check_run(change(**lora, **{f"{MODEL}.lora_adapter_path": "adapter", f"{MODEL}.lora.rank": 8}))
    refusal(change(**lora, **{f"{MODEL}.lora.rank": 16}), f"{MODEL}.lora.rank", 16)


def test_the_cpu_rollout_engine_takes_merged_weights(change):
    lora = {f"{MODEL}.lora_rank": 8}
    assert "merged" in refusal(change("cpu", **lora), f"{MODEL}.lora.merge", False).remedy
    check_run(change("cpu", **lora, **{f"{MODEL}.lora.merge": True}))


@pytest.mark.parametrize("group", ["", "fsdp_config."])
@pytest.mark.parametrize("name", ["srpo", "grpo"])
def test_ulysses(change, name, group):
    """What veRL would find out in a worker, or never."""
    key = f"{ACTOR}.{group}ulysses_sequence_parallel_size"
    attention, packed = f"{MODEL}.override_config.attn_implementation", f"{MODEL}.use_remove_padding"
    check_run(change(name, **{key: 4}))
    check_run(change(name, **{key: 4, attention: "flash_attention_3"}))
    assert "number of ranks, 8" in refusal(change(name, **{key: 3}), key, 3).remedy
    assert "packed" in refusal(change(name, **{key: 2, packed: False}), packed, False).remedy
    assert "silently" in refusal(change(name, **{key: 2, attention: "sdpa"}), attention, "sdpa").remedy


def test_fsdp1_sends_merged_weights(change):
    lora = {f"{MODEL}.lora_rank": 8, f"{ACTOR}.strategy": "fsdp"}
    assert "or use fsdp2" in refusal(change(**lora), f"{MODEL}.lora.merge", False).remedy
    check_run(change(**lora, **{f"{MODEL}.lora.merge": True}))


def test_a_memory_or_a_reference_needs_no_sibling(change):
    for sources in (["sibling", "memory"], ["reference"]):
        keys = {"srpo.demonstration.sources": sources}
        if "reference" in sources:
            keys["srpo.demonstration.reference_column"] = "reward_model.ground_truth"
        check_run(change(**{f"{ROLLOUT}.n": 1, **keys}))
        error = refusal(
            change(**{f"{ROLLOUT}.n": 1, **keys, "srpo.weighting.pass_rate": True, "srpo.routing": "all"}),
            f"{ROLLOUT}.n",
            1,
        )
        assert "pass rate" in error.remedy


def test_feedback_alone_needs_no_sibling(change):
    check_run(change(**{f"{ROLLOUT}.n": 1, "srpo.demonstration.environment_feedback": True}))
    check_run(change(**{f"{ROLLOUT}.n": 2}))


@pytest.mark.parametrize("limit", [2048, 2047, 1])
def test_the_teacher_s_prompt_is_longer_than_the_student_s(change, limit):
    config = change(**{"srpo.demonstration.max_prompt_tokens": limit})
    assert "data.max_prompt_length=2048" in refusal(config, "srpo.demonstration.max_prompt_tokens", limit).remedy
    check_run(change(**{"srpo.demonstration.max_prompt_tokens": 2049}))


def test_the_group_itself_is_checked(change):
    refusal(change(**{"srpo.distillation.topk": 5}), "srpo.distillation.topk", 5)


def test_a_configuration_without_the_group(change):
    config = change()
    with open_dict(config):
        del config["srpo"]
    assert "--config-path pkg://srpo_verl.config" in refusal(config, "srpo", None).remedy


def test_the_check_returns_the_group_typed_and_changes_nothing(change):
    config = change()
    before = OmegaConf.to_container(config)
    assert check_run(config) == parse(config.srpo)
    assert OmegaConf.to_container(config) == before


# --- before any worker starts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_named_configuration_runs_the_check_as_a_hydra_callback(name):
    node = OmegaConf.load(str(files("srpo_verl.config").joinpath(f"{name}.yaml")))
    assert get_class(node.hydra.callbacks.srpo._target_) is ConfigCheck


def test_the_callback_ends_the_process_with_the_message_alone(change, monkeypatch):
    """Hydra turns an exception of a callback into a warning and goes on; SystemExit is none."""
    monkeypatch.setenv("SRPO_PREFLIGHT", "off")  # what else it looks at: tests/preflight
    with pytest.raises(SystemExit) as raised:
        ConfigCheck().on_job_start(change(**{"srpo.weighting.beta": -1}))
    assert str(raised.value.code).startswith("srpo_verl: srpo.weighting.beta=-1: ")
    ConfigCheck().on_job_start(change())


@pytest.mark.parametrize(("own", "expected"), [(None, "1000"), ("7", "7")])
def test_ray_keeps_the_events_of_few_tasks(own, expected, change, monkeypatch):
    """Its server's memory would grow for thousands of steps; who sets the variable has his own."""
    monkeypatch.setenv("SRPO_PREFLIGHT", "off")
    monkeypatch.setenv(TASK_EVENTS, own or "")
    if own is None:
        monkeypatch.delenv(TASK_EVENTS)
    ConfigCheck().on_job_start(change())
    assert os.environ[TASK_EVENTS] == expected


def test_the_callback_ends_the_process_where_the_plugin_is_not_in_place(change, monkeypatch):
    monkeypatch.setattr(installation, "version", lambda name: "0.9.0")
    with pytest.raises(SystemExit, match=r"srpo_verl: veRL 0\.9\.0"):
        ConfigCheck().on_job_start(change())


def test_the_callback_looks_at_what_the_processes_of_the_run_will_load(change):
    """This process has imported the plugin by itself."""
    key = "ray_kwargs.ray_init.runtime_env.env_vars.VERL_USE_EXTERNAL_PLUGINS"
    with pytest.raises(SystemExit, match=r"VERL_USE_EXTERNAL_PLUGINS='none' leaves srpo_verl out"):
        ConfigCheck().on_job_start(change(**{key: "none"}))


def test_budgets_without_validations(change):
    never = {"trainer.test_freq": 0, "trainer.val_before_train": False}
    refusal(change(**never, **{"srpo.budget.hours": [2]}), "srpo.budget.hours", [2.0])
    check_run(change(**never))
    check_run(change(**{"trainer.test_freq": 5, "srpo.budget.hours": [2]}))
