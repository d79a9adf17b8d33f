"""What the checks need to know of a composed configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from omegaconf import DictConfig, OmegaConf

from srpo_verl.config.schema import SrpoConfig


@dataclass(frozen=True)
class Split:
    """One of the two data sets.

    Attributes:
        key: of the configuration, "data.train_files" or "data.val_files".
        files: as configured.
        max_rows: veRL takes no more than this many; None for all.
        max_rows_key: of the configuration.
        trains: rows of it may be distilled; the other split is only validated on.
    """

    key: str
    files: tuple[str, ...]
    max_rows: int | None
    max_rows_key: str
    trains: bool


@dataclass(frozen=True)
class DataSettings:
    """Columns, limits and batches."""

    train: Split
    val: Split
    prompt_key: str
    max_prompt: int
    max_response: int
    drops_long_prompts: bool
    truncation: str
    shuffled: bool
    train_batch: int
    fetched_batch: int
    """Rows that veRL's loader fetches at once; it drops an incomplete fetch."""
    steps: int | None
    """trainer.total_training_steps; None: the number of steps is that of whole batches in the epochs."""
    epochs: int
    remembers: bool
    """Responses of earlier steps to the same prompt may become demonstrations."""
    template_kwargs: Mapping[str, Any]
    reads_ground_truth: bool
    """The reward manager is veRL's own: it reads data_source and reward_model.ground_truth of every row."""
    teacher_limit: int | None
    """srpo.demonstration.max_prompt_tokens; None without a teacher, or where it gets the student's own prompt."""
    demonstrates: bool
    """A response may become a demonstration: a sibling's, or one out of the memory."""
    feedback: bool
    reference: tuple[str, ...]
    """The column whose texts are demonstrated, and the keys inside it; () where that is no source."""


def _files(config: DictConfig, key: str) -> tuple[str, ...]:
    value = OmegaConf.select(config, key)
    if OmegaConf.is_list(value):
        return tuple(str(item) for item in value)
    return () if value is None else (str(value),)


def _split(config: DictConfig, name: str, trains: bool) -> Split:
    max_rows = config.data.get(f"{name}_max_samples", -1)
    return Split(
        key=f"data.{name}_files",
        files=_files(config, f"data.{name}_files"),
        max_rows=max_rows if max_rows is not None and max_rows > 0 else None,
        max_rows_key=f"data.{name}_max_samples",
        trains=trains,
    )


def data_settings(config: DictConfig, srpo: SrpoConfig) -> DataSettings:
    """Read a composed configuration that has passed `check_run`."""
    data = config.data
    single = bool(OmegaConf.select(config, "algorithm.filter_groups.enable")) or bool(
        OmegaConf.select(config, "trainer.v1.sampler.sync_refill_failed_groups")
    )
    adds = srpo.uses_teacher and srpo.demonstration.show
    sources = srpo.demonstration.sources
    reference = srpo.demonstration.reference_column if srpo.uses_teacher and "reference" in sources else None
    return DataSettings(
        train=_split(config, "train", trains=True),
        val=_split(config, "val", trains=False),
        prompt_key=data.get("prompt_key", "prompt"),
        max_prompt=data.max_prompt_length,
        max_response=data.max_response_length,
        drops_long_prompts=bool(data.get("filter_overlong_prompts", False)),
        truncation=data.get("truncation", "error"),
        shuffled=bool(data.get("shuffle", True)),
        train_batch=data.train_batch_size,
        fetched_batch=1 if single else data.get("gen_batch_size") or data.train_batch_size,
        steps=OmegaConf.select(config, "trainer.total_training_steps"),
        epochs=config.trainer.total_epochs,
        remembers=srpo.remembers,
        template_kwargs=OmegaConf.to_container(
            data.get("apply_chat_template_kwargs") or OmegaConf.create({}), resolve=True
        ),  # type: ignore[arg-type]
        reads_ground_truth=config.reward.reward_manager.source == "register",
        teacher_limit=srpo.demonstration.max_prompt_tokens if adds else None,
        demonstrates="memory" in sources or ("sibling" in sources and config.actor_rollout_ref.rollout.n > 1),
        feedback=srpo.demonstration.environment_feedback,
        reference=tuple(reference.split(".")) if reference is not None else (),
    )


def default_template_kwargs() -> dict[str, Any]:
    """data.apply_chat_template_kwargs of base.yaml."""
    base = OmegaConf.load(str(files("srpo_verl.config").joinpath("base.yaml")))
    return OmegaConf.to_container(base.data.apply_chat_template_kwargs)  # type: ignore[return-value]
