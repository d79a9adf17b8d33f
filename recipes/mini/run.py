"""One run of the study: starting model, data, stock veRL in a session of its own, and its compact log."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from recipes.mini import logs, plan, verifier
from recipes.mini.make_data import COUNTS, make_data
from recipes.mini.plan import Cell
from recipes.mini.tasks import TASKS
from recipes.runner import end_session, run_environment
from recipes.small_model import Sizes, training_command

ROOT = Path(__file__).resolve().parents[2]
STALL_SECONDS = 1200.0
"""A run that logs nothing for so long hangs: many times a start or a step, on a machine that others use as well."""
TICK_SECONDS = 5.0

_model_locks: dict[Path, Lock] = defaultdict(Lock)


class RunFailed(Exception):
    """A run that did not end well; the message is the end of its output."""

    def __init__(self, message: str, reached: int = 0):
        super().__init__(message)
        self.reached = reached
        """The last step that was logged."""


def provenance() -> dict[str, Any]:
    """What a log says about where it comes from."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    changed = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=no"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    with open("/proc/cpuinfo") as stream:
        processors = [line.partition(":")[2].strip() for line in stream if line.startswith("model name")]
    return {
        "commit": commit.stdout.strip() + ("+changes" if changed.stdout.strip() else ""),
        "versions": {name: importlib.metadata.version(name) for name in ("verl", "torch", "transformers", "ray")},
        "hardware": f"{len(processors)} x {processors[0] if processors else 'unknown processor'}",
    }


def starting_model(task: str, seed: int, work: Path, steps: int) -> Path:
    """Folder of the task's model of this seed, made where it is missing; in a process of its own, with one thread."""
    out = work / "models" / f"{task}-{seed}"
    settings = ["--task", task, "--seed", str(seed), "--steps", str(steps)]
    command = [sys.executable, "-m", "recipes.mini.make_model", *settings, "--out", str(out)]
    with _model_locks[out]:
        made = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if made.returncode != 0:
        raise RunFailed(f"starting model {out.name}: exit code {made.returncode}\n{_tail(made.stderr)}")
    return out


def data_of(task: str, seed: int, work: Path) -> Path:
    """Folder of the task's parquet files of this seed."""
    out = work / "data" / f"{task}-{seed}"
    with _model_locks[out]:
        if not all((out / f"{split}.parquet").is_file() for split in COUNTS):
            make_data(TASKS[task], out, seed=seed)
    return out


def command_of(cell: Cell, model: Path, data: Path, run: Path) -> list[str]:
    """The stock veRL command of a cell."""
    task, method = TASKS[cell.task], plan.METHODS[cell.method]
    # Question, demonstration, and the words around them.
    teacher_prompt = task.max_prompt_tokens + task.max_response_tokens + 16
    return training_command(
        method.config,
        sizes=Sizes(task.max_prompt_tokens, task.max_response_tokens, teacher_prompt if method.has_teacher else None),
        distils=method.distils,
        model=model,
        train=data / "train.parquet",
        validation=[data / "validation.parquet", data / "test.parquet"],
        reward=Path(verifier.__file__),
        run=run,
        prompts=plan.PROMPTS,
        steps=cell.steps,
        seed=cell.seed,
        learning_rate=cell.learning_rate,
        test_every=plan.LONG_TEST_EVERY if cell.steps == plan.LONG_STEPS else plan.TEST_EVERY,
        extra=[
            "trainer.project_name=mini",
            "trainer.save_freq=-1",
            # Validation questions decoded together.
            f"actor_rollout_ref.rollout.max_num_seqs={COUNTS['test']}",
            *method.overrides,
        ],
    )


def wait(process: subprocess.Popen, progress: Path, stall_seconds: float = STALL_SECONDS) -> int | None:
    """Exit code of a process, or None where the file it logs to has not grown for so long.

    Time is counted in this process's own ticks, so that a study that is stopped (or a laptop that sleeps) finds its
    runs as it left them.
    """
    idle, size = 0.0, -1
    while idle < stall_seconds:
        try:
            return process.wait(timeout=TICK_SECONDS)
        except subprocess.TimeoutExpired:
            now = progress.stat().st_size if progress.exists() else 0
            idle = idle + TICK_SECONDS if now == size else 0.0
            size = now
    return None


def run_command(command: Sequence[str], run: Path) -> int | None:
    """Run the trainer in a session of its own and an emptied folder, its log in metrics.jsonl; see `wait`."""
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    # Sockets of Ray need a short path.
    with tempfile.TemporaryDirectory(prefix="ray-") as ray_directory, (run / "output.log").open("wb") as output:
        environment = {**run_environment(run / "metrics.jsonl", ray_directory), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command, cwd=run, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            return wait(process, run / "metrics.jsonl")
        finally:
            end_session(process)


def run_cell(cell: Cell, work: Path, results: Path, source: dict[str, Any], warmup_steps: int) -> float:
    """Make one run and write its log; returns its seconds, without the starting model's. Raises RunFailed."""
    model = starting_model(cell.task, cell.seed, work, warmup_steps)
    data = data_of(cell.task, cell.seed, work)
    run = work / "runs" / cell.name
    command = command_of(cell, model, data, run)
    started = time.monotonic()
    code = run_command(command, run)
    steps = _metrics(run / "metrics.jsonl")
    reached = max(steps, default=0)
    # Whole with its last evaluation: then it does not matter how the process ended (Ray may crash on its way out).
    if not any(name.startswith("val-core/") for name in steps.get(cell.steps, {})):
        how = f"nothing logged for {STALL_SECONDS:.0f} s" if code is None else f"exit code {code}"
        output_tail = _tail((run / "output.log").read_text(errors="replace"))
        raise RunFailed(f"{cell.name}: {how}, {reached} of {cell.steps} steps\n{output_tail}", reached)
    seconds = time.monotonic() - started
    places = ((str(work), "WORK"), (str(ROOT), "."), (sys.executable, "python"))
    start = json.loads((model / "warmup.json").read_text())
    header = {
        **source,
        "command": [_shorten(word, places) for word in command],
        "exit_code": code,
        "seconds": round(seconds),
        "start": {name: start[name] for name in ("accuracy_plain", "accuracy_demonstration", "seconds")},
    }
    logs.write(results / f"{cell.name}.jsonl", cell, header, steps)
    shutil.rmtree(run, ignore_errors=True)
    return seconds


def _tail(text: str, lines: int = 15) -> str:
    return "\n".join(text.splitlines()[-lines:])


def _shorten(word: str, places: Sequence[tuple[str, str]]) -> str:
    for place, name in places:
        word = word.replace(place, name)
    return word


def _metrics(path: Path) -> dict[int, dict[str, float]]:
    steps: dict[int, dict[str, float]] = {}
    if path.is_file():
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            steps.setdefault(entry["step"], {}).update(entry["data"])
    return steps
