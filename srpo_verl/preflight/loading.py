"""The model, its prompts and veRL's own checks, loaded with veRL's functions, so that the run meets the same."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from omegaconf import DictConfig, OmegaConf
from verl.tools.tool_registry import load_all_tools
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import omega_conf_to_dataclass, validate_config
from verl.utils.import_utils import load_extern_object
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

from srpo_verl.preflight.model import ModelFacts
from srpo_verl.preflight.template import Renderer

__all__ = ["LoadError", "LoadedModel", "load_extern_object", "load_model", "load_renderer", "verl_refusal"]

HUB_TIMEOUT_S = 10.0
"""For one question to the hub. transformers itself asks six times, which takes up to minutes."""


class LoadError(ValueError):
    """Something of the model cannot be had; the message says why, `remedy` what to do."""

    def __init__(self, message: str, remedy: str):
        super().__init__(message)
        self.remedy = remedy


@dataclass(frozen=True)
class LoadedModel:
    """What veRL's trainer gets of a model: its configuration, tokenizer and processor (None for text alone)."""

    hf_config: Any
    tokenizer: Any
    processor: Any

    @property
    def facts(self) -> ModelFacts:
        text = self.hf_config.get_text_config()
        return ModelFacts(text.vocab_size, getattr(text, "max_position_embeddings", None), len(self.tokenizer))


def load_model(config: DictConfig) -> LoadedModel:
    """Load everything but the weights. Raises LoadError."""
    node = config.actor_rollout_ref.model.copy()
    for key in ("path", "hf_config_path", "tokenizer_path"):
        if node.get(key) is not None:
            node[key] = local_folder(f"actor_rollout_ref.model.{key}", node[key])
    try:
        model = omega_conf_to_dataclass(node)
    except Exception as error:
        cause = error.__cause__ or error
        raise LoadError(
            f"actor_rollout_ref.model.path={config.actor_rollout_ref.model.path!r}: {type(cause).__name__}: {cause}",
            "the folder has to hold config.json and the tokenizer's files",
        ) from error
    return LoadedModel(model.hf_config, model.tokenizer, model.processor)


def local_folder(key: str, path: str) -> str:
    """Where the files of a model are: a folder, or a name on the hub that the hub, or its cache here, knows.

    Raises LoadError for a folder that does not exist and for a name that nobody knows.
    """
    if "://" in path or Path(path).exists():
        return path
    if path.startswith(("/", ".", "~")) or path.count("/") != 1:
        home = "; '~' is not expanded here" if path.startswith("~") else ""
        raise LoadError(f"{key}={path!r}: no such folder{home}", "give a folder, or the name of a model on the hub")
    cached = try_to_load_from_cache(path, "config.json")
    try:
        get_hf_file_metadata(hf_hub_url(path, "config.json"), timeout=HUB_TIMEOUT_S)
    except Exception as error:
        if isinstance(cached, str):
            return str(Path(cached).parent)
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise LoadError(
            f"{key}={path!r}: neither a folder here nor in the hub's cache, and the hub says: {reason}",
            "give the model's folder, or make the hub reachable (for a gated model: hf auth login)",
        ) from error
    return path


def load_renderer(
    config: DictConfig, model: LoadedModel, template_kwargs: Mapping[str, Any], *, teacher: bool
) -> Renderer:
    """What renders prompts as the run will. Raises LoadError where there is no template or a tool does not load.

    Args:
        teacher: with one, prompts are rendered as text alone (verl_ext/trainer.py).
    """
    tools = _tool_schemas(config)
    if model.processor is None and not getattr(model.tokenizer, "chat_template", None):
        raise LoadError(
            "the tokenizer has no chat template",
            "take an instruction-tuned model, or set actor_rollout_ref.model.custom_chat_template",
        )
    try:
        builder = create_continuous_token_builder(
            model.tokenizer,
            hf_model_type=model.hf_config.model_type,
            chat_template_kwargs=dict(template_kwargs),
            processor=None if teacher else model.processor,
        )
    except Exception as error:
        remedy = "with a teacher prompts are plain text; without one: --config-name grpo" if teacher else ""
        raise LoadError(f"{type(error).__name__}: {error}", remedy) from error

    def one(messages: Sequence[Mapping[str, Any]]) -> list[int]:
        return builder.build_initial_tokens(list(messages), tools=tools)

    return Renderer(model.tokenizer, one, dict(template_kwargs), tools)


def _tool_schemas(config: DictConfig) -> list[dict] | None:
    tools, functions = (config.data.get(f"{kind}_path") for kind in ("tool_config", "function_tool"))
    if not (tools or functions):
        return None
    try:
        loaded = load_all_tools(tool_config_path=tools, function_tool_path=functions)
        return [tool.tool_schema.model_dump(exclude_unset=True, exclude_none=True) for tool in loaded]
    except Exception as error:
        key = "tool_config_path" if tools else "function_tool_path"
        raise LoadError(
            f"data.{key}={(tools or functions)!r}: {type(error).__name__}: {error}", "the agent loops load it as well"
        ) from error


def verl_refusal(config: DictConfig) -> str | None:
    """What veRL's own check of the configuration says against it, or None."""
    copy = OmegaConf.create(OmegaConf.to_container(config))
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            validate_config(copy, need_reference_policy(copy), need_critic(copy))
    except Exception as error:
        return f"{error}" if str(error) else type(error).__name__
    return None
