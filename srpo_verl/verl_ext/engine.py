"""FSDP engines that use the logits before they are gone: student (support, divergence) and teacher (scores)."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from srpo_verl.config.schema import DistillationConfig
from srpo_verl.functional import distillation_loss, score_teacher, topk_support
from srpo_verl.verl_ext.nested import filler, jagged, response_logit_index
from srpo_verl.verl_ext.schema import (
    DIVERGENCE,
    SCORE,
    SDPO_ROW,
    SUPPORT,
    TEACHER_ENTROPY,
    TEACHER_LOG_PROBS,
    WANT_SUPPORT,
)

STUDENT_TYPE = "srpo_student"
TEACHER_TYPE = "srpo_teacher"
"""Model types under which veRL's EngineRegistry holds the two engines."""


class SrpoEngine(FSDPEngineWithLMHead):
    """veRL's FSDP engine with the language-model head, returning what distillation needs besides log-probs.

    A micro-batch asks for it: WANT_SUPPORT (forward only) returns the student's top-k tokens of the distilled rows;
    TEACHER_LOG_PROBS (training) returns the divergence to the teacher per token, differentiable; SCORE (forward
    only) returns teacher log-probs on the support and the full-vocabulary entropy, and nothing else.
    """

    distillation: DistillationConfig
    """Set by the worker after construction."""

    def __init__(self, model_config: Any, *args: Any, **kwargs: Any):
        # The registry chose this class by a model type of ours; veRL's module builder knows only its own.
        model_config.model_type = "language_model"
        super().__init__(model_config, *args, **kwargs)

    def prepare_model_outputs(
        self, output: Any, output_args: dict, micro_batch: TensorDict, logits_processor_func: Any
    ) -> dict:
        if tu.get_non_tensor_data(data=micro_batch, key=SCORE, default=False):
            return self._scores(output.logits, micro_batch)
        model_output = super().prepare_model_outputs(output, output_args, micro_batch, logits_processor_func)
        if tu.get_non_tensor_data(data=micro_batch, key=WANT_SUPPORT, default=False):
            model_output[SUPPORT] = self._support(output.logits, micro_batch)
        if TEACHER_LOG_PROBS in micro_batch:
            model_output[DIVERGENCE] = self._divergence(output.logits, micro_batch)
        return model_output

    def _response_logits(self, logits: torch.Tensor, batch: TensorDict, rows: torch.Tensor) -> torch.Tensor:
        """Logits that predict the response tokens of the rows, a copy of shape (N, V), not yet divided by temperature.

        A copy, because the log-prob kernel may write its gradient into the logits' own memory.
        """
        packed = tu.get_non_tensor_data(data=batch, key="use_remove_padding", default=True)
        index = response_logit_index(batch, rows, None if packed else logits.shape[1])
        return logits.reshape(-1, logits.shape[-1]).index_select(0, index)

    def _support_of(self, batch: TensorDict, rows: torch.Tensor, vocab_size: int) -> torch.Tensor:
        """The rows' support as int64 (N, K): from the batch, or all ids when the support is the full vocabulary."""
        if self.distillation.top_k is None:
            num_tokens = int(batch["responses"].offsets().diff()[rows].sum())
            return torch.arange(vocab_size, device=rows.device).expand(num_tokens, vocab_size)
        support = batch[SUPPORT].unbind()
        return torch.cat([support[row] for row in rows.tolist()]).view(-1, self.distillation.top_k).long()

    def _support(self, logits: torch.Tensor, batch: TensorDict) -> torch.Tensor:
        """SUPPORT of a forward-only micro-batch."""
        rows = batch[SDPO_ROW].nonzero().flatten()
        fields = [filler(torch.int32, logits.device)] * len(batch[SDPO_ROW])
        for row in rows:
            ids = topk_support(self._response_logits(logits, batch, row.view(1)), self.distillation.top_k)
            fields[int(row)] = ids.to(torch.int32).flatten()
        return jagged(fields)

    def _divergence(self, logits: torch.Tensor, batch: TensorDict) -> torch.Tensor:
        """DIVERGENCE of a training micro-batch."""
        lengths = batch["responses"].offsets().diff()
        rows = batch[SDPO_ROW].nonzero().flatten()
        dense_BT = torch.zeros(len(lengths), int(lengths.max()), dtype=torch.float32, device=logits.device)
        if len(rows) == 0:
            return dense_BT
        logits_NV = self._response_logits(logits, batch, rows)
        teacher = batch[TEACHER_LOG_PROBS].unbind()
        support_NK = self._support_of(batch, rows, logits_NV.shape[1])
        loss_N = distillation_loss(
            logits_NV,
            support_NK,
            torch.cat([teacher[row] for row in rows.tolist()]).view(support_NK.shape),
            alpha=self.distillation.divergence_alpha,
            tail=self.distillation.tail,
            temperature=_temperature(batch),
        )
        row_N = rows.repeat_interleave(lengths[rows])
        position_N = torch.cat([torch.arange(int(lengths[row]), device=rows.device) for row in rows.tolist()])
        return dense_BT.index_put((row_N, position_N), loss_N)

    def _scores(self, logits: torch.Tensor, batch: TensorDict) -> dict[str, torch.Tensor]:
        """TEACHER_LOG_PROBS and TEACHER_ENTROPY of a micro-batch of teacher sequences, row by row."""
        log_probs, entropies = [], []
        for row in torch.arange(len(batch["responses"]), device=logits.device):
            logits_NV = self._response_logits(logits, batch, row.view(1))
            support_NK = self._support_of(batch, row.view(1), logits_NV.shape[1])
            log_probs_NK, entropy_N = score_teacher(logits_NV, support_NK, temperature=_temperature(batch))
            log_probs.append(log_probs_NK.flatten())
            entropies.append(entropy_N)
        return {TEACHER_LOG_PROBS: jagged(log_probs), TEACHER_ENTROPY: jagged(entropies)}


class SrpoTeacherEngine(SrpoEngine):
    """The teacher's engine: sharded like the student's, forward only, without an optimizer.

    veRL's own `forward_only` engines stream their parameters from the CPU at every layer; the teacher stays where
    `param_offload` says.
    """

    def _build_optimizer(self, module: Any) -> None:
        return None

    def _build_lr_scheduler(self, optimizer: Any) -> None:
        return None


def _temperature(batch: TensorDict) -> float:
    temperature = batch["temperature"]
    if isinstance(temperature, torch.Tensor):
        raise ValueError("a temperature per sample is not supported with a teacher; set rollout.temperature")
    return float(temperature)


def register() -> None:
    """Hold both engines in veRL's registry, for every device veRL's own FSDP engine serves."""
    devices = ["cuda", "npu", "cpu"]
    for model_type, engine in ((STUDENT_TYPE, SrpoEngine), (TEACHER_TYPE, SrpoTeacherEngine)):
        if model_type not in EngineRegistry._engines:
            EngineRegistry.register(model_type=model_type, backend=["fsdp", "fsdp2"], device=devices)(engine)
