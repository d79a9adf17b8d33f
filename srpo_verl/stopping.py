"""Ending a run from outside at the end of its step, with a checkpoint: SIGTERM to its process, or a file.

A scheduler that takes a machine away sends SIGTERM first. The process that gets it is the driver, which trains
nothing, so it leaves word for the trainer in a file, and waits. The file can be made by hand as well.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType

import psutil

FILE_NAME = "srpo_stop"
"""In trainer.default_local_dir: the run ends at the end of its step, with a checkpoint."""

RESUMABLE = 75
"""Exit status of a run that was asked to stop and can go on (EX_TEMPFAIL of sysexits.h)."""

STOPPED = 3
"""Exit status of a run that a guard has stopped."""

POLL_SECONDS = 0.5


def stop_file(checkpoints: str | Path) -> Path:
    """The file that asks a run with this checkpoint folder to stop."""
    return Path(os.path.abspath(checkpoints)) / FILE_NAME


def stop_on_sigterm(checkpoints: str | Path) -> None:
    """Let SIGTERM ask this run to stop, rather than end it at once; a second one ends it.

    Ray's `init` sets a handler of its own, so ours is set after it. Only the main thread can do that, and by then it
    is in veRL's hands: a thread waits for Ray and calls it with a signal that nobody else uses.
    """
    _forget_earlier(stop_file(checkpoints))
    asked = False

    def on_sigterm(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            sys.exit(128 + number)
        asked = True
        ask_to_stop(checkpoints)
        print("srpo_verl: SIGTERM: the run ends after this step, with a checkpoint; once more ends it now", flush=True)

    def set_handler(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, on_sigterm)
        signal.signal(number, before)

    def wait_for_ray() -> None:
        while (ray := sys.modules.get("ray")) is None or not ray.is_initialized():
            time.sleep(POLL_SECONDS)
        signal.raise_signal(signal.SIGUSR2)

    before = signal.signal(signal.SIGUSR2, set_handler)
    threading.Thread(target=wait_for_ray, daemon=True, name="srpo_verl stop_on_sigterm").start()


def ask_to_stop(checkpoints: str | Path) -> None:
    """Ask a run to stop, from another process."""
    path = stop_file(checkpoints)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def _forget_earlier(path: Path) -> None:
    """Remove the file that an earlier run was asked by, and that it did not live to see."""
    if path.exists() and path.stat().st_mtime < psutil.Process().create_time():
        path.unlink(missing_ok=True)
