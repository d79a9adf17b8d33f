"""Which of a run's checkpoints are whole, which is the best, and which are removed. Files only.

veRL names the newest checkpoint in a file that is not written in one piece, removes an old one's weights and leaves
the rest of it, and forgets after a resumption what there is to remove. Here a checkpoint is whole once its mark is
there, which is written last and taken away first.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srpo_verl.whole_file import write_whole

LATEST = "latest_checkpointed_iteration.txt"
"""veRL's: the number of the step to resume from."""

BEST = "best_checkpointed_iteration.txt"
"""Ours: the number of the step with the best validation accuracy among the checkpoints."""

MARK = "srpo_checkpoint.json"
"""In global_step_N: the checkpoint is whole; and the validation accuracy of its weights."""

UNFINISHED = "srpo_unfinished"
"""In global_step_N while it is written."""

REMOVED = ".removed"
"""End of a folder's name while it is removed."""

_FOLDER = re.compile(r"global_step_(\d+)")
GIB = 2**30


@dataclass(frozen=True)
class Checkpoint:
    """One whole checkpoint."""

    folder: Path
    step: int
    accuracy: float | None


def folder_of(root: Path, step: int) -> Path:
    """The folder of a step's checkpoint."""
    return root / f"global_step_{step}"


def resumed_from(trainer: Any, step: int) -> Path:
    """The folder from which veRL has resumed at a step, by its settings of the trainer."""
    if trainer.resume_mode == "resume_path":
        return Path(trainer.resume_from_path)
    return folder_of(Path(trainer.default_local_dir), step)


def whole(root: Path) -> list[Checkpoint]:
    """Every checkpoint with a mark, by step. Folders of others and of earlier releases have none."""
    found = []
    for folder in root.glob("global_step_*"):
        match = _FOLDER.fullmatch(folder.name)
        if match and (folder / MARK).is_file():
            try:
                accuracy = json.loads((folder / MARK).read_text())["validation_accuracy"]
            except (ValueError, KeyError, TypeError):
                continue
            found.append(Checkpoint(folder, int(match[1]), accuracy))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def best(checkpoints: Iterable[Checkpoint]) -> Checkpoint | None:
    """The most accurate one, of equal ones the earliest; None where none was validated."""
    validated = [checkpoint for checkpoint in checkpoints if checkpoint.accuracy is not None]
    return max(validated, key=lambda checkpoint: (checkpoint.accuracy, -checkpoint.step), default=None)


def read_step(path: Path) -> int | None:
    """The step that a tracker names; None where there is none, or half of one."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def begin(root: Path, step: int) -> None:
    """Before a checkpoint is written: what is in its place is no longer whole, nor what a run would resume from."""
    folder = folder_of(root, step)
    write_whole(folder / UNFINISHED, "")
    (folder / MARK).unlink(missing_ok=True)
    if read_step(root / LATEST) == step:
        _point_to_newest(root)


def mark(root: Path, step: int, accuracy: float | None) -> None:
    """Declare a checkpoint whole, or tell the accuracy of one that is."""
    folder = folder_of(root, step)
    write_whole(folder / MARK, json.dumps({"step": step, "validation_accuracy": accuracy}) + "\n")
    (folder / UNFINISHED).unlink(missing_ok=True)


def repair(root: Path) -> list[str]:
    """Before a run resumes: remove the halves that a killed one has left; return what was done, in words.

    The checkpoint that veRL names is whole: it names it when all of it is written.
    """
    done = []
    tracker = root / LATEST
    if tracker.is_file() and read_step(tracker) is None:
        _point_to_newest(root)
        done.append(f"{LATEST} was cut off; it names step {read_step(tracker)} again")
    for folder in sorted(root.glob("global_step_*")):
        if folder.name.endswith(REMOVED):
            shutil.rmtree(folder, ignore_errors=True)
            done.append(f"{folder.name}: the rest of a removed checkpoint is gone")
        elif (folder / UNFINISHED).is_file():
            step = read_step(tracker)
            if step is not None and folder == folder_of(root, step):
                mark(root, step, None)
                continue
            remove(folder)
            done.append(f"{folder.name}: a half-written checkpoint is gone")
    return done


def rotate(root: Path, keep_last: int | None, keep_best: bool, max_bytes: float | None = None) -> list[int]:
    """Remove old checkpoints, whole folders; return their steps.

    Args:
        root: trainer.default_local_dir.
        keep_last: how many of the newest stay; None: all of them.
        keep_best: whether the best stays besides.
        max_bytes: of all that stay; the oldest go first, the newest and the best stay in any case. None: no limit.
    """
    checkpoints = whole(root)
    top = best(checkpoints) if keep_best else None
    if top is not None:
        write_whole(root / BEST, f"{top.step}\n")
    latest = read_step(root / LATEST)
    free = [c for c in checkpoints if c.step != latest and c is not top]
    # The newest of all is among the last ones whether or not it is the best.
    last = checkpoints if keep_last is None else checkpoints[-keep_last:]
    removed = [c for c in free if c not in last]
    if max_bytes is not None:
        sizes = {c.step: size_of(c.folder) for c in checkpoints if c not in removed}
        for checkpoint in free:
            if sum(sizes.values()) <= max_bytes:
                break
            if sizes.pop(checkpoint.step, None) is not None:
                removed.append(checkpoint)
    for checkpoint in removed:
        remove(checkpoint.folder)
    return sorted(checkpoint.step for checkpoint in removed)


def remove(folder: Path) -> None:
    """Remove a checkpoint; a kill in between leaves what `repair` removes, and nothing that looks like one."""
    aside = folder.with_name(folder.name + REMOVED)
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(folder, aside)
    shutil.rmtree(aside, ignore_errors=True)


def size_of(folder: Path) -> int:
    """Bytes of all files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _point_to_newest(root: Path) -> None:
    checkpoints = whole(root)
    if checkpoints:
        write_whole(root / LATEST, str(checkpoints[-1].step))
    else:
        (root / LATEST).unlink(missing_ok=True)
