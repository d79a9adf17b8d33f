"""Checks of the whole composed configuration; srpo_verl/start.py calls them before Ray starts."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

from srpo_verl.algos.routings import effects_of, shares_of
from srpo_verl.config.schema import SrpoConfig, default_values, parse
from srpo_verl.errors import ConfigError
from srpo_verl.installation import TRAINER_MODE

CORRECTION = "algorithm.rollout_correction"


def check_run(config: DictConfig) -> SrpoConfig:
    """Check the `srpo` group and everything of veRL's configuration it depends on; return the group, typed.

    Raises ConfigError naming key, value and remedy.
    """
    if OmegaConf.select(config, "srpo") is None:
        raise ConfigError("srpo", None, "the group is missing; compose with --config-path pkg://srpo_verl.config")
    srpo = parse(config.srpo)
    _check_routing(srpo)
    _check_hooks(config)
    _check_group(config, srpo)
    if srpo.uses_teacher:
        _check_teacher_side(config, srpo)
    _check_budget(config, srpo)
    _check_correction(config)
    _check_policy_terms(config, srpo)
    _check_lora(config)
    _check_ulysses(config)
    return srpo


def _check_routing(srpo: SrpoConfig) -> None:
    """A routing of the user's own is imported here, in the driver; workers are sent the shares it gives."""
    try:
        shares_of(srpo.routing)
    except ValueError as error:
        raise ConfigError("srpo.routing", srpo.routing, str(error)) from error


def _require(config: DictConfig, key: str, wanted: Any, why: str) -> None:
    value = OmegaConf.select(config, key)
    if value != wanted:
        raise ConfigError(key, value, f"has to be {wanted!r}: {why}")


def _whole_number(config: DictConfig, key: str) -> int:
    value = OmegaConf.select(config, key)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(key, value, "has to be a whole number")
    return value


def _check_hooks(config: DictConfig) -> None:
    _require(config, "model_engine", "dp", "SRPO's engines are FSDP's; actor.strategy=fsdp or fsdp2 says which")
    _require(config, "trainer.use_v1", True, "SRPO is a trainer of veRL's V1 interface")
    mode = OmegaConf.select(config, "trainer.v1.trainer_mode")
    # The trainer itself rewrites the mode to veRL's "sync" and adds the group (verl_ext/trainer.py); the former alone,
    # in what a user composes, would be veRL's own trainer.
    rewritten = mode == "sync" and OmegaConf.select(config, "actor_rollout_ref.srpo") is not None
    if mode != TRAINER_MODE and not rewritten:
        raise ConfigError(
            "trainer.v1.trainer_mode", mode, f"has to be {TRAINER_MODE!r}: veRL's own trainers know no routing"
        )
    _require(config, "algorithm.adv_estimator", "srpo", "the estimator of eq. 2")
    _require(config, "actor_rollout_ref.actor.policy_loss.loss_mode", "srpo", "the GRPO branch of eq. 5")
    _require(config, "actor_rollout_ref.actor.loss_agg_mode", "token-mean", "eq. 5 has one denominator, in tokens")
    strategy = config.actor_rollout_ref.actor.strategy
    if strategy not in ("fsdp", "fsdp2"):
        raise ConfigError("actor_rollout_ref.actor.strategy", strategy, "has to be fsdp or fsdp2")
    if OmegaConf.select(config, "trainer.v1.sampler.custom_sampler.name") == "FastReplayBuffer":
        # veRL hands neither setting to a custom sampler, so both would silently do nothing.
        for key in ("algorithm.filter_groups.enable", "trainer.v1.sampler.sync_refill_failed_groups"):
            _require(config, key, False, "the sampler of platform=cpu does not do it")


def _check_teacher_side(config: DictConfig, srpo: SrpoConfig) -> None:
    why = f"srpo.routing={srpo.routing} distils from logits"
    bypassed = "the student's top-k tokens come from the pass over old log-probs, which bypass mode leaves out"
    if srpo.gives_credit:
        why = f"srpo.credit={srpo.credit} takes the teacher's log-probs from logits"
        bypassed = f"srpo.credit={srpo.credit} divides by the old log-probs, whose pass bypass mode leaves out"
    _require(config, "actor_rollout_ref.model.use_fused_kernels", False, f"{why}, which fused kernels do not return")
    _require(config, "distillation.enabled", False, "veRL's own distillation would add a second teacher")
    _require(config, "algorithm.rollout_correction.bypass_mode", False, bypassed)
    limit, prompt = srpo.demonstration.max_prompt_tokens, _whole_number(config, "data.max_prompt_length")
    _whole_number(config, "data.max_response_length")
    if limit <= prompt:
        raise ConfigError(
            "srpo.demonstration.max_prompt_tokens",
            limit,
            f"has to exceed data.max_prompt_length={prompt}: the teacher's prompt holds the question and more",
        )


def _check_group(config: DictConfig, srpo: SrpoConfig) -> None:
    """Groups of one where the method needs more."""
    alone = srpo.demonstration.sources == ("sibling",) and not srpo.demonstration.environment_feedback
    if srpo.weighting.pass_rate:
        need = "a pass rate needs a group (srpo.weighting.pass_rate=true)"
    elif effects_of(srpo.routing).needs_group:
        need = f"srpo.routing={srpo.routing} goes by the other rollouts of the group"
    elif srpo.uses_teacher and alone:
        need = "a sample's teacher needs a sibling, or another source in srpo.demonstration.sources"
    else:
        return
    rollouts = _whole_number(config, "actor_rollout_ref.rollout.n")
    if rollouts < 2:
        raise ConfigError("actor_rollout_ref.rollout.n", rollouts, f"has to be at least 2: {need}")


def _check_budget(config: DictConfig, srpo: SrpoConfig) -> None:
    validates = config.trainer.test_freq > 0 or config.trainer.get("val_before_train", True)
    if not validates and list(srpo.budget.hours) != default_values()["budget"]["hours"]:
        raise ConfigError(
            "srpo.budget.hours",
            list(srpo.budget.hours),
            "has no effect without validations; set trainer.test_freq above 0",
        )


def _check_correction(config: DictConfig) -> None:
    """veRL corrects where the rollout engine's log-probs are there, and silently does not where they are not."""
    group = OmegaConf.select(config, CORRECTION) or {}
    wanted = [key for key in ("rollout_is", "rollout_rs") if group.get(key) is not None]
    without = " and ".join(f"{CORRECTION}.{name}=null" for name in wanted)
    bypasses = group.get("bypass_mode")
    if wanted and bypasses:
        # veRL leaves the correction to its own policy loss "bypass_mode" then, and this package's takes its place.
        raise ConfigError(
            f"{CORRECTION}.bypass_mode",
            bypasses,
            f"leaves {CORRECTION}.{wanted[0]} without effect: the old log-probs are then the rollout engine's, and "
            f"nothing is left to correct; set {without}, or bypass_mode=false",
        )
    _require(config, f"{CORRECTION}.loss_type", "ppo_clip", "only veRL's own policy loss bypass_mode reads it")
    key = "actor_rollout_ref.rollout.calculate_log_probs"
    if bypasses:
        _require(config, key, True, f"{CORRECTION}.bypass_mode=true takes the rollout engine's log-probs")
    if wanted and not OmegaConf.select(config, key):
        raise ConfigError(
            key,
            OmegaConf.select(config, key),
            f"has to be true for {CORRECTION}.{wanted[0]}, which works on the rollout engine's log-probs; or set "
            f"{without}",
        )


def _check_policy_terms(config: DictConfig, srpo: SrpoConfig) -> None:
    """KL and entropy are terms of the GRPO loss and its rewards; where no row ever takes that, they change nothing."""
    if effects_of(srpo.routing, mix_lambda=srpo.mix_lambda).takes_grpo or srpo.schedule.kind != "constant":
        return
    terms = {"actor_rollout_ref.actor.use_kl_loss": False, "algorithm.use_kl_in_reward": False}
    for key, off in {**terms, "actor_rollout_ref.actor.entropy_coeff": 0}.items():
        why = f"with srpo.routing={srpo.routing} no row takes the GRPO loss that it is part of"
        _require(config, key, off, f"{why}; srpo.schedule.kind=linear would hand the rows over to it")


def _check_lora(config: DictConfig) -> None:
    """FSDP reads model.lora_rank; what it would ignore, or cannot hand to the rollout engine, is refused."""
    rank = OmegaConf.select(config, "actor_rollout_ref.model.lora_rank") or 0
    other = OmegaConf.select(config, "actor_rollout_ref.model.lora.rank") or 0
    if other not in (0, rank):
        raise ConfigError(
            "actor_rollout_ref.model.lora.rank",
            other,
            f"is read by the rollout engine and Megatron, while FSDP trains model.lora_rank={rank}; set only that one",
        )
    adapter = OmegaConf.select(config, "actor_rollout_ref.model.lora_adapter_path")
    if adapter is not None and rank == 0:
        raise ConfigError(
            "actor_rollout_ref.model.lora_adapter_path", adapter, "has no effect without model.lora_rank above 0"
        )
    merge = "actor_rollout_ref.model.lora.merge"
    if rank and config.actor_rollout_ref.rollout.name == "hf":
        _require(config, merge, True, "rollout.name=hf takes merged weights, not adapters")
    if rank and config.actor_rollout_ref.actor.strategy == "fsdp":
        # peft looks its modules up under names that FSDP1's wrappers change (tests/verl_ext/test_lora.py).
        _require(config, merge, True, "with actor.strategy=fsdp no adapter would reach the rollout; or use fsdp2")


def _check_ulysses(config: DictConfig) -> None:
    """Sequence parallelism: veRL cuts the sequence inside flash-attention; any other would see a slice as a whole."""
    # veRL's engine takes the actor's own key where it is above 1.
    keys = (f"actor_rollout_ref.actor.{group}ulysses_sequence_parallel_size" for group in ("", "fsdp_config."))
    size, key = max((OmegaConf.select(config, key) or 1, key) for key in keys)
    if size <= 1:
        return
    ranks = config.trainer.n_gpus_per_node * config.trainer.nnodes
    if ranks % size:
        raise ConfigError(key, size, f"has to divide the number of ranks, {ranks}")
    _require(config, "actor_rollout_ref.model.use_remove_padding", True, f"{key}={size} cuts packed inputs")
    attention = "actor_rollout_ref.model.override_config.attn_implementation"
    name = OmegaConf.select(config, attention)
    if name is not None and not name.startswith("flash_attention"):
        raise ConfigError(
            attention,
            name,
            f"has to be flash_attention_2 or _3 with {key}={size}: with another attention veRL would silently take "
            "every slice of a sequence for a whole one (platform=cpu has no flash-attention; set the size to 1 there)",
        )
