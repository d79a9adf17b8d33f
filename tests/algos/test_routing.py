"""Equation (1): the decision table, the choice of the sibling, and properties over random batches."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from srpo_verl.algos.routing import ROUTINGS, SELECTIONS, RoutingCase, choose_siblings, group_indices
from srpo_verl.functional import Shares, route_samples

PARTITIONS = ("sample", "none")


def route(rewards, groups, **options):
    return route_samples(torch.tensor(rewards, dtype=torch.float32), groups, **options)


def reference_routes(routing, correct, teacher):
    """(distilled, GRPO) of one rollout, written out from the paper's text rather than from the table in the code."""
    if routing == "sample":
        z_sdpo = (1 - correct) * teacher
        return bool(z_sdpo), bool(1 - z_sdpo)
    if routing == "none":
        return False, True
    if routing == "advantage_mix":
        return bool(teacher), True
    if routing == "keep_negative":
        return bool((1 - correct) * teacher), True
    if routing == "fixed_negative":
        return False, True
    wanted = {"all": True, "correct_only": correct == 1, "failed_only": correct == 0}[routing]
    return bool(teacher and wanted), False


def reference_shares(routing, correct, teacher, pass_rate, mix_lambda=0.9):
    """(g, d) of one rollout, written out from the table of docs/algorithm.md."""
    z = (1 - correct) * teacher
    if routing == "advantage_mix":
        return mix_lambda, (1 - mix_lambda) * teacher
    if routing == "handover":
        return 1 - z * (1 - pass_rate), z * (1 - pass_rate)
    distilled, grpo = reference_routes(routing, correct, teacher)
    return float(grpo), float(distilled)


def test_paper_example_of_eight_rollouts():
    routing = route([0, 0, 1, 0, 0, 1, 0, 0], ["x"] * 8)
    assert routing.correct_B.tolist() == [False, False, True, False, False, True, False, False]
    assert routing.sibling_B.tolist() == [2, 2, 5, 2, 2, 2, 2, 2]
    assert routing.sdpo_B.tolist() == [True, True, False, True, True, False, True, True]
    assert routing.grpo_B.tolist() == [False, False, True, False, False, True, False, False]
    assert routing.sibling_B.dtype == torch.int64


@pytest.mark.parametrize("routing", ROUTINGS)
def test_decision_table(routing):
    # One group per cell: a: (1,1) and (0,1); b: (1,0) and (0,1); c: (0,0) twice.
    result = route([1, 1, 0, 1, 0, 0, 0], list("aaabbcc"), routing=routing)
    cells = [(1, 1), (1, 1), (0, 1), (1, 0), (0, 1), (0, 0), (0, 0)]
    assert list(zip(result.correct_B.int().tolist(), result.teacher_B.int().tolist(), strict=True)) == cells
    pass_rates = [2 / 3, 2 / 3, 2 / 3, 1 / 2, 1 / 2, 0, 0]
    assert result.pass_rate_B.tolist() == pytest.approx(pass_rates)
    expected = [reference_shares(routing, c, m, p) for (c, m), p in zip(cells, pass_rates, strict=True)]
    for index, share_B in enumerate((result.grpo_share_B, result.sdpo_share_B)):
        assert share_B.tolist() == pytest.approx([shares[index] for shares in expected], abs=1e-7)  # fp32
    assert torch.equal(result.sdpo_B, result.sdpo_share_B > 0)
    assert torch.equal(result.grpo_B, result.grpo_share_B > 0)


def test_a_handed_over_failure_belongs_the_more_to_the_reward_the_better_the_prompt_is_known():
    rates, grpo = [], []
    for correct in range(1, 8):
        result = route([1] * correct + [0] * (8 - correct), "a" * 8, routing="handover")
        rates.append(float(result.pass_rate_B[-1]))
        grpo.append(float(result.grpo_share_B[-1]))
        assert result.grpo_share_B[:correct].tolist() == [1.0] * correct
    assert grpo == rates == [correct / 8 for correct in range(1, 8)]


def test_the_fixed_negative_advantage_is_for_failures_with_a_correct_sibling():
    # Feedback is no sibling.
    feedback = torch.tensor([False, False, True, False])
    result = route([1, 0, 0, 0], ["a", "a", "b", "b"], routing="fixed_negative", feedback_B=feedback)
    assert result.advantage_B[1] == -0.5
    assert result.advantage_B[[0, 2, 3]].isnan().all()
    assert route([1, 0], "aa", routing="fixed_negative", negative_advantage=0.25).advantage_B[1] == -0.25
    assert route([1, 0], "aa").advantage_B.isnan().all()


def test_lambda_is_the_share_of_grpo():
    result = route([1, 0, 0], "aab", routing="advantage_mix", mix_lambda=0.75)
    assert result.grpo_share_B.tolist() == [0.75] * 3
    assert result.sdpo_share_B.tolist() == [0.0, 0.25, 0.0]


def test_siblings_may_be_no_teachers():
    result = route([1, 0, 0], "aab", siblings_teach=False, feedback_B=torch.tensor([False, False, True]))
    assert result.sibling_B.tolist() == [-1, 0, -1]
    assert result.teacher_B.tolist() == result.sdpo_B.tolist() == [False, False, True]


@pytest.mark.parametrize("routing", ROUTINGS)
def test_a_schedule_leads_from_the_routing_to_grpo(routing):
    batch = ([1, 1, 0, 1, 0, 0, 0], list("aaabbcc"))
    full, half, none = (route(*batch, routing=routing, coefficient=s) for s in (1.0, 0.5, 0.0))
    as_it_is = route(*batch, routing=routing)
    assert torch.equal(full.grpo_share_B, as_it_is.grpo_share_B)
    assert torch.equal(full.sdpo_share_B, as_it_is.sdpo_share_B)
    torch.testing.assert_close(half.sdpo_share_B, as_it_is.sdpo_share_B / 2)
    torch.testing.assert_close(half.grpo_share_B, (as_it_is.grpo_share_B + 1) / 2)
    assert not none.sdpo_B.any()
    assert (none.grpo_share_B == 1).all()


def test_certain_prompts_can_be_left_out():
    batch = ([1, 1, 0, 0, 1, 0], list("aabbcc"))
    feedback = torch.tensor([False, False, True, True, False, False])
    every = route(*batch, routing="all", feedback_B=feedback)
    assert every.sdpo_B.tolist() == [True, True, True, True, False, True]
    uncertain = route(*batch, routing="all", feedback_B=feedback, skip_certain_prompts=True)
    assert uncertain.sdpo_B.tolist() == [False, False, False, False, False, True]
    assert torch.equal(uncertain.grpo_share_B, every.grpo_share_B)


# --- a routing of the user's own -------------------------------------------------------------------------------------


def own(rows):
    d_B = rows.failed_with_teacher_B * (rows.step > 3)
    return Shares(grpo_B=1 - d_B, sdpo_B=d_B)


def test_a_routing_of_one_s_own_by_module_and_function():
    name = f"{__name__}:own"
    assert not route([1, 0], "aa", routing=name, step=3).sdpo_B.any()
    assert route([1, 0], "aa", routing=name, step=4).sdpo_B.tolist() == [False, True]


def test_the_documentation_shows_the_routing_that_the_update_is_tested_with():
    root = Path(__file__).parents[2]
    shown = (root / "docs" / "algorithm.md").read_text().split("# my_module.py", 1)[1].split("```")[0]
    tested = (root / "tests" / "verl_ext" / "own_routing.py").read_text()
    assert shown.split("\n", 1)[1].strip() in tested


def returns_a_tuple(rows):
    return rows.correct_B, rows.teacher_B


def distils_everybody(rows):
    return Shares(rows.correct_B, torch.ones_like(rows.correct_B))


def negative(rows):
    return Shares(rows.correct_B - 1, rows.teacher_B)


def of_another_shape(rows):
    return Shares(rows.correct_B, rows.teacher_B[:1])


def endless(rows):
    return Shares(rows.correct_B, rows.teacher_B, rows.correct_B / 0)


def of_two_arguments(rows, options):
    return Shares(rows.correct_B, rows.teacher_B)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("returns_a_tuple", "has to return srpo_verl.functional.Shares, got tuple"),
        ("distils_everybody", "distils row 0, which has no teacher information"),
        ("negative", r"grpo_B must be finite and at least 0, got -1\.0 in row 1"),
        ("of_another_shape", r"sdpo_B must have shape \(3,\), got \(1,\)"),
        ("endless", "advantage_B"),
        ("of_two_arguments", "a function of one argument"),
        ("CONSTANT", "a function of one argument"),
        ("absent", "cannot be imported"),
    ],
)
def test_what_a_routing_of_one_s_own_may_not_do(name, message):
    with pytest.raises(ValueError, match=message):
        route([1, 0, 0], "aab", routing=f"{__name__}:{name}")


CONSTANT = 3


@pytest.mark.parametrize("name", ["no_such_module_anywhere:f", "torch.no_such:f"])
def test_a_module_that_is_not_there(name):
    with pytest.raises(ValueError, match=r"cannot be imported .*PYTHONPATH"):
        route([1, 0], "aa", routing=name)


def test_every_cell_has_a_name():
    result = route([1, 1, 0, 1, 0, 0], list("aaabbc"))
    assert result.case(RoutingCase.CORRECT_WITH_TEACHER).nonzero().flatten().tolist() == [0, 1]
    assert result.case(RoutingCase.CORRECT_WITHOUT_TEACHER).nonzero().flatten().tolist() == [3]
    assert result.case(RoutingCase.FAILED_WITH_TEACHER).nonzero().flatten().tolist() == [2, 4]
    assert result.case(RoutingCase.FAILED_WITHOUT_TEACHER).nonzero().flatten().tolist() == [5]


def test_all_correct_and_all_failed_groups_go_to_grpo():
    assert route([1, 1, 1], "aaa").grpo_B.all()
    failed = route([0, 0, 0], "aaa")
    assert failed.grpo_B.all()
    assert not failed.teacher_B.any()
    assert failed.sibling_B.tolist() == [-1, -1, -1]


def test_group_of_one_has_no_sibling():
    assert route([1, 0], ["a", "b"]).sibling_B.tolist() == [-1, -1]


def test_threshold_is_inclusive_and_configurable():
    assert route([0.5, 0.49], "aa").correct_B.tolist() == [True, False]
    assert route([0.5, 0.49], "aa", success_threshold=0.4).correct_B.tolist() == [True, True]
    assert route([0.99, 1.0], "aa", success_threshold=1.0).correct_B.tolist() == [False, True]


def test_feedback_is_teacher_information_without_a_sibling():
    result = route([0, 0, 1], ["a", "a", "b"], feedback_B=torch.tensor([True, False, True]))
    assert result.sibling_B.tolist() == [-1, -1, -1]
    assert result.teacher_B.tolist() == [True, False, True]
    assert result.sdpo_B.tolist() == [True, False, False]
    assert route([0, 0, 1], list("aab"), feedback_B=torch.tensor([True, False, True]), routing="all").sdpo_B[2]


def test_select_first_follows_the_order_of_an_interleaved_batch():
    result = route([0, 0, 1, 1, 1, 1], ["a", "b", "b", "a", "b", "a"])
    assert result.sibling_B.tolist() == [3, 2, 4, 5, 2, 3]


def test_select_shortest_prefers_length_then_order():
    lengths = torch.tensor([9, 5, 3, 3, 7])
    result = route([0, 1, 1, 1, 0], "aaaaa", select="shortest", lengths_B=lengths)
    assert result.sibling_B.tolist() == [2, 2, 3, 2, 2]


def test_select_random_is_uniform_over_the_others_and_repeatable():
    rewards, groups = [1, 1, 1, 0] * 2000, np.repeat(np.arange(2000), 4)
    draw = [
        route(rewards, groups, select="random", generator=torch.Generator().manual_seed(7)).sibling_B for _ in range(2)
    ]
    assert torch.equal(draw[0], draw[1])
    offset = (draw[0] % 4).view(2000, 4)
    # Standard deviation of a share over 2000 draws is 0.011: 0.05 is beyond four of them.
    for member, others in ((0, (1, 2)), (1, (0, 2)), (2, (0, 1)), (3, (0, 1, 2))):
        shares = torch.bincount(offset[:, member], minlength=4) / 2000
        assert shares[list(others)].sum() == 1.0
        torch.testing.assert_close(
            shares[list(others)], torch.full((len(others),), 1 / len(others)), atol=0.05, rtol=0
        )


def test_group_ids_may_be_strings_arrays_tensors_or_tuples():
    rewards = [0, 1, 0, 1]
    kinds = [
        ["u1", "u2", "u1", "u2"],
        np.array(["u1", "u2", "u1", "u2"], dtype=object),
        np.array(["u1", "u2", "u1", "u2"]),
        torch.tensor([40, -3, 40, -3]),
        [("d", 1), ("d", 2), ("d", 1), ("d", 2)],
    ]
    for groups in kinds:
        assert route(rewards, groups).sibling_B.tolist() == [-1, 3, -1, 1]


def test_empty_batch():
    for select in SELECTIONS:
        result = route([], [], select=select, lengths_B=torch.tensor([]))
        for field in dataclasses.fields(result):
            assert getattr(result, field.name).shape == (0,)


def test_result_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        route([0], "a").sdpo_B = torch.tensor([True])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards_B": torch.tensor([0.0, float("nan")])}, "nan at index 1"),
        ({"rewards_B": torch.tensor([float("inf"), 0.0])}, "inf at index 0"),
        ({"rewards_B": torch.zeros(2, 1)}, r"\(2, 1\)"),
        ({"group_ids": ["a"]}, "each of 2 rewards, got 1"),
        ({"group_ids": torch.zeros(2, 2)}, r"\(2, 2\)"),
        ({"routing": "srpo"}, "got 'srpo'"),
        ({"routing": "srpo:"}, "got 'srpo:'"),
        ({"coefficient": 1.5}, "got 1.5"),
        ({"coefficient": -0.5}, "got -0.5"),
        ({"select": "best"}, "got 'best'"),
        ({"select": "shortest"}, "needs lengths_B"),
        ({"select": "shortest", "lengths_B": torch.ones(3)}, r"\(3,\)"),
        ({"feedback_B": torch.tensor([True])}, r"\(1,\)"),
        ({"feedback_B": torch.tensor([1.0, 0.0])}, "float32"),
    ],
)
def test_errors_name_the_value(change, message):
    arguments = {"rewards_B": torch.tensor([0.0, 1.0]), "group_ids": ["a", "a"], **change}
    with pytest.raises(ValueError, match=message):
        route_samples(**arguments)


@settings(max_examples=150)
@given(
    samples=st.lists(st.tuples(st.sampled_from([0.0, 0.3, 0.5, 1.0]), st.integers(0, 3), st.booleans()), max_size=20),
    routing=st.sampled_from(sorted(ROUTINGS)),
    select=st.sampled_from(SELECTIONS),
    seed=st.integers(0, 99),
)
def test_properties(samples, routing, select, seed):
    rewards, groups, feedback = [s[0] for s in samples], [s[1] for s in samples], [s[2] for s in samples]
    lengths = torch.randint(1, 4, (len(samples),), generator=torch.Generator().manual_seed(seed))
    result = route(
        rewards,
        groups,
        feedback_B=torch.tensor(feedback, dtype=torch.bool),
        select=select,
        routing=routing,
        generator=torch.Generator().manual_seed(seed),
        lengths_B=lengths,
    )
    cells = torch.stack([result.case(case) for case in RoutingCase])
    assert torch.equal(cells.sum(dim=0), torch.ones(len(samples), dtype=torch.int64))
    if routing in PARTITIONS:
        assert torch.equal(result.sdpo_B, ~result.grpo_B)
    elif routing not in ("advantage_mix", "handover", "keep_negative", "fixed_negative"):
        assert not (result.sdpo_B & result.grpo_B).any()

    for i, sibling in enumerate(result.sibling_B.tolist()):
        others = [j for j in range(len(samples)) if j != i and groups[j] == groups[i] and rewards[j] >= 0.5]
        if not others:
            assert sibling == -1
        elif select == "first":
            assert sibling == others[0]
        elif select == "shortest":
            assert sibling == min(others, key=lambda j: (int(lengths[j]), j))
        else:
            assert sibling in others
        teacher = int(bool(others) or feedback[i])
        assert bool(result.teacher_B[i]) == bool(teacher)
        group = [float(r >= 0.5) for r, g in zip(rewards, groups, strict=True) if g == groups[i]]
        expected = reference_shares(routing, int(rewards[i] >= 0.5), teacher, sum(group) / len(group))
        assert (float(result.grpo_share_B[i]), float(result.sdpo_share_B[i])) == pytest.approx(expected, abs=1e-7)


def test_choose_siblings_needs_no_rewards():
    correct_B = torch.tensor([True, False, True])
    assert choose_siblings(correct_B, group_indices("aaa", 3), select="first").tolist() == [2, 0, 0]
