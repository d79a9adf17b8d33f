"""The rule of the four science benchmarks."""

import pytest

from srpo_verl.rewards import compute_score, validate_ground_truth


def score(response, gold="B"):
    return compute_score("sciknoweval", response, gold)


@pytest.mark.parametrize(
    "response",
    [
        "<answer>B</answer>",
        "<answer>\nB\n</answer>",
        "<reasoning>\n<answer>A</answer>\n</reasoning>\n<answer>\n\tB </answer>",
        "<answer>B",
        "<answer>B</answer> and more, A",
        "B",
        " B\n",
        "B</answer>",
    ],
)
def test_right(response):
    result = score(response)
    assert result["score"] == result["acc"] == 1.0
    assert result["pred"] == "B"
    assert result["feedback"] == ""


@pytest.mark.parametrize(
    "response",
    [
        "",
        "<answer></answer>",
        "<answer>b</answer>",
        "<answer>B.</answer>",
        "<answer>(B)</answer>",
        "<answer>B: two</answer>",
        "<answer>A</answer>",
        "<answer>B</answer><answer>A</answer>",
        "<answer>B</answer><answer>",
        "<Answer>B</Answer>",
        "The answer is B",
        "A B",
        "\N{FULLWIDTH LATIN CAPITAL LETTER B}",
    ],
)
def test_wrong(response):
    result = score(response)
    assert result["score"] == result["acc"] == 0.0
    assert result["feedback"]


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("<answer>B</answer>", True),
        ("reasoning <answer>\n A\t</answer>\n", True),
        ("<answer>x</answer><answer>D</answer>", True),
        ("<answer>B</answer>\n\n", False),
        ("<answer>B</answer> ", False),
        ("<answer>B</answer>.", False),
        ("<answer>E</answer>", False),
        ("<answer>b</answer>", False),
        ("<answer>AB</answer>", False),
        ("<answer></answer>", False),
        ("<answer>B", False),
        ("B</answer>", False),
        ("B", False),
        ("", False),
    ],
)
def test_format_is_judged_apart_from_the_answer(response, expected):
    assert score(response)["format_ok"] is expected


def test_a_wrong_format_costs_nothing():
    assert score("B")["score"] == score("<answer>B</answer>")["score"] == 1.0


@pytest.mark.parametrize("gold", ["", None, 2, ["B"]])
def test_a_gold_answer_that_is_no_letter_scores_0(gold):
    assert score("<answer></answer>", gold)["score"] == 0.0
    assert score("", gold)["score"] == 0.0


def test_validation():
    validate_ground_truth("sciknoweval/physics", "D")
    for gold in ["E", "a", "", "A ", None, 1, ["A"]]:
        with pytest.raises(ValueError, match="A, B, C, D"):
            validate_ground_truth("sciknoweval", gold)
