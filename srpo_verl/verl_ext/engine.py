"""FSDP engines that use the logits before they are gone: student (support, divergence) and teacher (scores)."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.workers.config import FSDPEngineConfig
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from srpo_verl.algos.checks import NonFiniteError
from srpo_verl.config.schema import DistillationConfig, KernelsConfig, SrpoConfig
from srpo_verl.functional import score_teacher, token_losses, topk_support
from srpo_verl.installation import STUDENT_TYPE, TEACHER_TYPE
from srpo_verl.verl_ext.fields import (
    DIVERGENCE,
    FILLER_LENGTH,
    SCORE,
    SUPPORT,
    TEACHER_ENTROPY,
    TEACHER_LOG_PROBS,
    WANT_SUPPORT,
)
from srpo_verl.verl_ext.nested import filler, jagged, like, rows_of
from srpo_verl.verl_ext.response_tokens import ResponseTokens

TOKENS = "srpo_response_tokens"
"""Where `output_args` hold the ResponseTokens of a micro-batch."""
_BACKENDS, _DEVICES = ["fsdp", "fsdp2"], ["cuda", "npu", "cpu"]
"""What both engines are registered for: as veRL's own FSDP engine, and the CPU."""


@dataclass(kw_only=True)
class SrpoEngineConfig(FSDPEngineConfig):
    """veRL's engine settings and ours: EngineRegistry hands an engine nothing else that could carry them."""

    distillation: DistillationConfig
    kernels: KernelsConfig

    @classmethod
    def extend(cls, settings: FSDPEngineConfig, srpo: SrpoConfig) -> SrpoEngineConfig:
        """The same settings of veRL, with ours."""
        stock = {f.name: getattr(settings, f.name) for f in fields(settings)}
        return cls(**stock, distillation=srpo.distillation, kernels=srpo.kernels)


@EngineRegistry.register(model_type=STUDENT_TYPE, backend=_BACKENDS, device=_DEVICES)
class SrpoEngine(FSDPEngineWithLMHead):
    """veRL's FSDP engine with the language-model head, returning what distillation needs besides log-probs.

    All quantities come from one fused pass over the logits of the response tokens (`functional.token_losses`). A
    micro-batch asks for it: WANT_SUPPORT (forward only) returns the student's top-k tokens of the distilled rows;
    TEACHER_LOG_PROBS (training) returns the divergence to the teacher per token, differentiable; SCORE (forward
    only) returns teacher log-probs on the support and the full-vocabulary entropy, and nothing else.
    """

    def __init__(self, model_config: Any, engine_config: SrpoEngineConfig, *args: Any, **kwargs: Any):
        # The registry chose this class by a model type of ours; veRL's module builder knows only its own.
        model_config.model_type = "language_model"
        super().__init__(model_config, engine_config, *args, **kwargs)
        self.distillation, self.kernels = engine_config.distillation, engine_config.kernels

    def prepare_model_inputs(self, micro_batch: TensorDict) -> tuple[dict, dict]:
        """veRL's inputs; prompts and padding are kept from the vocabulary projection where the model allows it."""
        inputs, output_args = super().prepare_model_inputs(micro_batch)
        if _is_stock(micro_batch):
            _refuse_teacher(micro_batch)
        else:
            selects = self._projects_selected_positions
            tokens = ResponseTokens(micro_batch, inputs["input_ids"].shape[1], selects=selects)
            if tokens.columns is not None:
                inputs["logits_to_keep"] = tokens.columns
            output_args[TOKENS] = tokens
        return inputs, output_args

    def prepare_model_outputs(
        self, output: Any, output_args: dict, micro_batch: TensorDict, logits_processor_func: Any
    ) -> dict:
        if TOKENS not in output_args:
            return super().prepare_model_outputs(output, output_args, micro_batch, logits_processor_func)
        tokens: ResponseTokens = output_args[TOKENS]
        logits_MV = output.logits.reshape(-1, output.logits.shape[-1])
        if tu.get_non_tensor_data(data=micro_batch, key=SCORE, default=False):
            return self._scores(logits_MV, tokens, micro_batch)
        model_output = self._token_losses(logits_MV, tokens, micro_batch)
        if tu.get_non_tensor_data(data=micro_batch, key=WANT_SUPPORT, default=False):
            model_output[SUPPORT] = self._support(logits_MV, tokens)
        return model_output

    @cached_property
    def _projects_selected_positions(self) -> bool:
        """Whether the model's forward takes `logits_to_keep`."""
        module: Any = getattr(self.module, "_fsdp_wrapped_module", self.module)
        module = module.get_base_model() if hasattr(module, "get_base_model") else module
        return "logits_to_keep" in inspect.signature(module.forward).parameters

    def _token_losses(self, logits_MV: torch.Tensor, tokens: ResponseTokens, batch: TensorDict) -> dict:
        """log_probs, entropy where asked for, and DIVERGENCE of a training micro-batch with a teacher."""
        with_entropy = tu.get_non_tensor_data(data=batch, key="calculate_entropy", default=False)
        distilled_N = support_SK = teacher_SK = None
        if TEACHER_LOG_PROBS in batch and tokens.distilled_rows:
            support_SK = tokens.local_of_distilled(self._support_of(batch, tokens, logits_MV.shape[1]))
            teacher_SK = self._of_support(batch[TEACHER_LOG_PROBS], tokens, logits_MV.shape[1])
            teacher_SK = tokens.local_of_distilled(teacher_SK)
            distilled_N = tokens.local(tokens.is_distilled_N)
        losses = token_losses(
            logits_MV,
            tokens.local(batch["responses"].values()),
            positions_N=tokens.positions,
            distilled_N=distilled_N,
            support_SK=support_SK,
            teacher_log_probs_SK=teacher_SK,
            alpha=self.distillation.divergence_alpha,
            tail=self.distillation.tail,
            temperature=_temperature(batch),
            with_entropy=with_entropy,
            # The output of the projection, which its backward does not read.
            inplace_backward=True,
            compile_kernels=self.kernels.compile,
        )
        outputs = {"log_probs": tokens.sequences(losses.log_probs_N)}
        if with_entropy:
            outputs["entropy"] = tokens.sequences(losses.entropy_N)
        if TEACHER_LOG_PROBS in batch:
            outputs[DIVERGENCE] = tokens.padded(losses.divergence_N)
        return outputs

    def _support_of(self, batch: TensorDict, tokens: ResponseTokens, vocab_size: int) -> torch.Tensor:
        """The support of the distilled rows as int64 (N, K): from the batch, or all ids for the full vocabulary."""
        if self.distillation.top_k is not None:
            return self._of_support(batch[SUPPORT], tokens, vocab_size).long()
        num_tokens = sum(tokens.lengths[row] for row in tokens.distilled_rows)
        return torch.arange(vocab_size, device=tokens.device).expand(num_tokens, vocab_size)

    def _of_support(self, field: torch.Tensor, tokens: ResponseTokens, vocab_size: int) -> torch.Tensor:
        """A field of width K, of the distilled rows: (N, K). Its other rows hold a filler."""
        k, distilled = self.distillation.top_k or vocab_size, set(tokens.distilled_rows)
        lengths = [n * k if row in distilled else FILLER_LENGTH for row, n in enumerate(tokens.lengths)]
        return rows_of(field, lengths, tokens.distilled_rows).view(-1, k)

    def _support(self, logits_MV: torch.Tensor, tokens: ResponseTokens) -> torch.Tensor:
        """SUPPORT of a forward-only micro-batch."""
        is_distilled_N = tokens.is_distilled_N
        positions = tokens.positions_of(is_distilled_N)
        ids_NK = topk_support(logits_MV, self.distillation.top_k, positions_N=positions)
        ids_NK = tokens.gather(ids_NK, is_distilled_N).to(torch.int32)
        fields = [filler(torch.int32, logits_MV.device)] * len(tokens.lengths)
        lengths = [tokens.lengths[row] for row in tokens.distilled_rows]
        for row, ids in zip(tokens.distilled_rows, ids_NK.split(lengths), strict=True):
            fields[row] = ids.flatten()
        return jagged(fields)

    def _scores(self, logits_MV: torch.Tensor, tokens: ResponseTokens, batch: TensorDict) -> dict[str, torch.Tensor]:
        """TEACHER_LOG_PROBS and TEACHER_ENTROPY of a micro-batch of teacher sequences, all of distilled rows."""
        tokens.distilled_rows = list(range(len(tokens.lengths)))
        support_NK = tokens.local(self._support_of(batch, tokens, logits_MV.shape[1]))
        try:
            log_probs_NK, entropy_N = score_teacher(
                logits_MV,
                support_NK,
                positions_N=tokens.positions,
                temperature=_temperature(batch),
                compile_kernels=self.kernels.compile,
            )
        except NonFiniteError as error:
            # The other ranks wait in a collective: this one comes along, and all of them skip the update.
            print(f"srpo_verl: the update of this step is skipped: {error}", flush=True)
            log_probs_NK = logits_MV.new_full(support_NK.shape, torch.nan, dtype=torch.float32)
            entropy_N = log_probs_NK.new_full(support_NK.shape[:1], torch.nan)
        log_probs_NK, entropy_N = tokens.gather(log_probs_NK), tokens.gather(entropy_N)
        return {
            TEACHER_LOG_PROBS: jagged([row.flatten() for row in log_probs_NK.split(tokens.lengths)]),
            TEACHER_ENTROPY: like(entropy_N, tokens.responses, tokens.lengths),
        }


@EngineRegistry.register(model_type=TEACHER_TYPE, backend=_BACKENDS, device=_DEVICES)
class SrpoTeacherEngine(SrpoEngine):
    """The teacher's engine: sharded like the student's, forward only, without an optimizer.

    veRL's own `forward_only` engines stream their parameters from the CPU at every layer; the teacher stays where
    `param_offload` says.
    """

    def _build_optimizer(self, module: Any) -> None:
        return None

    def _build_lr_scheduler(self, optimizer: Any) -> None:
        return None


def _is_stock(batch: TensorDict) -> bool:
    """Whether a micro-batch asks for what only veRL's own code computes; never with a teacher (config/check.py)."""
    flags = ("use_fused_kernels", "calculate_sum_pi_squared", "distillation_use_topk", "distillation_only")
    return (
        "responses" not in batch
        or any(tu.get_non_tensor_data(data=batch, key=flag, default=False) for flag in flags)
        or isinstance(batch["temperature"], torch.Tensor)
    )


def _refuse_teacher(batch: TensorDict) -> None:
    """What veRL's own code computes has no divergence: a teacher would silently drop out of the update."""
    asked = [name for name in (SCORE, WANT_SUPPORT) if tu.get_non_tensor_data(data=batch, key=name, default=False)]
    asked += [TEACHER_LOG_PROBS] if TEACHER_LOG_PROBS in batch else []
    if asked:
        raise RuntimeError(
            f"a micro-batch with {', '.join(asked)} would be computed by veRL's own code, which knows no "
            "teacher; this should have been refused at the start (config/check.py)"
        )


def _temperature(batch: TensorDict) -> float:
    temperature = batch["temperature"]
    if isinstance(temperature, torch.Tensor):
        raise ValueError("a temperature per sample is not supported with a teacher; set rollout.temperature")
    return float(temperature)
