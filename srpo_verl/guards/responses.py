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
    responses: Sequence[Any], verdicts: Sequence[Mapping[str, Any]], max_tokens: int
) -> dict[str, float]:
    """Repetition, the length limit, and where the verifier gives `acc` or `format_ok` for every row, their means.

    veRL's `response_length/clip_ratio` is the share of responses as long as the longest of the step.

    Args:
        responses: token ids of each row, as lists or tensors.
        verdicts: the verifier's extra information on each row.
        max_tokens: limit of a response.
    """
    metrics = {
        "srpo/response_compression": compression([_plain(response) for response in responses]),
        "srpo/frac_at_length_limit": sum(len(response) >= max_tokens for response in responses) / len(responses),
    }
    for name, key in (("srpo/accuracy", "acc"), ("srpo/frac_format_ok", "format_ok")):
        values = [verdict.get(key) for verdict in verdicts]
        numbers = [float(value) for value in values if isinstance(value, bool | int | float)]
        metrics[name] = sum(numbers) / len(numbers) if numbers and len(numbers) == len(values) else None
    return {name: value for name, value in metrics.items() if value is not None}


def _plain(response: Any) -> list[int]:
    return response.tolist() if hasattr(response, "tolist") else list(response)
