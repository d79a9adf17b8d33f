"""Running cells one after the other: what has finished is left alone, what was cut off goes on, failures are kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from srpo_verl.checkpoints import read_step
from srpo_verl.console import VARIABLE
from srpo_verl.launch.sessions import end_session
from srpo_verl.stopping import RESUMABLE, ask_to_stop
from srpo_verl.whole_file import write_whole

FINISHED = "finished.json"
CHECKPOINTS = "checkpoints"
CHECKPOINT = Path(CHECKPOINTS) / "latest_checkpointed_iteration.txt"


class OtherSettings(ValueError):
    """The folder holds a finished run with other settings."""


class StopAsked(Exception):
    """This process was sent SIGTERM; the run that it had started has ended with a checkpoint."""


@dataclass(frozen=True)
class Attempt:
    """One start of a run: `number` counts from 1, and grows where there is a checkpoint to go on from."""

    folder: Path
    number: int

    @property
    def logs(self) -> Path:
        """Root of veRL's file logger, one per attempt: it empties the file it finds."""
        return self.folder / "logs" / str(self.number)

    @property
    def output(self) -> Path:
        """What the run prints."""
        return self.folder / f"output-{self.number}.log"

    @property
    def override(self) -> str:
        """Takes the log's root to every process of the run, on a Ray cluster started elsewhere as well."""
        return f"++ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_ROOT={self.logs}"


def next_attempt(folder: Path) -> Attempt:
    """The attempt that starts now. Without a checkpoint the run begins anew, and so does its log."""
    last = last_attempt(folder).number
    return Attempt(folder, last + 1 if last == 0 or (folder / CHECKPOINT).is_file() else last)


def last_attempt(folder: Path) -> Attempt:
    """The attempt that was started last; number 0 before the first one."""
    return Attempt(folder, max((int(path.name) for path in (folder / "logs").glob("[0-9]*")), default=0))


def is_finished(folder: Path, settings: Sequence[str]) -> bool:
    """Whether the folder holds a finished run of these very settings.

    Raises:
        OtherSettings: it holds one of other settings.
    """
    record = folder / FINISHED
    if not record.is_file():
        return False
    found = json.loads(record.read_text())["settings"]
    if found != list(settings):
        changed = sorted(set(found) ^ set(settings))
        raise OtherSettings(f"{folder} holds a finished run with other settings ({', '.join(changed)}); set --out")
    return True


def run(command: Sequence[str], folder: Path, settings: Sequence[str]) -> int:
    """Run a launch command in a session of its own and return its exit status; record it where that is 0.

    `python` is this process's own. At SIGTERM the run is asked to end with a checkpoint, and waited for; at a second
    one, and however else this process ends, the run's processes end with it: one that keeps a GPU's memory would fail
    the next run.

    Raises:
        StopAsked: after SIGTERM, once the run has ended.
    """
    attempt = next_attempt(folder)
    attempt.logs.mkdir(parents=True, exist_ok=True)
    started = time.time()
    asked: list[bool] = []

    def on_sigterm(*_: object) -> None:
        if asked:
            sys.exit("ended by SIGTERM")
        asked.append(True)
        ask_to_stop(folder / CHECKPOINTS)

    with attempt.output.open("wb") as output:
        process = subprocess.Popen(
            [*command, attempt.override],
            stdout=output,
            stderr=subprocess.STDOUT,
            # The whole output is what this file is for.
            env={
                **os.environ,
                VARIABLE: "full",
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            },
            start_new_session=True,
        )
        previous = signal.signal(signal.SIGTERM, on_sigterm)
        try:
            status = process.wait()
        finally:
            end_session(process)
            signal.signal(signal.SIGTERM, previous)
    if status == 0:
        _record(folder, settings, round(time.time() - started))
    if asked:
        raise StopAsked
    return status


def run_on(command: Sequence[str], folder: Path, settings: Sequence[str]) -> int:
    """`run`, and again after every end that a checkpoint can go on from, as long as there is a newer one each time."""
    reached = -1
    while True:
        status = run(command, folder, settings)
        step = read_step(folder / CHECKPOINT) or 0
        if status != RESUMABLE or step <= reached:
            return status
        reached = step


def _record(folder: Path, settings: Sequence[str], seconds: int) -> None:
    """Written whole or not at all, so that a run that was cut off is never taken for a finished one."""
    record = {"settings": list(settings), "seconds_of_last_attempt": seconds}
    write_whole(folder / FINISHED, json.dumps(record, indent=2) + "\n")
