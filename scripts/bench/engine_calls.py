"""The engine's own calls for one micro-batch: what `scripts.count_kernels` counts and `bench_engine_calls` times."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Generic, Protocol, TypeVar
from unittest import mock

import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu

from srpo_verl.algos import compiled_passes
from srpo_verl.config.schema import DistillationConfig, KernelsConfig
from srpo_verl.verl_ext.engine import TOKENS, SrpoEngine
from srpo_verl.verl_ext.fields import DIVERGENCE, SCORE, SDPO_ROW, SUPPORT, TEACHER_LOG_PROBS, WANT_SUPPORT
from srpo_verl.verl_ext.response_tokens import ResponseTokens

ROWS = 20
PROMPT = 64
"""Tokens of a prompt; their logits are not computed."""

Found = TypeVar("Found")


class Observer(AbstractContextManager, Protocol[Found]):
    """`gpu_meter.Meter`, which counts on meta tensors, or `gpu_stopwatch.Stopwatch`, which times on a device."""

    count: Found

    def fused(self, function: Callable[..., None]) -> Callable[..., None]: ...

    def known(self, tensor: torch.Tensor) -> torch.Tensor: ...

    def logits(self, num_tokens: int, vocab: int, dtype: torch.dtype) -> torch.Tensor: ...


@dataclass(frozen=True)
class Case:
    """A micro-batch: N response tokens in 20 rows, the vocabulary, the support, the share of the rows distilled."""

    tokens: int
    vocab: int
    support: int
    share: float
    dtype: torch.dtype

    def rows(self) -> list[tuple[int, bool]]:
        """(tokens, whether it is distilled) of every row; these are spread over the batch, as routing leaves them."""
        return [
            (
                self.tokens // ROWS + (row < self.tokens % ROWS),
                int((row + 1) * self.share) > int(row * self.share),
            )
            for row in range(ROWS)
        ]


class EngineCalls(Generic[Found]):
    """The engine's calls over one micro-batch. Its logits exist beforehand and do not count as memory.

    `meter`: counts them on meta tensors, or takes their time on a device.
    """

    def __init__(self, case: Case, meter: Observer[Found], compile_kernels: bool = False):
        self.case, self.rows = case, case.rows()
        self.meter = meter
        self.routes = {SDPO_ROW: torch.tensor([here for _, here in self.rows])}
        self.engine = object.__new__(SrpoEngine)
        self.engine.distillation = DistillationConfig(top_k=case.support, divergence_alpha=0.5, tail=True, is_clip=2.0)
        self.engine.kernels = KernelsConfig(compile=compile_kernels)

    def run(self) -> dict[str, Found]:
        """By call, what was found; a call that no row needs is not there."""
        distilled = [(length, True) for length, here in self.rows if here]
        support = {SUPPORT: [self._ids(length) for length, _ in distilled]}
        wanted = {WANT_SUPPORT: True} if distilled else {}
        old = self._forward(self.rows, self.routes, calculate_entropy=True, **wanted)
        teacher = {"teacher scores": self._forward(distilled, support, **{SCORE: True})} if distilled else {}
        forward, backward = self._update()
        return {
            "old log-probs, entropy, support": old,
            **teacher,
            "update, forward": forward,
            "update, backward": backward,
        }

    def _ids(self, length: int) -> torch.Tensor:
        return torch.arange(self.case.support, dtype=torch.int32).repeat(length)

    def _logits(self, rows: list[tuple[int, bool]]) -> torch.Tensor:
        return self.meter.logits(sum(length for length, _ in rows), self.case.vocab, self.case.dtype)

    def _forward(self, rows: list[tuple[int, bool]], fields: dict[str, Any], **flags: Any) -> Found:
        logits_MV = self._logits(rows)
        with torch.no_grad():
            return self._outputs(rows, fields, logits_MV, **flags)[0]

    def _outputs(
        self, rows: list[tuple[int, bool]], fields: dict[str, Any], logits_MV: torch.Tensor, **flags: Any
    ) -> tuple[Found, dict[str, torch.Tensor]]:
        """What the engine makes of the logits, as veRL calls it."""
        fields = {
            "input_ids": [torch.zeros(PROMPT + length, dtype=torch.int64) for length, _ in rows],
            "responses": [torch.zeros(length, dtype=torch.int64) for length, _ in rows],
            **fields,
        }
        batch = TensorDict({name: self._on_device(value) for name, value in fields.items()}, batch_size=[len(rows)])
        tu.assign_non_tensor(batch, use_remove_padding=True, temperature=1.0, **flags)
        length = sum(PROMPT + length for length, _ in rows)
        self.meter.count = type(self.meter.count)()
        with self._fused(), self.meter:
            tokens = ResponseTokens(batch, length, selects=True)
            outputs = self.engine.prepare_model_outputs(
                SimpleNamespace(logits=logits_MV[None]), {TOKENS: tokens}, batch, None
            )
        return self.meter.count, outputs

    def _on_device(self, value: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
        """A tensor, or rows as a jagged one, whose values the host knows."""
        if isinstance(value, torch.Tensor):
            return self.meter.known(value)
        lengths = torch.tensor([0] + [len(row) for row in value])
        return torch.nested.nested_tensor_from_jagged(
            self.meter.known(torch.cat(value)),
            self.meter.known(lengths.cumsum(0)),
            min_seqlen=int(lengths[1:].min()),
            max_seqlen=int(lengths.max()),
        )

    def _fused(self) -> AbstractContextManager[Callable[..., Any]]:
        """The compiler does not run on meta tensors: what it gets counts there as the kernel that it makes of it."""
        return mock.patch.object(compiled_passes, "compiled", self.meter.fused)

    def _update(self) -> tuple[Found, Found]:
        """Forward and backward."""
        fields: dict[str, Any] = dict(self.routes)
        if any(here for _, here in self.rows):
            filler = torch.zeros(1, dtype=torch.int32)
            fields[SUPPORT] = [self._ids(length) if here else filler for length, here in self.rows]
            fields[TEACHER_LOG_PROBS] = [torch.full((len(ids),), -6.0) for ids in fields[SUPPORT]]
        source = self._logits(self.rows).requires_grad_()
        logits_MV = source.view_as(source)  # what a layer made: the gradient may take its memory
        forward, outputs = self._outputs(self.rows, fields, logits_MV)
        # Rows of the policy loss have a gradient of their log-probs, distilled ones of their divergence.
        policy = torch.cat([torch.full((PROMPT + length,), 0.0 if here else 1.0) for length, here in self.rows])
        losses, grads = [outputs["log_probs"].values()], [self.meter.known(policy)]
        if DIVERGENCE in outputs:
            mask = torch.zeros(ROWS, max(length for length, _ in self.rows))
            for row, (length, here) in enumerate(self.rows):
                mask[row, :length] = float(here)
            losses.append(outputs[DIVERGENCE])
            grads.append(self.meter.known(mask))
        del outputs
        self.meter.count = type(self.meter.count)()
        with self._fused(), self.meter:
            torch.autograd.grad(losses, logits_MV, grads)
        return forward, self.meter.count
