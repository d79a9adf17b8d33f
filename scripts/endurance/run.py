"""Runs of a tiny model that are ended from outside, and whether two of them ended with the same weights."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from recipes.runner import run_environment
from srpo_verl import console, cpu
from srpo_verl.launch.sessions import end_session
from tests.support import TINY_SRPO, tiny_run

STEPS = 20
"""Some seconds: Ray lets a SIGTERM wait for one or two of them."""
LIMIT_S = 600.0
LOG = "srpo.jsonl"
"""Of an attempt, in the run's folder."""


def arguments_of(root: Path, steps: int = STEPS) -> list[str]:
    """Of a tiny run with a validation and a checkpoint every second step."""
    return [
        *("--config-path", "pkg://srpo_verl.config", "--config-name", "srpo"),
        *tiny_run(root),
        *TINY_SRPO,
        "trainer.test_freq=2",
        "trainer.save_freq=2",
        "trainer.max_actor_ckpt_to_keep=1",
        "trainer.total_epochs=100000",
        f"trainer.total_training_steps={steps}",
    ]


class Started:
    """The trainer in a session of its own, with log and checkpoints in a folder; ended with all its processes."""

    def __init__(self, arguments: Sequence[str], folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        # Sockets of Ray need a short path.
        self._ray = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
        environment = {**run_environment(folder / LOG, self._ray), console.VARIABLE: "full"}
        for variable in (cpu.PLATFORM_VARIABLE, cpu.ENGINE_VARIABLE):
            environment.pop(variable, None)
        command = [sys.executable, "-m", "verl.trainer.main_ppo", *arguments]
        command += [f"trainer.default_local_dir={folder}/checkpoints", f"hydra.run.dir={folder}/hydra"]
        with (folder / "stdout.log").open("ab") as output:
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    def end(self) -> None:
        """SIGKILL to every process."""
        end_session(self.process)
        shutil.rmtree(self._ray, ignore_errors=True)

    def wait(self, limit: float = LIMIT_S) -> int:
        """Exit status; nothing of the run is left. Raises TimeoutExpired."""
        try:
            return self.process.wait(limit)
        finally:
            self.end()

    def wait_until(self, condition: Callable[[], bool], limit: float = LIMIT_S) -> None:
        """Raises RuntimeError where the run ends before, TimeoutError where it takes too long."""
        deadline = time.monotonic() + limit
        while not condition():
            if self.process.poll() is not None:
                raise RuntimeError(f"the run ended before, with {self.process.returncode}")
            if time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(0.02)

    def terminate(self) -> None:
        """SIGTERM to the process that was started, as a scheduler sends it."""
        self.process.send_signal(signal.SIGTERM)


def weights(folder: Path, step: int = STEPS) -> dict[tuple[str, ...], torch.Tensor]:
    """Student and teacher of a checkpoint, this rank's parts."""
    found: dict[tuple[str, ...], torch.Tensor] = {}
    for part in ("actor", "srpo_teacher"):
        for path in sorted((folder / "checkpoints" / f"global_step_{step}" / part).glob("*_world_size_*_rank_*.pt")):
            if path.name.startswith(("model", "adapters")):
                state = torch.load(path, weights_only=True)
                for name, value in state.get("average", state).items():
                    found[part, path.name, name] = getattr(value, "_local_tensor", value)
    return found


def difference(one: Path, other: Path, step: int = STEPS) -> float:
    """Largest difference of any weight of student and teacher. Raises ValueError for other names."""
    ours, theirs = weights(one, step), weights(other, step)
    if not ours or ours.keys() != theirs.keys():
        raise ValueError(f"{one} and {other} hold other weights at step {step}")
    return max(float((value.float() - theirs[name].float()).abs().max()) for name, value in ours.items())
