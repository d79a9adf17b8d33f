"""Runs veRL's trainer for the demos: progress by the step, metrics, peak memory, and no process left over."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from srpo_verl.console import VARIABLE
from srpo_verl.launch.sessions import end_session, processes

# A sample of processes this large costs the kernel some 0.2 s.
MEMORY_INTERVAL_S = 5.0


@dataclass
class Training:
    """What a finished run left."""

    metrics: dict[int, dict[str, float]] = field(default_factory=dict)  # by step
    processor_seconds: dict[int, float] = field(default_factory=dict)  # of all processes up to a step
    peak_bytes: int = 0  # of all processes together
    seconds: float = 0.0


def train(command: list[str], run: Path, *, steps: int, timeout: float, held_out: str) -> Training:
    """Run the trainer in `run`, print its progress, and return what it logged.

    A trainer that fails or hangs ends the program with the end of its log; all its processes are ended with it.

    Args:
        command: the trainer's, which ends by itself after `steps` steps.
        run: folder of the log (training.log) and the metrics (metrics.jsonl).
        steps: shown in the progress only.
        timeout: in seconds.
        held_out: name of the metric that is shown as held-out accuracy.
    """
    run.mkdir(parents=True, exist_ok=True)
    log, metrics_file = run / "training.log", run / "metrics.jsonl"
    # Sockets of Ray need a short path.
    ray_directory = tempfile.TemporaryDirectory(prefix="ray-")
    environment = run_environment(metrics_file, ray_directory.name)
    training = Training()
    started = time.monotonic()
    # Ended from outside (a time limit, say), this process has to end the trainer's before it goes.
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(f"ended by SIGTERM; the trainer's log: {log}"))
    with ray_directory, log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=run, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        memory = _MemoryWatch(process.pid)
        memory.start()
        try:
            for entry in _follow(metrics_file, process, started + timeout):
                training.metrics.setdefault(entry["step"], {}).update(entry["data"])
                training.processor_seconds[entry["step"]] = sum(map(_processor_seconds, processes(process.pid)))
                print(_progress(entry["step"], steps, entry["data"], held_out, started), flush=True)
        except TimeoutError:
            sys.exit(f"the trainer did not finish within {timeout:.0f} s; its log: {log}\n{_tail(log)}")
        finally:
            memory.stop()
            end_session(process)
            signal.signal(signal.SIGTERM, previous)
    if process.returncode != 0:
        sys.exit(f"the trainer ended with exit code {process.returncode}; its log: {log}\n{_tail(log)}")
    training.peak_bytes = memory.peak_bytes
    training.seconds = time.monotonic() - started
    return training


def run_environment(metrics_file: Path, ray_directory: str) -> dict[str, str]:
    """Environment of a run of its own: its metrics file, a Ray instance that no other shares, no model hub."""
    environment = {
        **os.environ,
        "VERL_FILE_LOGGER_PATH": str(metrics_file),
        "RAY_TMPDIR": ray_directory,
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_HUB_OFFLINE": "1",
        # The log keeps everything; progress is this module's.
        VARIABLE: "full",
    }
    environment.pop("RAY_ADDRESS", None)
    return environment


def _follow(path: Path, process: subprocess.Popen, deadline: float) -> Iterator[dict]:
    """Entries of a growing JSON-lines file until the process ends; raises TimeoutError at the deadline."""
    position = 0
    while True:
        ended = process.poll() is not None
        if path.exists():
            with path.open("rb") as stream:
                stream.seek(position)
                for line in stream:
                    if not line.endswith(b"\n"):
                        break
                    position += len(line)
                    yield json.loads(line)
        if ended:
            return
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.5)


def _progress(step: int, steps: int, metrics: dict[str, float], held_out: str, started: float) -> str:
    """One line of progress."""
    parts = [f"step {step:>3}/{steps}"]
    if "srpo/frac_correct" in metrics:
        parts.append(
            f"training accuracy {metrics['srpo/frac_correct']:.2f}  distilled {metrics['srpo/frac_sdpo']:4.0%}  "
            f"response {metrics['response_length/mean']:4.1f} tokens  {metrics['timing_s/step']:4.1f} s/step"
        )
    if held_out in metrics:
        parts.append(f"HELD-OUT ACCURACY {metrics[held_out]:.2f}")
    return "  ".join(parts) + f"  [{time.monotonic() - started:4.0f} s]"


def _processor_seconds(process: psutil.Process) -> float:
    """What a process has used so far, its children that have ended included."""
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return times.user + times.system + times.children_user + times.children_system


class _MemoryWatch(threading.Thread):
    """Peak memory of a session, as proportional set sizes: pages that processes share count once."""

    def __init__(self, leader: int) -> None:
        super().__init__(daemon=True)
        self.peak_bytes = 0
        self._leader = leader
        self._ended = threading.Event()

    def run(self) -> None:
        """Sample until stopped."""
        while not self._ended.wait(MEMORY_INTERVAL_S):
            self.peak_bytes = max(self.peak_bytes, sum(map(_memory_bytes, processes(self._leader))))

    def stop(self) -> None:
        """End sampling."""
        self._ended.set()
        self.join()


def _memory_bytes(process: psutil.Process) -> int:
    try:
        return process.memory_full_info().pss
    except psutil.Error:
        return 0  # it ended meanwhile


def _tail(log: Path, lines: int = 40) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
