"""SciKnowEval: four options, the letter of the right one inside ``<answer>`` tags."""

from __future__ import annotations

from typing import Any

from srpo_verl.rewards.result import make_result, shorten

OPEN, CLOSE = "<answer>", "</answer>"
LETTERS = ("A", "B", "C", "D")

FEEDBACK_WRONG = "The selected option is not correct."
FEEDBACK_FORMAT = (
    "The response must end with the letter of one option, and nothing else, between <answer> and </answer> tags."
)


def extract_answer(response: str) -> str:
    """The text after the last ``<answer>``, up to the next ``</answer>`` if there is one, without outer white space.

    A response without an opening tag counts from its beginning, so a bare letter is an answer.
    """
    return response.rpartition(OPEN)[2].partition(CLOSE)[0].strip()


def has_right_format(response: str) -> bool:
    """The response ends (one newline may follow) with a letter in tags; white space is allowed inside them."""
    body = response[:-1] if response.endswith("\n") else response
    start = body.rfind(OPEN)
    if start < 0 or not body.endswith(CLOSE):
        return False
    return body[start + len(OPEN) : -len(CLOSE)].strip() in LETTERS


def compute_score(response: str, ground_truth: Any) -> dict[str, Any]:
    """1.0 where the extracted text is exactly the gold letter: neither "b" nor "B." nor "(B)" is "B"."""
    answer = extract_answer(response)
    format_ok = has_right_format(response)
    return make_result(
        correct=bool(answer) and answer == ground_truth,
        pred=answer,
        format_ok=format_ok,
        feedback=FEEDBACK_WRONG if format_ok else FEEDBACK_FORMAT,
    )


def validate_ground_truth(ground_truth: Any) -> None:
    """Raise ValueError unless the gold answer is one of the four letters."""
    if not isinstance(ground_truth, str) or ground_truth not in LETTERS:
        raise ValueError(f"the answer must be one of {', '.join(LETTERS)}, got {shorten(ground_truth)}")
