"""The model's own limits against the configuration."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from srpo_verl.config.schema import SrpoConfig
from srpo_verl.errors import ConfigError
from srpo_verl.preflight.memory import full_vocabulary_error


@dataclass(frozen=True)
class ModelFacts:
    """What the checks need to know of a model.

    Attributes:
        vocab_size: rows of the output layer.
        max_positions: the longest sequence the model can take; None where its configuration does not say.
        tokenizer_length: token ids that the tokenizer may give; None if unknown.
    """

    vocab_size: int
    max_positions: int | None
    tokenizer_length: int | None = None


def model_errors(config: DictConfig, srpo: SrpoConfig, facts: ModelFacts) -> list[ConfigError]:
    """Everything in the configuration that this model cannot take."""
    found = [_tokenizer_error(config, facts), *_context_errors(config, srpo, facts)]
    if srpo.uses_teacher:
        found += [_support_error(srpo, facts), full_vocabulary_error(config, srpo, facts.vocab_size)]
    return [error for error in found if error is not None]


def check_model(config: DictConfig, srpo: SrpoConfig, facts: ModelFacts) -> None:
    """Raise the first of `model_errors`: for whoever has a model and no preflight behind it."""
    for error in model_errors(config, srpo, facts):
        raise error


def _support_error(srpo: SrpoConfig, facts: ModelFacts) -> ConfigError | None:
    top_k = srpo.distillation.top_k
    if top_k is None or top_k <= facts.vocab_size:
        return None
    return ConfigError(
        "srpo.distillation.top_k",
        top_k,
        f"exceeds the model's vocabulary of {facts.vocab_size}; use at most that, or null for all of it",
    )


def _tokenizer_error(config: DictConfig, facts: ModelFacts) -> ConfigError | None:
    if facts.tokenizer_length is None or facts.tokenizer_length <= facts.vocab_size:
        return None
    key = "actor_rollout_ref.model.tokenizer_path"
    path = OmegaConf.select(config, key) or config.actor_rollout_ref.model.path
    return ConfigError(
        key,
        path,
        f"this tokenizer has {facts.tokenizer_length} tokens, the model's vocabulary {facts.vocab_size}; take the "
        "tokenizer that belongs to the model, or resize the model's embeddings",
    )


def _context_errors(config: DictConfig, srpo: SrpoConfig, facts: ModelFacts) -> list[ConfigError]:
    """The student's sequences have to fit into the model and into the rollout engine, the teacher's into the model."""
    response = config.data.max_response_length
    engine = OmegaConf.select(config, "actor_rollout_ref.rollout.max_model_len")
    limits = [(facts.max_positions, "positions of the model"), (engine, "of actor_rollout_ref.rollout.max_model_len")]
    prompts = {"data.max_prompt_length": (config.data.max_prompt_length, limits)}
    if srpo.uses_teacher:
        prompts["srpo.demonstration.max_prompt_tokens"] = (srpo.demonstration.max_prompt_tokens, limits[:1])
    return [
        ConfigError(
            key,
            prompt,
            f"and data.max_response_length={response} make {prompt + response} tokens, more than the {limit} {what}; "
            "lower one of them",
        )
        for key, (prompt, bounds) in prompts.items()
        for limit, what in bounds
        if limit is not None and prompt + response > limit
    ]
