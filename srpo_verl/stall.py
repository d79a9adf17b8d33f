"""A run that makes no progress ends, and says where: what hangs is waited for elsewhere without a limit."""

from __future__ import annotations

import faulthandler
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from srpo_verl.whole_file import write_whole

FILE_NAME = "srpo_last_words"
"""In trainer.default_local_dir: why the trainer's process ended itself, for the process that reports it."""


class StallWatch:
    """Calls back once, from a thread of its own, where nothing has been heard for too long.

    Args:
        seconds: limit; None: never.
        on_stall: is given the phase that was heard of last and how long ago that was.
    """

    def __init__(self, seconds: float | None, on_stall: Callable[[str, float], None]):
        self._seconds, self._on_stall = seconds, on_stall
        self._phase, self._heard = "", time.monotonic()
        self._ended = threading.Event()

    def start(self) -> None:
        """Begin to watch."""
        if self._seconds is not None:
            self.progress("the start of training")
            threading.Thread(target=self._watch, daemon=True, name="srpo_verl stall watch").start()

    def progress(self, phase: str) -> None:
        """Something was done; `phase` begins."""
        self._phase, self._heard = phase, time.monotonic()

    def stop(self) -> None:
        """Watch no longer."""
        self._ended.set()

    def _watch(self) -> None:
        assert self._seconds is not None
        while not self._ended.wait(min(1.0, self._seconds / 10)):
            silent = time.monotonic() - self._heard
            if silent > self._seconds:
                self._on_stall(self._phase, silent)
                return


def leave_word(checkpoints: Path, words: str) -> None:
    """Say why this process is about to end, with what all its threads were doing on standard error."""
    faulthandler.dump_traceback(file=sys.__stderr__ or sys.stderr, all_threads=True)
    print(f"srpo_verl: {words}", file=sys.stderr, flush=True)
    write_whole(checkpoints / FILE_NAME, words)


def take_word(checkpoints: Path) -> str | None:
    """What `leave_word` left, once."""
    path = checkpoints / FILE_NAME
    if not path.is_file():
        return None
    words = path.read_text()
    path.unlink()
    return words
