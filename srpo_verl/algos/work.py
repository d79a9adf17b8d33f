"""Which tokens a fused pass visits, in what order and in which pieces: known to the host before it starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from srpo_verl.algos.checks import Findings
from srpo_verl.algos.passes import Passes, Rooms
from srpo_verl.algos.rows import RowIndex, cut, token_chunks


@dataclass(frozen=True)
class Work:
    """N tokens of logits of M rows: first those without a divergence, then those with one, each in their order.

    Per-token values are in this order (W places); rows of the logits need not be.
    """

    tokens_W: torch.Tensor
    """The token at every place; on the host, as `rows_W`."""
    rows_W: torch.Tensor
    """The row of the logits that predicts it."""
    num_plain: int
    """Places without a divergence; the others are the distilled ones."""
    device: torch.device

    @property
    def num_distilled(self) -> int:
        return len(self.rows_W) - self.num_plain

    @property
    def is_ordered(self) -> bool:
        """Whether the places are the tokens."""
        return self.num_plain in (0, len(self.rows_W))

    def plain(self, size: int) -> Iterator[tuple[slice, RowIndex]]:
        """(places, rows) of the tokens without a divergence, in pieces."""
        return cut(self.rows_W[: self.num_plain], size, self.device)

    def blocks(self, size: int) -> Iterator[slice]:
        """The distilled places, in blocks whose supports are worked on together."""
        for block in token_chunks(self.num_distilled, size):
            yield slice(self.num_plain + block.start, self.num_plain + block.stop)

    def pieces(self, block: slice, size: int) -> Iterator[tuple[slice, RowIndex]]:
        """(places within the block, rows) of a block, in pieces."""
        return cut(self.rows_W[block], size, self.device)

    def on_device(self, host: torch.Tensor) -> torch.Tensor:
        return host.to(self.device, non_blocking=True)

    def to_tokens(self, values_W: torch.Tensor) -> torch.Tensor:
        """From places to tokens."""
        if self.is_ordered:
            return values_W
        return torch.empty_like(values_W).index_copy_(0, self.on_device(self.tokens_W), values_W)

    def to_places(self, values_N: torch.Tensor) -> torch.Tensor:
        """From tokens to places."""
        return values_N if self.is_ordered else values_N.index_select(0, self.on_device(self.tokens_W))

    def only(self, keep_K: torch.Tensor) -> Work:
        """The work of some of the places, ascending; its tokens are these places."""
        return Work(keep_K, self.rows_W[keep_K], int((keep_K < self.num_plain).sum()), self.device)


def make_work(
    rows_N: torch.Tensor, is_distilled_N: torch.Tensor | None, distilled: bool, device: torch.device
) -> Work:
    """The work on N tokens, `rows_N` and the mask on the host; without a mask all or none of them are distilled."""
    if is_distilled_N is None:
        return Work(torch.arange(len(rows_N)), rows_N, 0 if distilled else len(rows_N), device)
    plain_P, distilled_S = (~is_distilled_N).nonzero().flatten(), is_distilled_N.nonzero().flatten()
    tokens_W = torch.cat([plain_P, distilled_S])
    return Work(tokens_W, rows_N[tokens_W], len(plain_P), device)


@dataclass(frozen=True)
class Plan:
    """What forward and backward have to agree about."""

    work: Work
    passes: Passes
    findings: Findings
    """What is wrong with the ids; the logits' and the teacher's are added."""
    names: tuple[str, str]
    """Of the parameters with the logits and the teacher's log-probabilities, for errors."""
    alpha: float
    has_tail: bool
    needs_rest: bool
    """Whether the tokens off the support are visited: for the tail, or for the normaliser of the log-probabilities."""
    temperature: float
    with_entropy: bool
    chunk_rows: int
    """Tokens whose logits are worked on together."""
    block_rows: int
    """Tokens whose supports are worked on together."""
    inplace_backward: bool

    def rooms(self, logits_MV: torch.Tensor) -> Rooms:
        """Scratch memory of a chunk."""
        work = self.work
        return self.passes.rooms(logits_MV, min(self.chunk_rows, max(work.num_plain, work.num_distilled)))
