"""Attention over a sequence that is cut over the ranks of veRL's Ulysses group, in plain PyTorch.

Stands where veRL puts two all-to-alls around flash-attention, which needs a GPU. Every rank gathers keys, values and
positions and computes its own queries' outputs: the same numbers by another exchange. Name this module in
`model.external_lib` and `plain_ulysses` as the attention implementation.
"""

import torch
import torch.distributed as dist
from transformers import AttentionInterface, AttentionMaskInterface
from verl.utils.ulysses import get_ulysses_sequence_parallel_group, get_ulysses_sequence_parallel_rank


class GatherSequence(torch.autograd.Function):
    """(B, H, S/n, D) -> (B, H, S, D). Backward adds up what all ranks made of this rank's slice."""

    @staticmethod
    def forward(ctx, local, group):
        ctx.group, ctx.size = group, local.shape[2]
        parts = [torch.empty_like(local) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, local.contiguous(), group=group)
        return torch.cat(parts, dim=2)

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.contiguous()
        dist.all_reduce(gradient, group=ctx.group)
        return gradient.split(ctx.size, dim=2)[dist.get_rank(ctx.group)], None


def plain_ulysses(module, query, key, value, attention_mask, position_ids=None, scaling=None, **kwargs):
    group, first = get_ulysses_sequence_parallel_group(), 0
    if group is not None:
        first = get_ulysses_sequence_parallel_rank() * query.shape[2]
        key, value = GatherSequence.apply(key, group), GatherSequence.apply(value, group)
        parts = [torch.empty_like(position_ids) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, position_ids.contiguous(), group=group)
        position_ids = torch.cat(parts, dim=1)
    document = (position_ids[0] == 0).cumsum(0)
    slot = torch.arange(len(document))
    allowed = (document[:, None] == document[None]) & (slot[:, None] >= slot[None])
    allowed = allowed[first : first + query.shape[2]]
    repeats = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(repeats, dim=1).transpose(2, 3) * scaling
    weights = torch.softmax(scores.masked_fill(~allowed, float("-inf")), dim=-1)
    return (weights @ value.repeat_interleave(repeats, dim=1)).transpose(1, 2).contiguous(), None


AttentionInterface.register("plain_ulysses", plain_ulysses)
AttentionMaskInterface.register("plain_ulysses", lambda *args, **kwargs: None)
