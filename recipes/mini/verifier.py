"""veRL's reward function of the mini suite: 1 where the final answer is right, else 0.

This file imports nothing of the suite: veRL's reward workers load it by path.
"""

import re

from srpo_verl.rewards import compute_score as benchmark_score

FINAL = "#"
"""Starts the final answer of every task but the tool calls."""

_ANSWERS = {
    "mini/sums3": re.compile(r"\d"),
    "mini/sums4": re.compile(r"\d"),
    "mini/chain_sum": re.compile(r"-?\d+"),
    "mini/rewriting": re.compile(r"([ABab])*"),
}
"""Form of the answer by data source."""
TOOL_CALLS = "mini/desk"
TEST = "/test"
"""Ends the data source of test questions, whose accuracy veRL then logs by itself."""


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: dict | None = None) -> dict:
    """Score a response of any task of the suite.

    What follows the last `#` is the answer, up to the end of the response; tool calls are scored as the Tool Use
    benchmark's are. Returns score and acc (0.0 or 1.0), pred and format_ok. Never raises on any response.

    Raises:
        ValueError: a data source that is not of the suite.
    """
    data_source = data_source.removesuffix(TEST)
    if data_source == TOOL_CALLS:
        return benchmark_score("tooluse", solution_str, ground_truth)
    if data_source not in _ANSWERS:
        raise ValueError(f"data_source={data_source!r} is not of the mini suite: {', '.join([*_ANSWERS, TOOL_CALLS])}")
    _, found, answer = solution_str.rpartition(FINAL)
    format_ok = bool(found) and _ANSWERS[data_source].fullmatch(answer) is not None
    acc = float(format_ok and answer == ground_truth)
    return {"score": acc, "acc": acc, "pred": answer if format_ok else "", "format_ok": format_ok}
