"""Routing a sampled batch in the trainer: order, demonstrations, feedback, metrics. No Ray, no veRL batch."""

from dataclasses import replace

import pytest
import torch

from srpo_verl.algos.routings import effects_of
from srpo_verl.config.schema import default_values, parse
from srpo_verl.verl_ext.router import Router
from tests.verl_ext.batches import LIMIT, MIXED, TEXT, decode, render, rollouts, shown


def settings(routing="sample", **demonstration):
    values = default_values()
    values["routing"] = routing
    if effects_of(routing).distils:
        values["demonstration"]["max_prompt_tokens"] = LIMIT
        values["demonstration"].update(demonstration)
    return parse(values)


def router(routing="sample", seed=0, **demonstration):
    return Router(settings(routing, **demonstration), TEXT, render, seed)


def siblings(routed, keys):
    """Key of a row -> key of its sibling (or None): what routing says whatever the order of the rows."""
    return {
        key: keys[sibling] if sibling >= 0 else None
        for key, sibling in zip(keys, routed.routing.sibling_B.tolist(), strict=True)
    }


# The paper's example: G=8, y_2 and y_5 correct.
EXAMPLE = [("q", session, 1.0 if session in (2, 5) else 0.0, f"answer {session}") for session in range(8)]
PERMUTATIONS = [torch.randperm(len(MIXED), generator=torch.Generator().manual_seed(s)).tolist() for s in range(6)]


def test_the_paper_s_example():
    routed = router().route(rollouts(EXAMPLE), 0)
    assert routed.routing.sdpo_B.tolist() == [True, True, False, True, True, False, True, True]
    assert routed.routing.grpo_B.tolist() == [False, False, True, False, False, True, False, False]
    for row in (0, 1, 3, 4, 6, 7):
        assert shown(routed, row) == "answer 2"
    assert routed.reprompts[2] is routed.reprompts[5] is None
    # What all are shown is rendered once.
    assert len({id(reprompt) for reprompt in routed.reprompts if reprompt is not None}) == 1


def test_a_teacher_prompt_holds_the_row_s_own_question():
    routed = router().route(rollouts(MIXED), 0)
    for row, (group, *_) in enumerate(MIXED):
        reprompt = routed.reprompts[row]
        assert reprompt is None or decode(reprompt.token_ids).startswith(f"Question {group}\n\n")
    assert [reprompt is not None for reprompt in routed.reprompts] == routed.routing.sdpo_B.tolist()


def test_the_session_decides_which_is_first_whatever_the_order_of_the_rows():
    """Rows arrive in the order their rollouts finished."""
    backwards = list(reversed(EXAMPLE))
    routed = router().route(rollouts(backwards), 0)
    for row, (_, session, *_) in enumerate(backwards):
        if session not in (2, 5):
            assert shown(routed, row) == "answer 2"


def test_sessions_are_numbers():
    """As text, "10" would come before "9"."""
    rows = [("q", 10, 1.0, "ten"), ("q", 9, 1.0, "nine"), ("q", 11, 0.0, "eleven")]
    assert shown(router().route(rollouts(rows), 0), 2) == "nine"


def test_a_uid_may_hold_underscores():
    batch = rollouts([("x_1_7", 0, 0.0, "no"), ("x_1_7", 1, 1.0, "yes")])
    assert batch.keys[0] == "x_1_7_0_0"
    assert shown(router().route(batch, 0), 0) == "yes"


@pytest.mark.parametrize("order", PERMUTATIONS)
@pytest.mark.parametrize("select", ["first", "shortest"])
@pytest.mark.parametrize("routing", ["sample", "all", "advantage_mix"])
def test_the_order_of_the_rows_changes_nothing(routing, select, order):
    batch = rollouts(MIXED)
    reference = router(routing, select=select).route(batch, 3)
    shuffled_batch = rollouts([MIXED[row] for row in order])
    shuffled = router(routing, select=select).route(shuffled_batch, 3)
    assert siblings(shuffled, shuffled_batch.keys) == siblings(reference, batch.keys)
    for name in ("correct_B", "teacher_B", "pass_rate_B", "sdpo_share_B", "grpo_share_B"):
        assert torch.equal(getattr(shuffled.routing, name), getattr(reference.routing, name)[order]), name
    assert shuffled.reprompts == [reference.reprompts[row] for row in order]
    assert shuffled.metrics == pytest.approx(reference.metrics)


MANY = [("q", session, float(session % 2), f"answer {session}") for session in range(32)]


def test_random_demonstrations_depend_on_seed_and_step_and_nothing_else():
    batch = rollouts(MANY)

    def chosen(seed, step):
        torch.manual_seed(seed * 31 + step * 17 + 5)  # the global generator must not matter
        return router(select="random", seed=seed).route(batch, step).routing.sibling_B.tolist()

    assert chosen(1, 7) == chosen(1, 7)
    assert chosen(1, 7) != chosen(1, 8)
    assert chosen(1, 7) != chosen(2, 7)
    # A step of one seed is not the next step of another: consecutive runs must not share choices.
    assert chosen(1, 8) != chosen(2, 7)


def test_a_resumed_run_chooses_as_the_uninterrupted_one():
    batch, one = rollouts(MANY), router(select="random", seed=4)
    history = [one.route(batch, step).routing.sibling_B.tolist() for step in range(3)]
    assert router(select="random", seed=4).route(batch, 2).routing.sibling_B.tolist() == history[2]


@pytest.mark.parametrize("select", ["first", "random", "shortest"])
@pytest.mark.parametrize("routing", ["sample", "all", "correct_only", "failed_only", "advantage_mix"])
def test_a_demonstration_is_a_correct_sibling_s_text_and_never_the_own(routing, select):
    rows = [*MIXED, *MANY]
    routed = router(routing, select=select).route(rollouts(rows), 1)
    distilled = routed.routing.sdpo_B.nonzero().flatten().tolist()
    assert distilled
    by_text = {row[3]: index for index, row in enumerate(rows)}
    for row in distilled:
        source = by_text[shown(routed, row)]
        assert source != row
        assert rows[source][0] == rows[row][0]
        assert rows[source][2] >= 0.5


def test_the_shortest_is_counted_in_tokens():
    rows = [("q", 0, 1.0, "a long correct answer"), ("q", 1, 1.0, "short"), ("q", 2, 0.0, "no")]
    routed = router("all", select="shortest").route(rollouts(rows), 0)
    assert shown(routed, 2) == "short"
    assert shown(routed, 0) == "short"
    assert shown(routed, 1) == "a long correct answer"


def test_nothing_is_rendered_without_distillation():
    def refuse(*_):
        raise AssertionError("a GRPO run has no teacher prompts")

    routed = Router(settings("none"), refuse, refuse, 0).route(rollouts(MIXED), 0)
    assert routed.reprompts == [None] * len(MIXED)
    assert routed.routing.grpo_B.all()
    assert "srpo/reprompt_tokens_mean" not in routed.metrics


def test_thinking_is_stripped_from_the_demonstration_if_asked():
    rows = [("q", 0, 1.0, "<think>mull</think>42"), ("q", 1, 0.0, "no")]
    assert shown(router(strip_thinking=True).route(rollouts(rows), 0), 1) == "42"
    assert shown(router(strip_thinking=False).route(rollouts(rows), 0), 1) == "<think>mull</think>42"


def test_the_threshold_is_the_configured_one():
    values = default_values()
    values["success_threshold"] = 0.3
    routed = Router(parse(values), TEXT, render, 0).route(rollouts(MIXED), 0)
    assert routed.routing.correct_B.tolist() == [False, True, True, True, False, False, False, False, True]


def test_several_outputs_of_one_session_are_refused():
    batch = rollouts(EXAMPLE)
    keys = [*batch.keys[:3], "q_3_1", *batch.keys[4:]]
    with pytest.raises(ValueError, match=r"row q_3_1: .*several outputs.*single_turn_agent"):
        router().route(replace(batch, keys=keys), 0)


@pytest.mark.parametrize("reward", [float("nan"), float("inf")])
def test_a_reward_that_is_no_number_is_named_with_its_row(reward):
    batch = rollouts(EXAMPLE)
    rewards = batch.rewards_B.clone()
    rewards[2] = reward
    with pytest.raises(ValueError, match=rf"row {batch.keys[2]}: the reward is {reward} .*finite number"):
        router().route(replace(batch, rewards_B=rewards), 0)


def test_a_demonstration_is_the_sibling_s_whole_dialogue_and_no_turn_of_its_own():
    rows = [("q", 0, 1.0, "call<|end|>tool says 42<|end|>it is 42<|end|>"), ("q", 1, 0.0, "no")]
    batch = rollouts(rows)
    written = [True] * len("call<|end|>") + [False] * len("tool says 42<|end|>") + [True] * len("it is 42<|end|>")
    masks = [torch.tensor(written).long(), batch.response_masks[1]]
    routed = router().route(replace(batch, response_masks=masks), 0)
    assert shown(routed, 1) == "call< |end|>tool says 42< |end|>it is 42"
    assert routed.metrics["srpo/grpo_tokens"] == len("call<|end|>it is 42<|end|>")  # what the tool said is nobody's


def test_the_teacher_s_prompt_shows_the_tools_of_the_row():
    rows = [("q", 0, 1.0, "yes"), ("q", 1, 0.0, "no"), ("p", 0, 1.0, "yes"), ("p", 1, 0.0, "no")]
    tools = [[{"content": "calculator "}]] * 2 + [[]] * 2
    routed = router().route(replace(rollouts(rows), tools=tools), 0)
    starts = [decode(routed.reprompts[row].token_ids).split("\n")[0] for row in (1, 3)]
    assert starts == ["calculator Question q", "Question p"]


# --- feedback --------------------------------------------------------------------------------------------------------

WITH_FEEDBACK = [
    ("a", 0, 0.0, "a zero", "Wrong unit."),
    ("a", 1, 1.0, "a one", ""),
    ("b", 0, 0.0, "b zero", "No answer."),
    ("b", 1, 0.0, "b one", ""),
]


def test_feedback_is_a_teacher_where_it_is_switched_on():
    routed = router(environment_feedback=True).route(rollouts(WITH_FEEDBACK), 0)
    assert routed.routing.sdpo_B.tolist() == [True, False, True, False]
    both, alone = decode(routed.reprompts[0].token_ids), decode(routed.reprompts[2].token_ids)
    assert "a one" in both
    assert "Wrong unit." in both
    assert "Correct solution" not in alone
    assert "No answer." in alone
    assert alone.endswith("Correctly solve the original question.\n")


def test_feedback_that_quotes_the_response_opens_no_turn():
    rows = [("a", 0, 0.0, "a zero", "Not a number: <|end|>")]
    routed = router(environment_feedback=True).route(rollouts(rows), 0)
    assert "Not a number: < |end|>" in decode(routed.reprompts[0].token_ids)


def test_feedback_is_not_shown_where_it_is_switched_off():
    routed = router().route(rollouts(WITH_FEEDBACK), 0)
    assert routed.routing.sdpo_B.tolist() == [True, False, False, False]
    assert "Wrong unit." not in decode(routed.reprompts[0].token_ids)


def test_a_row_s_feedback_is_its_own_in_any_order():
    order = [3, 0, 2, 1]
    routed = router(environment_feedback=True).route(rollouts([WITH_FEEDBACK[row] for row in order]), 0)
    assert "Wrong unit." in decode(routed.reprompts[1].token_ids)
    assert "No answer." in decode(routed.reprompts[2].token_ids)


def test_a_correct_rollout_is_not_called_an_unsuccessful_attempt():
    """The interface shows feedback on failed attempts; a verifier of the user's own may comment on correct ones."""
    rows = [("a", 0, 1.0, "a zero", "Well done."), ("a", 1, 1.0, "a one", "Well done.")]
    routed = router("all", environment_feedback=True).route(rollouts(rows), 0)
    for row in (0, 1):
        assert routed.reprompts[row] is not None
        assert "unsuccessful" not in decode(routed.reprompts[row].token_ids)


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_the_metrics_by_hand():
    batch = rollouts(
        [
            ("a", 0, 1.0, "right"),
            ("a", 1, 0.0, "wrong one"),  # distilled
            ("a", 2, 0.0, "wrong two!"),  # distilled
            ("b", 0, 0.0, "bad"),
            ("b", 1, 0.0, "worse"),
            ("c", 0, 1.0, "alone"),
            ("d", 0, 1.0, "yes"),
            ("d", 1, 1.0, "yess"),
        ]
    )
    masks = [mask.clone() for mask in batch.response_masks]
    masks[2][4:7] = 0  # 3 of 10 tokens do not count
    masks[4][:] = 0
    routed = router().route(replace(batch, response_masks=masks), 0)
    question, parts = (
        len("Question a"),
        len("\n\nCorrect solution:\n\n" + "\n\nCorrectly solve the original question.\n"),
    )
    assert routed.metrics == pytest.approx(
        {
            "srpo/frac_correct": 4 / 8,
            "srpo/frac_sdpo": 2 / 8,
            "srpo/frac_grpo": 6 / 8,
            "srpo/frac_teacher_available": 4 / 8,  # a1, a2, d0, d1
            "srpo/distillation_coefficient": 1.0,
            "srpo/frac_credit": 0.0,
            "srpo/frac_shown_sibling": 2 / 8,
            "srpo/frac_shown_memory": 0.0,
            "srpo/frac_shown_reference": 0.0,
            "srpo/frac_shown_feedback": 0.0,
            "srpo/frac_shown_nothing": 0.0,
            "srpo/sdpo_share_mean": 2 / 8,
            "srpo/grpo_share_mean": 6 / 8,
            "srpo/frac_all_failed_groups": 1 / 4,  # b
            "srpo/frac_mostly_failed_groups": 1 / 4,  # a
            "srpo/frac_mostly_correct_groups": 0.0,
            "srpo/frac_all_correct_groups": 2 / 4,  # c, d
            "srpo/without_teacher": 0.0,
            "srpo/sdpo_tokens": 9 + 7,
            "srpo/grpo_tokens": 5 + 3 + 0 + 5 + 3 + 4,
            "srpo/reprompt_tokens_mean": question + parts + len("right"),
            "srpo/frac_reprompt_truncated": 0.0,
        }
    )


def test_truncated_prompts_are_counted():
    rows = [
        ("a", 0, 1.0, "x" * 500),
        ("a", 1, 0.0, "no"),
        ("a", 2, 0.0, "no"),
        ("b", 0, 1.0, "short"),
        ("b", 1, 0.0, "no"),
    ]
    routed = router().route(rollouts(rows), 0)
    short = len("Question b\n\nCorrect solution:\n\nshort\n\nCorrectly solve the original question.\n")
    assert routed.metrics["srpo/frac_reprompt_truncated"] == pytest.approx(2 / 3)
    assert routed.metrics["srpo/reprompt_tokens_mean"] == pytest.approx((2 * LIMIT + short) / 3)


def test_a_step_without_any_correct_rollout():
    routed = router().route(rollouts([("a", 0, 0.0, "no"), ("a", 1, 0.0, "none")]), 0)
    assert routed.reprompts == [None, None]
    assert routed.metrics == {
        "srpo/frac_correct": 0.0,
        "srpo/frac_sdpo": 0.0,
        "srpo/frac_grpo": 1.0,
        "srpo/frac_teacher_available": 0.0,
        "srpo/distillation_coefficient": 1.0,
        "srpo/frac_credit": 0.0,
        "srpo/frac_shown_sibling": 0.0,
        "srpo/frac_shown_memory": 0.0,
        "srpo/frac_shown_reference": 0.0,
        "srpo/frac_shown_feedback": 0.0,
        "srpo/frac_shown_nothing": 0.0,
        "srpo/sdpo_share_mean": 0.0,
        "srpo/grpo_share_mean": 1.0,
        "srpo/frac_all_failed_groups": 1.0,
        "srpo/frac_mostly_failed_groups": 0.0,
        "srpo/frac_mostly_correct_groups": 0.0,
        "srpo/frac_all_correct_groups": 0.0,
        "srpo/without_teacher": 1.0,
        "srpo/sdpo_tokens": 0,
        "srpo/grpo_tokens": 6,
    }


@pytest.mark.parametrize(
    ("routing", "sdpo", "grpo"),
    [
        ("sample", 3, 6),
        ("none", 0, 9),
        ("all", 5, 0),
        ("correct_only", 2, 0),
        ("failed_only", 3, 0),
        ("advantage_mix", 5, 9),
        ("handover", 3, 9),
        ("keep_negative", 3, 9),
        ("fixed_negative", 0, 9),
    ],
)
def test_shares_of_every_routing(routing, sdpo, grpo):
    """MIXED: a has two correct of three, b none, c one."""
    metrics = router(routing).route(rollouts(MIXED), 0).metrics
    assert metrics["srpo/frac_sdpo"] == pytest.approx(sdpo / 9)
    assert metrics["srpo/frac_grpo"] == pytest.approx(grpo / 9)
    assert metrics["srpo/frac_teacher_available"] == pytest.approx(5 / 9)
    assert metrics["srpo/frac_all_failed_groups"] == pytest.approx(1 / 3)
    groups = ("all_failed", "mostly_failed", "mostly_correct", "all_correct")
    assert sum(metrics[f"srpo/frac_{name}_groups"] for name in groups) == pytest.approx(1.0)
    assert metrics["srpo/frac_mostly_correct_groups"] == pytest.approx(1 / 3)
    assert metrics["srpo/without_teacher"] == float(sdpo == 0)


def test_mean_shares():
    """MIXED with hand-over: a (p = 2/3) hands over one row, c (p = 1/3) two."""
    metrics = router("handover").route(rollouts(MIXED), 0).metrics
    d = 1 / 3 + 2 * 2 / 3
    assert metrics["srpo/sdpo_share_mean"] == pytest.approx(d / 9)
    assert metrics["srpo/grpo_share_mean"] == pytest.approx(1 - d / 9)


def test_rows_are_ragged_and_nothing_is_padded():
    """Lengths from 1 to 60: the sibling's text comes out whole, without a padding token at either end."""
    rows = [("q", session, float(session == 3), "x" * length) for session, length in enumerate([1, 60, 7, 23])]
    routed = router().route(rollouts(rows), 0)
    for row in (0, 1, 2):
        assert shown(routed, row) == "x" * 23
    assert routed.metrics["srpo/sdpo_tokens"] == 68
    assert routed.metrics["srpo/grpo_tokens"] == 23
