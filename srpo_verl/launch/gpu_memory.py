"""How much memory of one GPU a run needs: an estimate by formula, nothing measured.

R ranks share a shard group (`fsdp_size`, else all GPUs), P parameters, T tokens of a micro-batch, H hidden size, V
vocabulary, b bytes of the computing precision (`mixed_precision.param_dtype`, 2 for bf16), s bytes of the master
weights (`model_dtype`, 4 for fp32). A GPU holds in each phase of a step:

    rollout   master sP/R + Adam 2sP/R + teacher 4P/R + the rollout engine's share + weight sync + FIXED
    teacher   the same without the engine; gathered units; a layer's tensors; logits bTV
    reference with a KL: the same, without a teacher kept on the CPU
    update    the same, without a teacher kept on the CPU; gradients sP/R; gathered units; checkpoints bTHL over L
              layers; one layer recomputed; logits bTV

Logits exist once, for response tokens only: their memory takes their gradient (`functional.token_losses`). All T
tokens are counted as response. Gathered units are the root unit (embeddings and head) and two layers, in b bytes; an
update adds the root unit's gradient in fp32 on its way to the shards. Weight sync is veRL's bucket and the largest
tensor in s bytes. Offloads take the master weights and Adam's states off the rollout and teacher phases (veRL brings
both back for an update), `srpo.teacher.cpu_offload` takes the teacher off the rollout and the update. LoRA is counted
as full training; its reference is the base. Any other reference lies on the CPU, sP bytes over all ranks, whatever
`ref.fsdp_config.param_offload` says: veRL lets forward-only engines fetch their weights unit by unit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from srpo_verl.config.schema import SrpoConfig
from srpo_verl.launch.model_sizes import ModelSizes

GIB = 2**30

FIXED_GIB = 5.0
"""CUDA context, NCCL buffers, kernels' workspaces, chunks of logits in fp32, fragmentation, and what a sleeping engine
keeps."""

BYTES = {"fp32": 4, "float32": 4, "fp16": 2, "float16": 2, "bf16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Phase:
    """One phase of a training step: what lies on a GPU at its peak, in GiB."""

    name: str
    parts: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.parts.values())


@dataclass(frozen=True)
class _Held:
    """GiB of one GPU between kernels, by the bytes `master` of a master weight."""

    master: int
    student: dict[str, float]  # weights and Adam's states, during an update
    resident: dict[str, float]  # what of them stays otherwise
    teacher: float  # while it scores
    kept: float  # otherwise


def _weights_held(config: DictConfig, srpo: SrpoConfig, sizes: ModelSizes) -> _Held:
    fsdp = config.actor_rollout_ref.actor.fsdp_config
    master = _bytes(fsdp.get("model_dtype")) or 4

    def shard(bytes_per_parameter: float) -> float:
        return sizes.parameters * bytes_per_parameter / shard_ranks(config) / GIB

    student = {"student": shard(master), "adam": shard(2 * master)}
    offloaded = {"student": fsdp.param_offload, "adam": fsdp.optimizer_offload}
    resident = {name: 0.0 if offloaded[name] else size for name, size in student.items()}
    teacher = shard(4) if srpo.needs_teacher_copy else 0.0
    offloads = fsdp.param_offload if srpo.teacher.cpu_offload is None else srpo.teacher.cpu_offload
    return _Held(master, student, resident, teacher, 0.0 if offloads else teacher)


def estimate(config: DictConfig, srpo: SrpoConfig, sizes: ModelSizes, device_gib: float) -> list[Phase]:
    """The phases of a training step of a composed configuration.

    Args:
        config: the composed configuration. srpo: its checked `srpo` group.
        sizes: of the model. device_gib: memory of one GPU, of which the rollout engine takes a share.
    """
    rollout, fsdp = config.actor_rollout_ref.rollout, config.actor_rollout_ref.actor.fsdp_config
    held = _weights_held(config, srpo, sizes)
    compute = _bytes(OmegaConf.select(fsdp, "mixed_precision.param_dtype")) or 2
    gathered = compute * (sizes.embedding_parameters + 2 * sizes.layer_parameters) / GIB
    tokens = micro_batch_tokens(config)
    checkpoints = sizes.layers if config.actor_rollout_ref.model.enable_gradient_checkpointing else 0
    recomputed = 1 if checkpoints else sizes.layers

    phases = [
        Phase(
            "rollout",
            {
                **held.resident,
                "teacher": held.kept,
                "engine": rollout.gpu_memory_utilization * device_gib,
                "weight sync": rollout.checkpoint_engine.update_weights_bucket_megabytes / 1024
                + held.master * sizes.vocab * sizes.hidden / GIB,
                "fixed": FIXED_GIB,
            },
        )
    ]

    def scoring(name: str, tokens: int, teacher: float) -> Phase:
        parts = {**held.resident, "teacher": teacher, "gathered": gathered}
        return Phase(name, {**parts, **_forward(sizes, tokens, compute)})

    longest = config.data.max_prompt_length + config.data.max_response_length
    if srpo.uses_teacher:
        teachers = srpo.demonstration.max_prompt_tokens + config.data.max_response_length
        phases.append(scoring("teacher", max(teachers, _score_tokens(rollout)), held.teacher))
    if has_reference(config):
        phases.append(scoring("reference", max(longest, _score_tokens(config.actor_rollout_ref.ref)), held.kept))
    phases.append(
        Phase(
            "update",
            {
                **held.student,
                "teacher": held.kept,
                "gradients": held.student["student"],
                "gathered": gathered + 4 * sizes.embedding_parameters / GIB,
                "checkpoints": compute * tokens * sizes.hidden * checkpoints / GIB,
                "layer": recomputed * _layer_gib(sizes, tokens, compute),
                "logits": compute * tokens * sizes.vocab / GIB,
                "fixed": FIXED_GIB,
            },
        )
    )
    return phases


def _forward(sizes: ModelSizes, tokens: int, compute: int) -> dict[str, float]:
    """What a forward without gradients adds to weights: one layer's tensors and the logits."""
    logits = compute * tokens * sizes.vocab / GIB
    return {"layer": _layer_gib(sizes, tokens, compute), "logits": logits, "fixed": FIXED_GIB}


def engine_needs(config: DictConfig, sizes: ModelSizes) -> float:
    """Least GiB of a rollout engine: bf16 weights of its share, and keys and values of one longest sequence."""
    ranks = config.actor_rollout_ref.rollout.tensor_model_parallel_size
    tokens = config.data.max_prompt_length + config.data.max_response_length
    return (2 * sizes.parameters + tokens * sizes.kv_bytes_per_token) / ranks / GIB


def shard_ranks(config: DictConfig) -> int:
    """Ranks over which FSDP spreads the weights."""
    size = config.actor_rollout_ref.actor.fsdp_config.fsdp_size
    return size if size > 0 else config.trainer.n_gpus_per_node * config.trainer.nnodes


def micro_batch_tokens(config: DictConfig) -> int:
    """Tokens of the largest micro-batch of an update; one sequence never fits less than itself."""
    longest = config.data.max_prompt_length + config.data.max_response_length
    actor = config.actor_rollout_ref.actor
    if actor.use_dynamic_bsz:
        return max(longest, actor.ppo_max_token_len_per_gpu)
    return longest * actor.ppo_micro_batch_size_per_gpu


def has_reference(config: DictConfig) -> bool:
    """Whether veRL builds a reference of its own beside the actor."""
    wants = config.actor_rollout_ref.actor.use_kl_loss or config.algorithm.use_kl_in_reward
    return bool(wants) and not config.actor_rollout_ref.model.lora_rank


def _score_tokens(group: DictConfig) -> int:
    """Token budget of a micro-batch that is only scored; `group`: rollout or ref."""
    return group.log_prob_max_token_len_per_gpu if group.log_prob_use_dynamic_bsz else 0


def _layer_gib(sizes: ModelSizes, tokens: int, compute: int) -> float:
    """What one decoder layer keeps for its backward pass; the norms work in fp32.

    Per token: two norms (input, fp32, output) and two residuals, queries, keys and values before and after norm and
    rotation, the attention's output, and four tensors as wide as the feed-forward part.
    """
    width = 10 * sizes.hidden + 4 * (sizes.heads + sizes.kv_heads) * sizes.head_dim + 4 * sizes.intermediate
    return compute * tokens * width / GIB


def _bytes(dtype: Any) -> int | None:
    return None if dtype is None else BYTES[str(dtype).removeprefix("torch.")]
