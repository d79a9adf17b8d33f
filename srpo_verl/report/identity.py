"""What a run is an instance of: its method, its task, the settings that matter, its seeds. From its configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from srpo_verl.config.methods import title_of, title_of_group
from srpo_verl.config.values import flatten

BENCHMARKS = {
    "chemistry": "Chemistry",
    "physics": "Physics",
    "biology": "Biology",
    "materials": "Materials",
    "tooluse": "Tool Use",
}
"""The paper's, by the folder of their data."""

BESIDES = (
    "trainer.experiment_name",
    "trainer.project_name",
    "trainer.default_",
    "trainer.logger",
    "trainer.resume_",
    "trainer.save_freq",
    "trainer.test_freq",
    "trainer.val_",
    "trainer.log_val_generations",
    "trainer.max_",
    "trainer.total_",
    "trainer.rollout_data_dir",
    "trainer.validation_data_dir",
    "srpo.token_sample",
    "srpo.guards",
    "srpo.budget",
    "srpo.checkpoint",
    "data.val_",
    "actor_rollout_ref.actor.checkpoint",
    "actor_rollout_ref.actor.optim.total_training_steps",
)
"""Settings that name, observe or save a run, or say how long it is; runs that differ in them alone are comparable."""

GENERIC = ("metrics", "log", "logs", "train", "test", "model", "actor", "huggingface", "hf", "data", "checkpoints")
"""Names of files and folders that say nothing; their folder's does."""

SETTINGS_SHOWN = 3
"""In a label, of those that differ."""

_STAMP = re.compile(r"[-_]?\d{8}-\d{6}$")
_SEED = re.compile(r"[-_]?seed[-_]?(\d+)")


@dataclass(frozen=True)
class Identity:
    """Runs of one method, task and settings are seeds of each other."""

    method: str
    task: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Everything else by dotted name; what another run of the same method may differ in."""
    seeds: tuple[tuple[str, int], ...] = ()
    """By dotted name: a run has several."""
    recorded: bool = False
    """Read from a configuration; else guessed from names."""

    @property
    def seed(self) -> str:
        """What people call its seed: that of data order and sampling; "" where it is not known."""
        own = [value for name, value in self.seeds if name in ("seed", "data.seed", "actor_rollout_ref.rollout.seed")]
        return "/".join(map(str, dict.fromkeys(own)))

    @property
    def key(self) -> tuple:
        """Equal for seeds of each other."""
        return self.method, self.task, tuple(sorted((name, repr(value)) for name, value in self.settings.items()))


def of_record(config: Mapping[str, Any]) -> Identity:
    """From the configuration that a run of this package records."""
    flat = flatten(config)
    seeds = tuple((name, flat[name]) for name in sorted(flat) if _is_seed(name) and isinstance(flat[name], int))
    settings = {
        name: value
        for name, value in flat.items()
        if not (_is_seed(name) or name.startswith(BESIDES) or "profiler" in name)
    }
    return Identity(
        title_of_group(config["srpo"]),
        _task(config["data"].get("train_files"), config["actor_rollout_ref"]["model"].get("path")),
        settings,
        seeds,
        recorded=True,
    )


def of_cell(cell: Mapping[str, Any]) -> Identity:
    """From the header of a compact log of recipes/mini."""
    settings = {name: value for name, value in cell.items() if name in ("learning_rate", "steps")}
    if cell.get("part") == "grid":
        # Seeds that chose the learning rate are not those that are compared.
        settings["part"] = "grid"
    seeds = (("seed", int(cell["seed"])),)
    title = cell.get("title") or title_of(str(cell["method"]))
    return Identity(title, str(cell["task"]), settings, seeds, recorded=True)


def of_name(experiment: str) -> Identity:
    """From the name of a run that recorded nothing: without a time stamp and a seed."""
    seeds = tuple(("seed", int(number)) for number in _SEED.findall(experiment)[:1])
    name = _SEED.sub("", _STAMP.sub("", experiment)) or experiment
    return Identity(title_of(name), seeds=seeds)


def label_all(identities: Sequence[Identity]) -> list[str]:
    """A name per identity, unique within its task: the method, and what tells it from others of the same method."""
    labels: list[str] = []
    taken: dict[tuple[str, str], int] = {}
    for one in identities:
        same = [other for other in identities if (other.method, other.task) == (one.method, one.task)]
        names = sorted({name for other in same for name in other.settings})
        differing = [name for name in names if len({repr(other.settings.get(name)) for other in same}) > 1]
        shown = [name for name in differing if name in one.settings]
        told = [f"{_short(name)} {_plain(one.settings[name])}" for name in shown[:SETTINGS_SHOWN]]
        label = ", ".join([one.method, *told, *["…"] * (len(shown) > SETTINGS_SHOWN)])
        number = taken[one.task, label] = taken.get((one.task, label), 0) + 1
        labels.append(label if number == 1 else f"{label} #{number}")
    return labels


def _task(files: Any, model: Any) -> str:
    """What was trained on, and with which model where its name says something."""
    paths = [files] if isinstance(files, str) else list(files or [])
    names = list(dict.fromkeys(_telling(Path(str(path))) for path in paths))
    task = " + ".join(BENCHMARKS.get(name, name) for name in names)
    return f"{task}, {name}" if model and (name := Path(str(model)).name) not in GENERIC else task


def _telling(path: Path) -> str:
    if path.stem not in GENERIC:
        return path.stem
    return next((part for part in reversed(path.parts[:-1]) if part not in GENERIC), path.stem)


def _is_seed(name: str) -> bool:
    return name.rpartition(".")[2].endswith("seed")


def _short(name: str) -> str:
    """Enough of a dotted name to know it by."""
    return "learning rate" if name.endswith(("optim.lr", "learning_rate")) else ".".join(name.split(".")[-2:])


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
