"""The FSDP worker of an SRPO run: veRL's hybrid worker with a self-teacher beside the actor."""

from __future__ import annotations

import gc
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from tensordict import TensorDict
from verl.single_controller.base.decorator import Dispatch, make_nd_compute_dataproto_dispatch_fn, register
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id, get_device_name
from verl.workers.config import TrainingWorkerConfig
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker

from srpo_verl.config.schema import SrpoConfig, parse
from srpo_verl.functional import entropy_weights, pass_rate_weights
from srpo_verl.installation import STUDENT_TYPE
from srpo_verl.safe_loading import only_tensors
from srpo_verl.verl_ext.checkpoint import check_ranks, check_shards
from srpo_verl.verl_ext.engine import SrpoEngineConfig
from srpo_verl.verl_ext.fields import (
    CREDIT_SHARE,
    DISTILL,
    GROUP,
    GRPO_SHARE,
    NUM_GRPO_TOKENS,
    NUM_SDPO_TOKENS,
    PASS_RATE,
    PROMPT_WEIGHTS,
    SDPO_ROW,
    SKIP,
    TEACHER_ENTROPY,
    TEACHER_LOG_PROBS,
    WEIGHTS,
)
from srpo_verl.verl_ext.loss import SrpoLoss
from srpo_verl.verl_ext.nested import like, rows_to_tokens
from srpo_verl.verl_ext.teacher.credit import give_credit
from srpo_verl.verl_ext.teacher.files import teacher_folder
from srpo_verl.verl_ext.teacher.model import make_teacher
from srpo_verl.verl_ext.teacher.score_rows import score_rows
from srpo_verl.verl_ext.teacher.sharding import reshard
from srpo_verl.verl_ext.token_recorder import Recorded

TEACHER_TIME = "srpo/teacher_seconds"
"""Travels with the worker's metrics; the trainer logs it as timing_s/srpo_teacher."""


class SrpoTrainingWorker(TrainingWorker):
    """The actor inside the worker. Computes equation (4) once per optimizer mini-batch, over all ranks."""

    def __init__(self, config: TrainingWorkerConfig, srpo: SrpoConfig):
        # Of this worker's engine alone: the reference beside it stays veRL's own.
        settings = SrpoEngineConfig.extend(config.engine_config, srpo)
        super().__init__(replace(config, model_type=STUDENT_TYPE, engine_config=settings))
        self.srpo = srpo

    def train_batch(self, data: TensorDict) -> TensorDict:
        """One optimizer mini-batch: weights first, because they and the denominator are properties of all of it."""
        statistics: dict[str, float] = {}
        self._count_grpo_tokens(data)
        if TEACHER_ENTROPY in data:
            statistics = self._add_weights(data)
        output = super().train_batch(data)
        if output is not None:
            tu.assign_non_tensor(output, metrics={**tu.get(output, "metrics"), **statistics})
        return output

    def _count_grpo_tokens(self, data: TensorDict) -> None:
        mask = data["response_mask"]
        count = (mask.values().bool() & rows_to_tokens(data[GRPO_SHARE] > 0, mask)).sum().to(get_device_id())
        dist.all_reduce(count, group=self.engine.get_data_parallel_group())
        tu.assign_non_tensor(data, **{NUM_GRPO_TOKENS: int(count)})

    def _add_weights(self, data: TensorDict) -> dict[str, float]:
        """Add WEIGHTS and |Omega| to the mini-batch; return the statistics over Omega, equal on all ranks."""
        group = self.engine.get_data_parallel_group()
        # Before any rejection, as the denominator n is.
        mask = data["loss_mask"]
        in_omega = mask.values().bool() & rows_to_tokens(data[SDPO_ROW], mask)
        entropy, in_omega = data[TEACHER_ENTROPY].values().to(get_device_id()), in_omega.to(get_device_id())
        settings = self.srpo.weighting
        weights = entropy_weights(entropy, in_omega, beta=settings.beta, floor=settings.floor, process_group=group)
        data[WEIGHTS] = like(weights.to(mask.values().device), mask)
        if settings.pass_rate:
            rows = (data[name].to(get_device_id()) for name in (PASS_RATE, GROUP, SDPO_ROW))
            data[PROMPT_WEIGHTS] = pass_rate_weights(*rows, process_group=group).to(data[SDPO_ROW].device)

        selected, entropies = weights[in_omega].double(), entropy[in_omega].double()
        sums = torch.stack([in_omega.sum().double(), entropies.sum(), selected.sum(), selected.square().sum()])
        largest = selected.max() if len(selected) else selected.new_zeros(())
        dist.all_reduce(sums, group=group)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
        count = int(sums[0])
        tu.assign_non_tensor(data, **{NUM_SDPO_TOKENS: count})
        if count == 0:
            return {}
        mean_entropy, mean, mean_square = (sums[1:] / count).tolist()
        return {
            "srpo/teacher_entropy_mean": mean_entropy,
            "srpo/weight_mean": mean,
            "srpo/weight_std": max(0.0, mean_square - mean * mean) ** 0.5,
            "srpo/weight_max": largest.item(),
        }


class SrpoWorker(ActorRolloutRefWorker):
    """veRL's actor-rollout(-ref) worker; the configuration arrives as `srpo` inside `actor_rollout_ref`."""

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self) -> None:
        self.srpo = parse(self.config.srpo)
        self.actor_worker_cls = partial(SrpoTrainingWorker, srpo=self.srpo)
        super().init_model()
        self.srpo_loss = SrpoLoss(self.loss_fn.keywords["config"], self.srpo)
        self.actor.set_loss_fn(self.srpo_loss)
        self.teacher_weights = make_teacher(self.actor, self.srpo)
        gc.collect()
        gc.freeze()  # as in the trainer: what is there by now stays

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    def update_actor(self, data: TensorDict) -> TensorDict:
        """Teacher pass, veRL's update over all optimizer mini-batches, EMA step."""
        metrics: dict[str, float] = {}
        if self.srpo.uses_teacher:
            started = time.perf_counter()
            # Ranks of one sequence-parallel group hold the same rows.
            group = self.actor.engine.get_data_parallel_group()
            tokens = 0
            if tu.get_non_tensor_data(data, DISTILL, default=False) and self.srpo.gives_credit:
                tokens, metrics = give_credit(data, self._score, epsilon=self.srpo.credit_epsilon, group=group)
            elif tu.get_non_tensor_data(data, DISTILL, default=False):
                tokens = self._score(data)
                self._skip_unless_finite(data, group)
            metrics["srpo/teacher_forward_tokens"] = self._reduce(tokens, dist.ReduceOp.SUM, group)
            metrics[TEACHER_TIME] = time.perf_counter() - started
        output = super().update_actor(data)
        if self.srpo.uses_teacher:
            started = time.perf_counter()
            metrics["srpo/teacher_distance"] = self.teacher_weights.step() if self.teacher_weights else 0.0
            metrics[TEACHER_TIME] += time.perf_counter() - started
            metrics[TEACHER_TIME] = self._reduce(metrics[TEACHER_TIME], dist.ReduceOp.MAX)
        if output is not None:
            # veRL's own entries are lists over mini-batches; the trainer averages them.
            tu.assign_non_tensor(
                output, metrics={**tu.get(output, "metrics"), **{key: [value] for key, value in metrics.items()}}
            )
        return output

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def take_token_sample(self) -> dict[int, Recorded]:
        """What the last update recorded of this rank's sampled rows."""
        return self.srpo_loss.recorder.take()

    def _score(self, data: TensorDict) -> int:
        settings = self.actor.engine_config
        max_tokens = None
        if settings.use_dynamic_bsz:
            max_tokens = settings.infer_max_token_len_per_gpu * settings.ulysses_sequence_parallel_size
        with self.teacher_weights.scoring() if self.teacher_weights else nullcontext(self.actor.engine) as engine:
            return score_rows(
                engine,
                data,
                max_tokens=max_tokens,
                micro_batch_size=settings.infer_micro_batch_size_per_gpu,
                temperature=float(tu.get_non_tensor_data(data, "temperature", default=1.0)),
                use_remove_padding=bool(self.actor.model_config.get("use_remove_padding", False)),
                after_forward=lambda: reshard(engine.module),
                row_field=CREDIT_SHARE if self.srpo.gives_credit else SDPO_ROW,
            )

    def _skip_unless_finite(self, data: TensorDict, group: Any) -> None:
        """Have the update skipped, on all ranks, where a teacher score is not finite on any of them."""
        bad = not bool(data[TEACHER_ENTROPY].values().isfinite().all())
        if self._reduce(bad, dist.ReduceOp.MAX, group):
            for name in (TEACHER_LOG_PROBS, TEACHER_ENTROPY):
                del data[name]
            tu.assign_non_tensor(data, **{SKIP: True})

    @staticmethod
    def _reduce(value: float, operation: Any, group: Any = None) -> float:
        tensor = torch.tensor(float(value), dtype=torch.float64, device=get_device_name())
        dist.all_reduce(tensor, op=operation, group=group)
        return tensor.item()

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def save_checkpoint(
        self, local_path: str, hdfs_path: str | None = None, global_step: int = 0, max_ckpt_to_keep: int | None = None
    ) -> None:
        super().save_checkpoint(local_path, hdfs_path, global_step, max_ckpt_to_keep)
        if self.teacher_weights:
            self.teacher_weights.save(local_path, global_step, max_ckpt_to_keep)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def load_checkpoint(
        self, local_path: str, hdfs_path: str | None = None, del_local_after_load: bool = False
    ) -> None:
        folders = (local_path, teacher_folder(local_path))
        for folder in folders:
            check_ranks(folder, dist.get_world_size())
        for folder in folders:
            check_shards(folder, dist.get_rank(), dist.get_world_size())
        with only_tensors(self.srpo.checkpoints.trust_pickles):
            # The teacher first: where it does not fit, its message says more than a list of missing keys.
            if self.teacher_weights:
                self.teacher_weights.load(local_path)
            super().load_checkpoint(local_path, hdfs_path, del_local_after_load)
