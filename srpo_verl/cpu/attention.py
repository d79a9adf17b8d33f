"""Attention over packed rows on a CPU, registered with transformers as `packed_sdpa`.

veRL packs the rows of a micro-batch into one sequence. flash-attention, which keeps them apart on GPUs, does not run
on a CPU, and transformers' `sdpa` masks: every token meets every other one of the micro-batch. Here rows of similar
length are laid side by side for the attention alone; all other layers see no padding.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PACKED_ATTENTION = "packed_sdpa"
SPREAD = 1.5
"""Rows that are up to so much longer than the shortest one are laid beside it."""


def register() -> None:
    """Make the name known to transformers in this process."""
    AttentionInterface.register(PACKED_ATTENTION, packed_attention)
    AttentionMaskInterface.register(PACKED_ATTENTION, _mask)


def _mask(*, kv_length: int, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor | None:
    """As for `sdpa` where rows are padded or follow what is in a cache; packed ones need none."""
    queries = kwargs["q_length"] if "q_length" in kwargs else len(kwargs["cache_position"])
    if attention_mask is None and queries == kv_length:
        return None
    return sdpa_mask(kv_length=kv_length, attention_mask=attention_mask, **kwargs)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each row of a packed sequence; arguments and result are those of transformers' `sdpa`.

    Args:
        query: (1, H, N, D); key and value of as many or fewer heads.
        attention_mask: where there is one, rows are padded, and this is `sdpa`.
        position_ids: (1, N); 0 where a row begins.
        sliding_window: how many tokens a token sees, itself included.

    Raises:
        ValueError: the model does not hand its attention the positions, by which rows are told apart.
    """
    if attention_mask is not None or len(query) != 1 or key.shape[2] != query.shape[2]:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    if position_ids is None or position_ids.dim() != 2:
        raise ValueError(
            f"attn_implementation={PACKED_ATTENTION}: {type(module).__name__} does not say where packed rows begin; "
            "set actor_rollout_ref.model.override_config.attn_implementation=sdpa"
        )
    length = query.shape[2]
    # (N, H, D), as the projections made them.
    rows = [tensor[0].transpose(0, 1).reshape(length, -1) for tensor in (query, key, value)]
    answers, sources, targets, slots_before = [], [], [], 0
    for where, slots, count, longest in _groups(position_ids[0]):
        q, k, v = (
            _Move.apply(row, where, slots, count * longest).view(count, longest, *tensor.shape[1::2]).transpose(1, 2)
            for row, tensor in zip(rows, (query, key, value), strict=True)
        )
        answer, _ = sdpa_attention_forward(module, q, k, v, _window(longest, sliding_window, query.device), **kwargs)
        answers.append(answer.reshape(count * longest, -1))
        sources.append(slots + slots_before)
        targets.append(where)
        slots_before += count * longest
    packed = _Move.apply(torch.cat(answers), torch.cat(sources), torch.cat(targets), length)
    return packed.view(1, length, query.shape[1], value.shape[3]), None


def _groups(positions_N: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor, int, int]]:
    """Rows of similar length together: (places of their tokens, slots side by side, rows, tokens of the longest)."""
    is_start_N = positions_N == 0
    is_start_N[0] = True
    starts = is_start_N.nonzero().flatten().tolist()
    ends = [*starts[1:], len(positions_N)]
    rows = sorted(zip(starts, ends, strict=True), key=lambda row: row[1] - row[0])
    groups: list[list[tuple[int, int]]] = []
    for start, end in rows:
        shortest = groups[-1][0][1] - groups[-1][0][0] if groups else 0
        if end - start > SPREAD * shortest:
            groups.append([])
        groups[-1].append((start, end))
    found = []
    for group in groups:
        longest = group[-1][1] - group[-1][0]
        where = torch.cat([torch.arange(start, end) for start, end in group])
        slots = torch.cat([torch.arange(end - start) + row * longest for row, (start, end) in enumerate(group)])
        found.append((where, slots, len(group), longest))
    return found


def _window(length: int, sliding_window: int | None, device: torch.device) -> torch.Tensor | None:
    """The mask of a sliding window, True where a token is seen; None where the window holds the longest row."""
    if sliding_window is None or length <= sliding_window:
        return None
    token = torch.arange(length, device=device)
    distance = token[:, None] - token
    return ((distance >= 0) & (distance < sliding_window))[None, None]


class _Move(torch.autograd.Function):
    """Rows of a matrix to other places of another one, which holds 0 elsewhere; no place twice.

    Indexing would do, but its gradient is summed entry by entry.
    """

    @staticmethod
    def forward(
        ctx: Any, values: torch.Tensor, sources: torch.Tensor, targets: torch.Tensor, size: int
    ) -> torch.Tensor:
        ctx.save_for_backward(sources, targets)
        ctx.size = len(values)
        return _moved(values, sources, targets, size)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        sources, targets = ctx.saved_tensors
        return _moved(gradient.contiguous(), targets, sources, ctx.size), None, None, None


def _moved(values: torch.Tensor, sources: torch.Tensor, targets: torch.Tensor, size: int) -> torch.Tensor:
    moved = values.new_zeros(size, values.shape[1])
    return moved.index_copy_(0, targets, values.index_select(0, sources))
