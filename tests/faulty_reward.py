"""Reward functions with faults that appear during training, not in the check before it."""

import time


def _share_of_digits(solution_str: str) -> float:
    return sum(character.isdigit() for character in solution_str) / max(len(solution_str), 1)


def _is_training(extra_info: dict | None) -> bool:
    return bool(extra_info) and extra_info.get("split") == "train"


def raises(data_source, solution_str, ground_truth, extra_info=None):
    """As a parser does at what it did not expect."""
    if _is_training(extra_info):
        raise KeyError("answer")
    return _share_of_digits(solution_str)


def hangs(data_source, solution_str, ground_truth, extra_info=None):
    """As a sandbox does that does not answer."""
    if _is_training(extra_info):
        time.sleep(100_000)
    return _share_of_digits(solution_str)


def not_a_number(data_source, solution_str, ground_truth, extra_info=None):
    """As a mean over nothing."""
    return float("nan") if _is_training(extra_info) else _share_of_digits(solution_str)


def text(data_source, solution_str, ground_truth, extra_info=None):
    """As a judge that says more than a number."""
    return "0.5, well done" if _is_training(extra_info) else _share_of_digits(solution_str)
