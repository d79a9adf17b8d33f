"""What takes hours: ``python -m scripts.endurance kills --out DIR`` and ``... soak --out DIR``.

kills: runs of a tiny model on the CPU, each killed with SIGKILL at random moments until it ends, compared with one
that was not killed. soak: one long run, with the memory, file descriptors and threads of every process and the seconds
of every step, early and late. Both go on where they were when they are started again.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import torch

from recipes.runner import run_environment
from srpo_verl import console, cpu
from srpo_verl.launch.sessions import end_session, processes
from tests.support import TINY_SRPO, read_metrics, tiny_run

STEPS = 8
LIMIT_S = 600.0
GROWTH = 0.05
"""Growth that a soak allows, of memory, descriptors, threads and seconds per step."""
SETTLED = 200
"""Steps after which nothing may grow."""
SAMPLE_S = 10.0


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
        environment = {**run_environment(folder / "srpo.jsonl", self._ray), console.VARIABLE: "full"}
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


def killed_run(arguments: Sequence[str], folder: Path, rng: random.Random, mean: float) -> list[float]:
    """Start, kill, start again, until the run ends; the seconds after which it was killed. Raises RuntimeError.

    Args:
        mean: seconds from a start to a kill. About those of a run, so that kills fall into starts, steps and saves.
    """
    kills: list[float] = []
    while True:
        run, after = Started(arguments, folder), rng.expovariate(1 / mean)
        try:
            status = run.process.wait(after)
        except subprocess.TimeoutExpired:
            kills.append(round(after, 2))
            continue
        finally:
            run.end()
        if status != 0:
            raise RuntimeError(f"{folder}: exit status {status} after the kills at {kills}")
        return kills


def kills(out: Path, wanted: int, seed: int, mean: float) -> None:
    """Runs until there were so many kills in all; prints the table of all that are on record."""
    arguments, record = arguments_of(out / "inputs"), out / "kills.jsonl"
    whole = out / "whole"
    if not (whole / "checkpoints" / f"global_step_{STEPS}" / "srpo_checkpoint.json").exists():
        shutil.rmtree(whole, ignore_errors=True)
        if Started(arguments, whole).wait() != 0:
            raise RuntimeError(f"{whole}: the run that is not killed has failed; see its stdout.log")
    while True:
        done = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
        print(_kill_line(done), flush=True)
        if sum(len(run["kills"]) for run in done) >= wanted:
            return
        number = len(done)
        folder = out / f"run-{number}"
        shutil.rmtree(folder, ignore_errors=True)
        found = killed_run(arguments, folder, random.Random(f"{seed}-{number}"), mean)
        with record.open("a") as stream:
            print(json.dumps({"run": number, "kills": found, "difference": difference(folder, whole)}), file=stream)
        shutil.rmtree(folder)


def _kill_line(done: Sequence[dict]) -> str:
    count = sum(len(run["kills"]) for run in done)
    largest = max((run["difference"] for run in done), default=0.0)
    return f"{len(done)} runs ended after {count} kills; largest difference of a weight: {largest:.2g}"


def soak(out: Path, steps: int) -> None:
    """One run, sampled; prints what grew."""
    arguments = [*arguments_of(out / "inputs", steps), "trainer.test_freq=50", "trainer.save_freq=50"]
    samples, folder = out / "samples.jsonl", out / "run"
    attempt = 1 + max((json.loads(line)["attempt"] for line in _lines(samples)), default=0)
    run, log = Started(arguments, folder), folder / "srpo.jsonl"
    try:
        while run.process.poll() is None:
            time.sleep(SAMPLE_S)
            step = sum(1 for _ in _lines(log))
            with samples.open("a") as stream:
                print(json.dumps({"attempt": attempt, "step": step, "of": _measure(run.process.pid)}), file=stream)
    finally:
        run.end()
    print(growth(samples, folder))


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _measure(leader: int) -> dict[str, list[float]]:
    """By process: memory in MiB that is its own, descriptors, threads."""
    found: dict[str, list[float]] = {}
    for process in processes(leader):
        try:
            with process.oneshot():
                name = " ".join(process.cmdline()).split(" ")[0].rsplit("/", 1)[-1]
                own = process.memory_full_info().uss / 2**20
                found[f"{name} {process.pid}"] = [own, process.num_fds(), process.num_threads()]
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def growth(samples: Path, folder: Path) -> str:
    """A line for everything that is larger at the end of the last attempt than after SETTLED steps."""
    read = [json.loads(line) for line in _lines(samples)]
    attempt = max(sample["attempt"] for sample in read)
    series: dict[str, list[list[float]]] = defaultdict(list)
    for sample in read:
        if sample["attempt"] == attempt and sample["step"] > SETTLED:
            for name, values in sample["of"].items():
                series[name].append(values)
    lines = []
    for name, values in sorted(series.items()):
        part = max(1, len(values) // 5)
        for index, what in enumerate(("MiB", "descriptors", "threads")):
            first = statistics.median(value[index] for value in values[:part])
            last = statistics.median(value[index] for value in values[-part:])
            if last > (1 + GROWTH) * first + (1 if index else 2):
                lines.append(f"GREW {name}: {first:.0f} to {last:.0f} {what}")
    seconds = [m["timing_s/step"] for step, m in sorted(read_metrics(folder / "srpo.jsonl").items()) if step > SETTLED]
    if seconds:
        part = max(1, len(seconds) // 5)
        first, last = statistics.median(seconds[:part]), statistics.median(seconds[-part:])
        lines.append(f"seconds per step: {first:.3f} to {last:.3f}" + (" GREW" if last > (1 + GROWTH) * first else ""))
    return "\n".join([f"{len(series)} processes after step {SETTLED} of attempt {attempt}", *lines])


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.endurance", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    of_kills = commands.add_parser("kills", help="SIGKILL at random moments")
    of_kills.add_argument("--kills", type=int, default=200)
    of_kills.add_argument("--seed", type=int, default=0)
    of_kills.add_argument("--mean-s", type=float, default=40.0, help="seconds to a kill; about those of a run")
    of_soak = commands.add_parser("soak", help="a long run, watched")
    of_soak.add_argument("--steps", type=int, default=2000)
    for one in (of_kills, of_soak):
        one.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args(argv)
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    # However this process ends, the run's end with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    if arguments.command == "kills":
        kills(out, arguments.kills, arguments.seed, arguments.mean_s)
    else:
        soak(out, arguments.steps)


if __name__ == "__main__":
    main()
