"""Processes of a run: Ray's daemons leave its process group, and not its session."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import psutil


def processes(leader: int) -> Iterator[psutil.Process]:
    """Processes of the session that `leader` leads or led."""
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == leader:
                yield process
        except (ProcessLookupError, PermissionError):
            continue  # it ended by itself meanwhile, or is nobody's of this run


def end_session(process: subprocess.Popen) -> None:
    """End whatever is left of the session that the process was started in."""
    for member in processes(process.pid):
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
