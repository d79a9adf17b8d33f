"""What a step's responses say of the run: how repetitive they are, and what the verifier said besides its reward."""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

MAX_RESPONSES = 64
"""Responses of a step that are looked at, evenly spaced."""

MAX_TOKENS = 16_384
"""Last tokens of a response that are looked at: repetition is at the end."""


def compression(responses: Sequence[Sequence[int]]) -> float | None:
    """Mean ratio of a response's size to its size compressed by zlib; None without any token.

    Of token ids as 32-bit integers, so that nothing is decoded. Text that says new things has a low ratio, whose value
    depends on the vocabulary and the length; one phrase over and over has a ratio of tens to hundreds. At most 64
    responses of 16,384 tokens: below 0.1 s.

    Args:
        responses: token ids.
    """
    chosen = [response for response in responses if len(response)]
    chosen = chosen[:: -(-len(chosen) // MAX_RESPONSES)] if chosen else []
    ratios = []
    for response in chosen:
        content = array("i", response[-MAX_TOKENS:]).tobytes()
        ratios.append(len(content) / len(zlib.compress(content, 1)))
    return sum(ratios) / len(ratios) if ratios else None


def response_metrics(
    responses: Sequence[Any], verdicts: Sequence[Mapping[str, Any]], successes: Sequence[bool], max_tokens: int
) -> dict[str, float]:
    """Repetition, the length limit, and where the verifier gives `acc` or `format_ok` for every row, their means.

    With `acc` for every row also the share of the successes whose `acc` is 0: wrong, and shown as solutions.

    veRL's `response_length/clip_ratio` is the share of responses as long as the longest of the step.

    Args:
        responses: token ids of each row, as lists or tensors.
        verdicts: the verifier's extra information on each row.
        successes: whether each row's reward reaches the threshold.
        max_tokens: limit of a response.
    """
    metrics = {
        "srpo/response_compression": compression([_plain(response) for response in responses]),
        "srpo/frac_at_length_limit": sum(len(response) >= max_tokens for response in responses) / len(responses),
    }
    for name, key in (("srpo/accuracy", "acc"), ("srpo/frac_format_ok", "format_ok")):
        metrics[name] = _mean(_numbers(verdicts, key))
    accuracies = _numbers(verdicts, "acc")
    metrics["srpo/frac_false_success"] = _mean(
        [accuracy == 0 for accuracy, success in zip(accuracies, successes, strict=False) if success]
    )
    return {name: value for name, value in metrics.items() if value is not None}


def _numbers(verdicts: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    """Of every row, or nothing."""
    values = [verdict.get(key) for verdict in verdicts]
    numbers = [float(value) for value in values if isinstance(value, bool | int | float)]
    return numbers if len(numbers) == len(values) else []


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _plain(response: Any) -> list[int]:
    return response.tolist() if hasattr(response, "tolist") else list(response)
