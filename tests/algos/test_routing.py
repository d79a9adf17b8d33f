"""Equation (1): the decision table, the choice of the sibling, and properties over random batches."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from srpo_verl.algos.routing import ROUTINGS, SELECTIONS, RoutingCase, choose_siblings, group_indices
from srpo_verl.functional import route_samples

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
    wanted = {"all": True, "correct_only": correct == 1, "failed_only": correct == 0}[routing]
    return bool(teacher and wanted), False


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
    expected = [reference_routes(routing, c, m) for c, m in cells]
    assert list(zip(result.sdpo_B.tolist(), result.grpo_B.tolist(), strict=True)) == expected


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


@settings(max_examples=150, deadline=None, derandomize=True)
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
    elif routing != "advantage_mix":
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
        expected = reference_routes(routing, int(rewards[i] >= 0.5), teacher)
        assert (bool(result.sdpo_B[i]), bool(result.grpo_B[i])) == expected


def test_choose_siblings_needs_no_rewards():
    correct_B = torch.tensor([True, False, True])
    assert choose_siblings(correct_B, group_indices("aaa", 3), select="first").tolist() == [2, 0, 0]
