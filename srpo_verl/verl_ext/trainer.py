"""veRL's synchronous V1 trainer with sample routing; registered under its own mode, `srpo`."""

from __future__ import annotations

import gc
from collections.abc import Collection
from typing import Any

import ray
import torch
import transfer_queue as tq
from omegaconf import DictConfig, OmegaConf, open_dict
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.padding_utils import upsample_batch_to_divisible_size
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.seqlen_balancing import log_seqlen_unbalance

from srpo_verl.config.check import check_run
from srpo_verl.errors import ConfigError
from srpo_verl.guards.responses import response_metrics
from srpo_verl.installation import TRAINER_MODE
from srpo_verl.preflight.model import ModelFacts, check_model
from srpo_verl.teacher.dialogue import DialogueText
from srpo_verl.teacher.memory import remove_stale
from srpo_verl.teacher.reference import reference_text
from srpo_verl.verl_ext.clock import TimedTrainer
from srpo_verl.verl_ext.fields import (
    CREDIT_SHARE,
    DISTILL,
    GROUP,
    GRPO_SHARE,
    PASS_RATE,
    SDPO_ROW,
    SDPO_SHARE,
    TEACHER_INPUT_IDS,
    TOKEN_SAMPLE,
    WANT_SUPPORT,
)
from srpo_verl.verl_ext.guarded import GuardedTrainer
from srpo_verl.verl_ext.nested import filler, jagged
from srpo_verl.verl_ext.router import Rollouts, RoutedBatch, Router
from srpo_verl.verl_ext.run_record import log_of, write_record
from srpo_verl.verl_ext.student_prompts import StudentPrompts, configured_tools
from srpo_verl.verl_ext.token_sample import TokenSample, TokenSampler, forget_later
from srpo_verl.verl_ext.worker import TEACHER_TIME, SrpoWorker

WORKER_PREFIX = "actor/srpo/"
"""veRL puts "actor/" before every metric of the update."""
MULTI_MODAL_INPUTS = "multi_modal_inputs"
"""veRL's only field for its workers that is not a tensor: what a processor made of a row's images."""
OF_THE_TRAINER = {"rm_scores", "rollout_log_probs", "returns", "entropy", "log_probs"}
"""Tensors that veRL's trainer reads, and no worker: advantages and old log-probs are made of them."""
OF_THE_UPDATE = {TEACHER_INPUT_IDS, SDPO_SHARE, GRPO_SHARE, CREDIT_SHARE, GROUP, PASS_RATE}
"""Fields of the routing that a pass over log-probs does not read."""


@register_trainer(TRAINER_MODE)
class SrpoTrainer(TimedTrainer, GuardedTrainer):
    """Adds to one training step: routing after the rewards, the support in the old-log-prob pass, SRPO's metrics.

    The teacher pass, the objective and the EMA are the worker's (verl_ext/worker.py); training time and budgets the
    base class's (verl_ext/clock.py).
    """

    def __init__(self, config: DictConfig):
        self.srpo = check_run(config)
        with open_dict(config):
            # veRL compares the mode with "sync" in several places (replay buffer, checkpoints) and takes everything
            # else for asynchronous.
            config.trainer.v1.trainer_mode = "sync"
            # Workers are given this part of the configuration only.
            config.actor_rollout_ref.srpo = OmegaConf.create(OmegaConf.to_container(config.srpo, resolve=True))
        super().__init__(config)

    def _init_tokenizer(self) -> None:
        self.say(self.progress.phase("tokenizer and data"))
        super()._init_tokenizer()
        hf_config = omega_conf_to_dataclass(self.config.actor_rollout_ref.model).hf_config
        text_config = hf_config.get_text_config()
        positions = getattr(text_config, "max_position_embeddings", None)
        check_model(self.config, self.srpo, ModelFacts(text_config.vocab_size, positions, len(self.tokenizer)))
        distils = self.srpo.uses_teacher
        self.prompts = StudentPrompts(
            self.tokenizer,
            hf_config.model_type,
            self.config.data.get("apply_chat_template_kwargs", {}),
            configured_tools(self.config) if distils else (),
            self.config.actor_rollout_ref.rollout.prompt_length,
        )
        self.router = Router(
            self.srpo,
            DialogueText(self.prompts.decode, self.prompts.structure() if distils else ()),
            self.prompts.render,
            seed=self.config.data.get("seed") or 0,
        )
        self.sampler = TokenSampler(self.srpo.token_sample, self.tokenizer.decode)

    @property
    def _shows_references(self) -> bool:
        return self.srpo.uses_teacher and "reference" in self.srpo.demonstration.sources

    def _init_dataloader(self) -> None:
        super()._init_dataloader()
        self.say(self.progress.phase("workers, model and rollout engine"))
        if self._shows_references:
            column, *keys = str(self.srpo.demonstration.reference_column).split(".")
            rows = (self.train_dataset[index] for index in range(len(self.train_dataset)))
            if not any(reference_text(row.get(column), keys) for row in rows):
                raise ConfigError(
                    "srpo.demonstration.reference_column",
                    self.srpo.demonstration.reference_column,
                    "has no text in any row of data.train_files; the columns are "
                    f"{', '.join(sorted(self.train_dataset[0]))}",
                )

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()
        for role in (Role.ActorRollout, Role.ActorRolloutRef):
            if role in self.role_worker_mapping:
                self.role_worker_mapping[role] = ray.remote(SrpoWorker)

    def _balance_batch(self, batch: KVBatchMeta, metrics: dict, *args: Any, **kwargs: Any) -> KVBatchMeta:
        """Route, then let veRL balance the rows over ranks; the teacher's work is shared out by itself (see share)."""
        rollouts = self._rollouts(batch)
        routed = self.router.route(rollouts, self.global_steps)
        self._sample = self._choose_sample(rollouts, routed)
        metrics.update(routed.metrics)
        limit = self.config.actor_rollout_ref.rollout.response_length
        metrics.update(
            response_metrics(rollouts.responses, rollouts.verdicts, routed.routing.correct_B.tolist(), limit)
        )
        if self.actor_rollout_wg.world_size == 1:
            batch = self._fill_up(batch, metrics, *args, **kwargs)
        else:
            batch = super()._balance_batch(batch, metrics, *args, **kwargs)
        self._distill = any(reprompt is not None for reprompt in routed.reprompts)
        self._fixed_advantages = {
            key: float(advantage)
            for key, advantage in zip(rollouts.keys, routed.routing.advantage_B, strict=True)
            if not advantage.isnan()
        }
        return self._write_routing(batch, rollouts, routed)

    def _fill_up(self, batch: KVBatchMeta, metrics: dict, logging_prefix: str = "global_seqlen") -> KVBatchMeta:
        """What veRL's balancing is on one rank, whose rows stay where they are, without the search for the balance."""
        multiple = self._get_required_batch_multiple(1)
        batch = upsample_batch_to_divisible_size(batch, multiple, self.tokenizer.eos_token_id)
        lengths = [tag["seq_len"] for tag in batch.tags]
        metrics.update(log_seqlen_unbalance(lengths, [list(range(len(lengths)))], logging_prefix))
        return batch

    def _rollouts(self, batch: KVBatchMeta) -> Rollouts:
        fields = ["uid", "rm_scores", "prompts", "responses", "response_mask", "raw_prompt", "extra_fields"]
        fields += ["extra_info"] if self.prompts.tools else []
        path = (self.srpo.demonstration.reference_column or "").split(".") if self._shows_references else []
        fields = [*dict.fromkeys([*fields, *path[:1]])]
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
        extra = [fields if isinstance(fields, dict) else {} for fields in list(data["extra_fields"])]
        verdicts = [fields.get("reward_extra_info") or {} for fields in extra]
        infos = list(data["extra_info"]) if "extra_info" in data else [None] * len(data)
        uids = [str(uid) for uid in list(data["uid"])]
        messages = [list(messages) for messages in list(data["raw_prompt"])]
        return Rollouts(
            keys=batch.keys,
            uids=uids,
            rewards_B=data["rm_scores"].to_padded_tensor(0.0).sum(dim=-1),
            responses=data["responses"].unbind(),
            response_masks=data["response_mask"].unbind(),
            messages=messages,
            tools=self.prompts.tools_of_rows(uids, messages, data["prompts"].unbind(), infos),
            feedback=[str(verdict.get("feedback") or "") for verdict in verdicts],
            references=[reference_text(row, path[1:]) for row in list(data[path[0]])] if path else (),
            verdicts=verdicts,
        )

    def _write_routing(self, batch: KVBatchMeta, rollouts: Rollouts, routed: RoutedBatch) -> KVBatchMeta:
        """Put the routing fields of every row, veRL's padding rows included, into TransferQueue."""
        position = {key: row for row, key in enumerate(rollouts.keys)}
        sdpo, grpo, teacher_ids = [], [], []
        for key in batch.keys:
            row = position.get(key)
            sdpo.append(0.0 if row is None else float(routed.routing.sdpo_share_B[row]))
            grpo.append(0.0 if row is None else float(routed.routing.grpo_share_B[row]))
            reprompt = routed.reprompts[row] if row is not None else None
            teacher_ids.append(
                torch.cat([torch.tensor(reprompt.token_ids, dtype=torch.int64), rollouts.responses[row]])
                if reprompt is not None and row is not None
                else filler(torch.int64)
            )
        sdpo_share_B = torch.tensor(sdpo)
        fields = {
            SDPO_ROW: sdpo_share_B > 0,
            SDPO_SHARE: sdpo_share_B,
            GRPO_SHARE: torch.tensor(grpo),
            TEACHER_INPUT_IDS: jagged(teacher_ids),
        }
        if self.srpo.gives_credit:
            prompted = {key for key, reprompt in zip(rollouts.keys, routed.reprompts, strict=True) if reprompt}
            share = self.srpo.credit_share(self.global_steps)
            fields[CREDIT_SHARE] = torch.tensor([share if key in prompted else 0.0 for key in batch.keys])
        if self.srpo.weighting.pass_rate:
            number = {uid: index for index, uid in enumerate(dict.fromkeys(rollouts.uids))}
            rows = [position.get(key) for key in batch.keys]
            fields[GROUP] = torch.tensor([0 if row is None else number[rollouts.uids[row]] for row in rows])
            fields[PASS_RATE] = torch.tensor(
                [0.0 if row is None else float(routed.routing.pass_rate_B[row]) for row in rows]
            )
        if self._sample is not None:
            fields[TOKEN_SAMPLE] = torch.tensor(self._sample.numbers(batch.keys))
        extra_info = batch.extra_info
        batch_with_fields = tq.kv_batch_put(
            keys=batch.keys,
            partition_id=batch.partition_id,
            fields=TensorDict(fields, batch_size=len(batch)),
            tags=batch.tags,
        )
        batch_with_fields.extra_info = extra_info
        return batch_with_fields

    def _compute_old_log_prob(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        """The pass that runs anyway also returns the student's top-k tokens of the distilled rows."""
        wants_support = self._distill and self.srpo.distils and self.srpo.distillation.top_k is not None
        batch.extra_info[WANT_SUPPORT] = wants_support
        batch = super()._compute_old_log_prob(self._for_workers(batch, OF_THE_UPDATE), metrics)
        batch.extra_info.pop(WANT_SUPPORT, None)
        return batch

    def _compute_ref_log_prob(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        return super()._compute_ref_log_prob(self._for_workers(batch, OF_THE_UPDATE), metrics)

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        """veRL's, then the constant advantages that the routing gives single rows in place of the group's."""
        batch = super()._compute_advantage(batch, metrics)
        keys = [key for key in batch.keys if key in self._fixed_advantages]
        if keys:
            masks = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=["response_mask"])
            advantages = [
                self._fixed_advantages[key] * mask.float()
                for key, mask in zip(keys, masks["response_mask"].unbind(), strict=True)
            ]
            fields = TensorDict({"advantages": jagged(advantages)}, batch_size=len(keys))
            tq.kv_batch_put(keys=keys, partition_id=batch.partition_id, fields=fields)
        return batch

    def _update_actor(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        batch.extra_info[DISTILL] = self._distill
        batch = super()._update_actor(self._for_workers(batch), metrics)
        for key in [key for key in metrics if key.startswith(WORKER_PREFIX)]:
            metrics[key.removeprefix("actor/")] = metrics.pop(key)
        if TEACHER_TIME in metrics:
            self.timing_raw["srpo_teacher"] = metrics.pop(TEACHER_TIME)
        self._write_sample()
        return batch

    def _for_workers(self, batch: KVBatchMeta, unread: Collection[str] = ()) -> KVBatchMeta:
        """Spare the workers what they do not read: fields of the trainer's and `unread`; whatever is no tensor.

        Of conversations, ground truths and metrics of the rollout they read none but a processor's inputs. Fetching
        such a field, and cutting it into mini- and micro-batches row by row, costs more than a small model's forward;
        a tensor costs a tenth of that.
        """
        if batch.fields is None:
            return batch
        schema = tq.get_client().kv_retrieve_meta(batch.keys[:1], batch.partition_id).field_schema
        no_tensors = {name for name, field in schema.items() if field["dtype"] is None}
        if self.processor is not None:
            no_tensors.discard(MULTI_MODAL_INPUTS)
        left_out = no_tensors | OF_THE_TRAINER | set(unread)
        batch.fields = [name for name in batch.fields if name not in left_out]
        return batch

    def on_train_begin(self) -> None:
        super().on_train_begin()
        log = log_of(self.logger)
        if log is not None:
            write_record(log, self.config, first_step=self.global_steps)
            forget_later(log, self.global_steps - 1)
        # A collection looks at every object there is, half a second's worth after the imports; those stay anyway.
        gc.collect()
        gc.freeze()

    # --- what the report reads besides the metrics -------------------------------------------------------------------

    def _choose_sample(self, rollouts: Rollouts, routed: RoutedBatch) -> TokenSample | None:
        if log_of(self.logger) is None or not self.sampler.wants(self.global_steps, self.total_training_steps):
            return None
        return self.sampler.choose(self.global_steps, rollouts, routed)

    def _write_sample(self) -> None:
        if self._sample is None:
            return
        log = log_of(self.logger)
        if log is None:
            return
        recorded = self.actor_rollout_wg.take_token_sample()
        try:
            self.sampler.write(log, self._sample, recorded)
        except OSError as error:
            print(f"srpo_verl: the token sample of step {self.global_steps} was not written: {error}")

    def _save_beside(self, folder: str) -> None:
        if self.router.memory is not None:
            remove_stale(self.config.trainer.default_local_dir)
            self.router.memory.save(folder)

    def _load_beside(self, folder: str) -> None:
        if self.router.memory is not None:
            self.router.memory.load(folder)
