"""Routing with schedules, pass-rate weights and sources of demonstrations besides siblings. No Ray, no veRL batch."""

from dataclasses import fields, replace

import pytest
import torch

from srpo_verl.config.schema import default_values, parse
from srpo_verl.functional import Routing
from srpo_verl.verl_ext.router import Router
from tests.verl_ext.batches import LIMIT, MIXED, TEXT, render, rollouts, shown

# --- schedule, pass rates --------------------------------------------------------------------------------------------


def with_settings(changes, routing="sample"):
    values = default_values()
    values["routing"] = routing
    values["demonstration"]["max_prompt_tokens"] = LIMIT
    for group, keys in changes.items():
        values[group].update(keys)
    return Router(parse(values), TEXT, render, seed=0)


LINEAR = {"schedule": {"kind": "linear", "start": 1, "end": 3}}


def test_a_schedule_that_has_ended_prompts_no_teacher():
    scheduled = with_settings(LINEAR)
    first, second, third = (scheduled.route(rollouts(MIXED), step) for step in (1, 2, 3))
    assert [routed.metrics["srpo/distillation_coefficient"] for routed in (first, second, third)] == [1.0, 0.5, 0.0]
    assert [routed.metrics["srpo/without_teacher"] for routed in (first, second, third)] == [0.0, 0.0, 1.0]
    assert first.reprompts == second.reprompts == with_settings({}).route(rollouts(MIXED), 1).reprompts
    assert second.metrics["srpo/sdpo_share_mean"] == pytest.approx(first.metrics["srpo/sdpo_share_mean"] / 2)
    assert second.metrics["srpo/grpo_share_mean"] + second.metrics["srpo/sdpo_share_mean"] == pytest.approx(1.0)
    assert third.reprompts == [None] * len(MIXED)
    assert third.routing.grpo_share_B.tolist() == [1.0] * len(MIXED)


def test_prompts_that_are_certain_are_not_distilled_by_pass_rate():
    """MIXED: b has no correct row, and feedback would make it a teacher."""
    rows = [(*row, "Wrong.") for row in MIXED]
    changes = {"demonstration": {"environment_feedback": True, "max_prompt_tokens": 400}}
    every = with_settings(changes).route(rollouts(rows), 1)
    assert every.routing.sdpo_B.tolist() == [True, False, False, True, True, True, True, True, False]
    weighted = with_settings({**changes, "weighting": {"pass_rate": True}}).route(rollouts(rows), 1)
    assert weighted.routing.sdpo_B.tolist() == [True, False, False, False, False, False, True, True, False]
    assert weighted.reprompts[3] is None


def test_for_credit_every_row_with_a_teacher_asks_it_and_none_is_distilled():
    values = default_values() | {"routing": "none", "credit": "teacher_ratio"}
    values["demonstration"]["max_prompt_tokens"] = LIMIT
    routed = Router(parse(values), TEXT, render, seed=0).route(rollouts(MIXED), 1)
    asked = [reprompt is not None for reprompt in routed.reprompts]
    assert asked == routed.routing.teacher_B.tolist() == [True] * 3 + [False] * 3 + [True, True, False]
    assert not routed.routing.sdpo_B.any()
    assert (routed.routing.grpo_share_B == 1).all()
    metrics = routed.metrics
    assert (metrics["srpo/frac_credit"], metrics["srpo/without_teacher"]) == (pytest.approx(5 / 9), 0.0)
    assert metrics["srpo/frac_shown_sibling"] == pytest.approx(5 / 9)
    values["schedule"] |= {"kind": "linear", "start": 1, "end": 2}
    ended = Router(parse(values), TEXT, render, seed=0).route(rollouts(MIXED), 2)
    assert ended.reprompts == [None] * len(MIXED)
    assert (ended.metrics["srpo/frac_credit"], ended.metrics["srpo/without_teacher"]) == (0.0, 1.0)


# --- where demonstrations come from ----------------------------------------------------------------------------------


def remembering(sources, per_prompt=2, max_prompts=9, routing="sample", **more):
    memory = {"per_prompt": per_prompt, "max_prompts": max_prompts} if "memory" in sources else {}
    demonstration = {"sources": sources, **({"memory": memory} if memory else {}), **more}
    return with_settings({"demonstration": demonstration}, routing)


def adds_up(metrics):
    shares = [share for name, share in metrics.items() if name.startswith("srpo/frac_shown_")]
    assert len(shares) == 5
    assert sum(shares) == pytest.approx(metrics["srpo/frac_sdpo"])


def test_a_memory_serves_a_group_in_which_nobody_is_correct():
    one = remembering(["sibling", "memory"])
    first = one.route(rollouts([("a", 0, 1.0, "good"), ("a", 1, 1.0, "better"), ("a", 2, 0.0, "bad")]), 1)
    # A step's own successes come into the memory after it.
    assert first.metrics["srpo/frac_shown_memory"] == 0.0
    assert (first.metrics["srpo/memory_prompts"], first.metrics["srpo/memory_responses"]) == (1, 2)
    second = one.route(rollouts([("a", 0, 0.0, "bad"), ("a", 1, 0.0, "worse"), ("b", 0, 0.0, "no")]), 2)
    assert second.routing.sdpo_B.tolist() == [True, True, False]
    assert [shown(second, row) for row in (0, 1)] == ["better", "better"]
    assert second.metrics["srpo/frac_shown_memory"] == pytest.approx(2 / 3)
    adds_up(second.metrics)
    # With a correct sibling the memory is not asked.
    third = one.route(rollouts([("a", 0, 0.0, "bad"), ("a", 1, 1.0, "newest")]), 3)
    assert shown(third, 0) == "newest"
    assert third.metrics["srpo/frac_shown_sibling"] == 1 / 2
    assert third.metrics["srpo/memory_responses"] == 2  # "better" and "newest"
    adds_up(third.metrics)


def test_the_order_of_the_sources_decides():
    one = remembering(["memory", "sibling"])
    one.route(rollouts([("a", 0, 1.0, "old")]), 1)
    assert shown(one.route(rollouts([("a", 0, 0.0, "bad"), ("a", 1, 1.0, "new")]), 2), 0) == "old"


def test_a_correct_row_is_not_shown_its_own_words_out_of_the_memory():
    one = remembering(["sibling", "memory"], routing="all")
    one.route(rollouts([("a", 0, 1.0, "first"), ("a", 1, 1.0, "twin")]), 1)
    routed = one.route(rollouts([("a", 0, 1.0, "twin"), ("a", 1, 0.0, "bad")]), 2)
    assert shown(routed, 0) == "first"
    alone = remembering(["sibling", "memory"], routing="all", per_prompt=1)
    alone.route(rollouts([("a", 0, 1.0, "twin")]), 1)
    assert not alone.route(rollouts([("a", 0, 1.0, "twin")]), 2).routing.sdpo_B.any()


def test_the_memory_is_bounded_and_says_what_it_forgot():
    one = remembering(["sibling", "memory"], max_prompts=2)
    routed = one.route(rollouts([(name, 0, 1.0, name) for name in "abcd"]), 1)
    assert routed.metrics["srpo/memory_forgotten"] == 2
    assert routed.metrics["srpo/memory_prompts"] == 2
    assert one.route(rollouts([(name, 0, 0.0, "bad") for name in "abcd"]), 2).routing.sdpo_B.tolist() == [
        False,
        False,
        True,
        True,
    ]


def test_a_memory_out_of_a_checkpoint_shows_the_same(tmp_path):
    batches = [rollouts([("a", s, float(s == step), f"{step}-{s}") for s in range(4)]) for step in range(6)]
    uninterrupted = remembering(["sibling", "memory"], routing="all")
    history = [uninterrupted.route(batch, step).reprompts for step, batch in enumerate(batches)]
    first, second = (remembering(["sibling", "memory"], routing="all") for _ in range(2))
    for step in range(3):
        first.route(batches[step], step)
    first.memory.save(tmp_path)
    second.memory.load(tmp_path)
    assert [second.route(batches[step], step).reprompts for step in range(3, 6)] == history[3:]
    assert any(reprompt is not None for reprompt in history[4])


def test_a_schedule_that_has_ended_remembers_nothing_more():
    values = {**LINEAR, "demonstration": {"sources": ["sibling", "memory"]}}
    one = with_settings(values)
    one.route(rollouts([("a", 0, 1.0, "old")]), 1)
    assert one.route(rollouts([("b", 0, 1.0, "new")]), 3).metrics["srpo/memory_prompts"] == 1


def test_the_data_s_own_solution():
    batch = replace(rollouts(MIXED), references=[f"reference {index}" if index != 4 else "" for index in range(9)])
    one = remembering(["reference"], reference_column="solution")
    routed = one.route(batch, 1)
    assert routed.routing.sdpo_B.tolist() == [True, False, False, True, False, True, True, True, False]
    assert shown(routed, 3) == "reference 3"
    assert routed.metrics["srpo/frac_shown_reference"] == pytest.approx(5 / 9)
    adds_up(routed.metrics)
    after = remembering(["sibling", "reference"], reference_column="solution").route(batch, 1)
    assert shown(after, 0) == "a one, correct"
    assert shown(after, 3) == "reference 3"
    adds_up(after.metrics)


# --- the control: nothing is shown -----------------------------------------------------------------------------------


@pytest.mark.parametrize("routing", ["sample", "handover", "all", "advantage_mix"])
def test_a_teacher_that_is_shown_nothing_gets_the_student_s_prompt_on_the_same_rows(routing):
    """With feedback, a memory and references there: what counts as teacher information does not depend on it."""
    demonstration = {
        "sources": ["sibling", "memory", "reference"],
        "reference_column": "solution",
        "environment_feedback": True,
        "max_prompt_tokens": LIMIT,
    }
    batch = rollouts([(*row, "Wrong.") for row in MIXED])
    batch = replace(batch, references=["", "", "", "reference", "", "", "", "", ""])
    method, control = (
        with_settings({"demonstration": {**demonstration, "show": show}}, routing) for show in (True, False)
    )
    for step in (1, 2):  # in the second step the memory holds the successes of the first
        seen, blind = method.route(batch, step), control.route(batch, step)
        for field in fields(Routing):
            mine, other = (getattr(routed.routing, field.name) for routed in (seen, blind))
            assert torch.equal(mine.nan_to_num(9), other.nan_to_num(9)), field.name
        assert [reprompt is None for reprompt in seen.reprompts] == [reprompt is None for reprompt in blind.reprompts]
        assert any(seen.reprompts)
        for row, reprompt in enumerate(blind.reprompts):
            assert reprompt is None or reprompt.token_ids == render(batch.messages[row], batch.tools[row])
        assert blind.metrics["srpo/frac_shown_nothing"] == blind.metrics["srpo/frac_sdpo"] > 0
        adds_up(blind.metrics)
        adds_up(seen.metrics)
        about_prompts = ("srpo/frac_shown_", "srpo/reprompt_")
        assert {k: v for k, v in seen.metrics.items() if not k.startswith(about_prompts)} == {
            k: v for k, v in blind.metrics.items() if not k.startswith(about_prompts)
        }
