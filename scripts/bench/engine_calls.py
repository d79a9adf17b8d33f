"""The engine's own calls for one micro-batch, on meta tensors: what `scripts.count_kernels` counts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu

from scripts.bench.meter import Count, Meter
from srpo_verl.algos import compiled_passes
from srpo_verl.config.schema import DistillationConfig, KernelsConfig
from srpo_verl.verl_ext.engine import TOKENS, SrpoEngine
from srpo_verl.verl_ext.fields import (
    DIVERGENCE,
    SCORE,
    SDPO_ROW,
    SUPPORT,
    TEACHER_LOG_PROBS,
    WANT_SUPPORT,
)
from srpo_verl.verl_ext.response_tokens import ResponseTokens

ROWS = 20
PROMPT = 64
"""Tokens of a prompt; their logits are not computed."""


def _jagged(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


def _batch(meter: Meter, fields: dict[str, Any], **flags: Any) -> TensorDict:
    """A micro-batch on the device, as veRL hands it over."""
    tensors = {}
    for name, value in fields.items():
        if isinstance(value, torch.Tensor):
            tensors[name] = value if value.device.type == "meta" else meter.known(value)
            continue
        lengths = torch.tensor([len(row) for row in value])
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        packed = torch.cat(value)
        packed = packed if packed.device.type == "meta" else meter.known(packed)
        tensors[name] = torch.nested.nested_tensor_from_jagged(
            packed, meter.known(offsets), min_seqlen=int(lengths.min()), max_seqlen=int(lengths.max())
        )
    batch = TensorDict(tensors, batch_size=[len(fields["responses"])])
    tu.assign_non_tensor(batch, use_remove_padding=True, temperature=1.0, **flags)
    return batch


@dataclass(frozen=True)
class Case:
    """A micro-batch: N response tokens in 20 rows, the vocabulary, the support, the share of the rows distilled."""

    tokens: int
    vocab: int
    support: int
    share: float
    dtype: torch.dtype

    def lengths(self) -> list[int]:
        return [self.tokens // ROWS + (row < self.tokens % ROWS) for row in range(ROWS)]

    def distilled(self) -> list[bool]:
        """Spread over the batch, as routing leaves them."""
        return [int((row + 1) * self.share) > int(row * self.share) for row in range(ROWS)]


class EngineCalls:
    """The engine's calls over one micro-batch. Its logits exist beforehand and do not count as memory."""

    def __init__(self, case: Case, compile_kernels: bool = False):
        self.case = case
        self.meter = Meter()
        self.engine = object.__new__(SrpoEngine)
        self.engine.distillation = DistillationConfig(top_k=case.support, divergence_alpha=0.5, tail=True, is_clip=2.0)
        self.engine.kernels = KernelsConfig(compile=compile_kernels)

    def run(self) -> dict[str, Count]:
        """Counts by call; a call that no row needs is not there."""
        counts = {"old log-probs, entropy, support": self._measure(self._old_log_probs)}
        if any(self.case.distilled()):
            counts["teacher scores"] = self._measure(self._scores)
        forward, backward = self._update()
        return {**counts, "update, forward": forward, "update, backward": backward}

    def _measure(self, call: Callable[[], Any]) -> Count:
        self.meter.count = Count()
        call()
        return self.meter.count

    def _fused(self) -> AbstractContextManager[Any]:
        """The compiler does not run on meta tensors: what it gets counts as the one kernel that it makes of it."""
        return mock.patch.object(compiled_passes, "compiled", self.meter.fused)

    def _outputs(self, batch: TensorDict, logits_MV: torch.Tensor) -> dict[str, torch.Tensor]:
        with self._fused(), self.meter:
            length = int(sum(len(row) for row in self._inputs(self.case.lengths())))
            tokens = ResponseTokens(batch, length, selects=True)
            output = SimpleNamespace(logits=logits_MV[None])
            return self.engine.prepare_model_outputs(output, {TOKENS: tokens}, batch, None)

    def _logits(self, lengths: list[int], **options: Any) -> torch.Tensor:
        return torch.empty(sum(lengths), self.case.vocab, dtype=self.case.dtype, device="meta", **options)

    def _inputs(self, lengths: list[int]) -> list[torch.Tensor]:
        return [torch.zeros(PROMPT + length, dtype=torch.int64) for length in lengths]

    def _ids(self, length: int) -> torch.Tensor:
        return torch.arange(self.case.support, dtype=torch.int32).repeat(length)

    def _old_log_probs(self) -> None:
        lengths, distilled = self.case.lengths(), self.case.distilled()
        fields = {
            "input_ids": self._inputs(lengths),
            "responses": [torch.zeros(length, dtype=torch.int64) for length in lengths],
            SDPO_ROW: torch.tensor(distilled),
        }
        wanted = {WANT_SUPPORT: True} if any(distilled) else {}
        batch = _batch(self.meter, fields, calculate_entropy=True, **wanted)
        with torch.no_grad():
            self._outputs(batch, self._logits(lengths))

    def _scores(self) -> None:
        lengths = [length for length, here in zip(self.case.lengths(), self.case.distilled(), strict=True) if here]
        fields = {
            "input_ids": self._inputs(lengths),
            "responses": [torch.zeros(length, dtype=torch.int64) for length in lengths],
            SUPPORT: [self._ids(length) for length in lengths],
        }
        batch = _batch(self.meter, fields, **{SCORE: True})
        with torch.no_grad():
            self._outputs(batch, self._logits(lengths))

    def _update(self) -> tuple[Count, Count]:
        lengths, distilled = self.case.lengths(), self.case.distilled()
        filler = torch.zeros(1, dtype=torch.int32)
        rows = list(zip(lengths, distilled, strict=True))
        fields: dict[str, Any] = {
            "input_ids": self._inputs(lengths),
            "responses": [torch.zeros(length, dtype=torch.int64) for length in lengths],
            SDPO_ROW: torch.tensor(distilled),
        }
        if any(distilled):
            fields[SUPPORT] = [self._ids(length) if here else filler for length, here in rows]
            fields[TEACHER_LOG_PROBS] = [torch.full((len(ids),), -6.0) for ids in fields[SUPPORT]]
        batch = _batch(self.meter, fields)
        source = self._logits(lengths, requires_grad=True)
        logits_MV = source.view_as(source)  # what a layer made: the gradient may take its memory
        self.meter.count = Count()
        outputs = self._outputs(batch, logits_MV)
        forward = self.meter.count
        # Rows of the policy loss have a gradient of their log-probs, distilled ones of their divergence.
        policy = torch.cat([torch.full((PROMPT + length,), 0.0 if here else 1.0) for length, here in rows])
        grads = [self.meter.known(policy)]
        losses = [outputs["log_probs"].values()]
        if DIVERGENCE in outputs:
            mask = torch.zeros(ROWS, max(lengths))
            for row, (length, here) in enumerate(rows):
                mask[row, :length] = float(here)
            grads.append(self.meter.known(mask))
            losses.append(outputs[DIVERGENCE])
        del outputs
        self.meter.count = Count()
        with self._fused(), self.meter:
            torch.autograd.grad(losses, logits_MV, grads)
        return forward, self.meter.count
