"""What a person sees of a run: this package's own lines. Everything that its processes print goes into a file.

veRL's driver prints what every process of the run writes: the whole configuration, warnings of each worker, and all
metrics of a step in one line of several thousand characters.
"""

from __future__ import annotations

import io
import os
import re
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TextIO

from srpo_verl.errors import ConfigError

VARIABLE = "SRPO_VERL_CONSOLE"
"""full: everything is printed, as veRL does; quiet, or not set: this package's lines."""

MARK = "srpo_verl: "
"""What begins a line of this package, in whatever process."""

OF_A_WORKER = re.compile(r"(?:\x1b\[\d+m)?\((?:\S+ )?pid=\d+[^)]*\)(?:\x1b\[0m)? ?(?P<text>.*)")
"""How Ray prints what another process wrote."""
OF_THE_DRIVER = ("ray init kwargs: ",)
"""Beginnings of the driver's lines that are for the file alone."""


def is_quiet(environment: Mapping[str, str] | None = None) -> bool:
    """Whether the console shows this package's lines alone. Raises ConfigError for a value that there is not."""
    switch = (os.environ if environment is None else environment).get(VARIABLE, "quiet")
    if switch not in ("quiet", "full"):
        raise ConfigError(VARIABLE, switch, "has to be quiet or full")
    return switch == "quiet"


def shown(line: str) -> str | None:
    """What the console shows of a line that the driver prints; None: nothing."""
    worker = OF_A_WORKER.fullmatch(line)
    if worker is not None:
        # Progress bars write over their line.
        text = worker["text"].rpartition("\r")[2]
        return text.removeprefix(MARK) if text.startswith(MARK) else None
    return None if line.startswith(OF_THE_DRIVER) else line


class Screen(io.TextIOBase):
    """Stands where a stream of the driver was: all lines go to the file, those that are shown to the stream too."""

    def __init__(self, stream: TextIO, file: TextIO, lock: threading.Lock):
        self.stream, self.file, self.lock, self.unfinished = stream, file, lock, ""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.stream.encoding

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        with self.lock:
            self.file.write(text)
            *lines, self.unfinished = (self.unfinished + text).split("\n")
            for line in lines:
                kept = shown(line)
                if kept is not None:
                    self.stream.write(f"{kept}\n")
        return len(text)

    def flush(self) -> None:
        with self.lock:
            self.file.flush()
            self.stream.flush()


def everything_into(path: Path) -> Callable[[], None]:
    """From now on what the driver prints is added to the file, and the console shows what is shown of it.

    Returns what ends that. A run has no use for it: Ray prints to the very end of the process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    streams, lock = (sys.stdout, sys.stderr), threading.Lock()
    file = path.open("a", buffering=1, encoding="utf-8")
    screens = [Screen(stream, file, lock) for stream in streams]
    sys.stdout, sys.stderr = screens

    def end() -> None:
        for screen in screens:
            if screen.unfinished:
                screen.write("\n")
            screen.flush()
        sys.stdout, sys.stderr = streams
        file.close()

    return end
