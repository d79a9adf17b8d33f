"""One long run: memory, file descriptors and threads of every process, and the seconds of every step."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import pandas as pd
import psutil
from matplotlib.figure import Figure

from scripts.endurance.run import LOG, Started, arguments_of
from srpo_verl.launch.sessions import processes
from tests.support import read_metrics

GROWTH = 0.05
"""Growth that is allowed, of memory, descriptors, threads and seconds per step."""
SETTLED = 200
"""Steps after which nothing may grow."""
SAMPLE_S = 20.0
COLUMNS = ("attempt", "step", "process", "pid", "mib", "descriptors", "threads")
"""Of samples.csv: memory is what the process does not share."""
MEASURES = ("mib", "descriptors", "threads")


def soak(out: Path, steps: int) -> None:
    """Run, or go on with, so many steps and look at the processes meanwhile; writes samples, seconds and a figure."""
    arguments = [*arguments_of(out / "inputs", steps), "trainer.test_freq=50", "trainer.save_freq=50"]
    samples, folder = out / "samples.csv", out / "run"
    attempt = 1 + (int(pd.read_csv(samples).attempt.max()) if samples.exists() else 0)
    run, log = Started(arguments, folder), folder / LOG
    try:
        while run.process.poll() is None:
            time.sleep(SAMPLE_S)
            step = max(read_metrics(log), default=0) if log.exists() else 0
            _append(samples, [(attempt, step, *row) for row in _measure(run.process.pid)])
    finally:
        run.end()
    seconds = _seconds(folder)
    seconds.to_csv(out / "seconds.csv", index=False)
    table = pd.read_csv(samples)
    draw(table, seconds, out / "soak.svg")
    print("\n".join(growth(table, seconds)))


def _append(path: Path, rows: list[tuple]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as stream:
        writer = csv.writer(stream)
        if new:
            writer.writerow(COLUMNS)
        writer.writerows(rows)


def _measure(leader: int) -> list[tuple[str, int, float, int, int]]:
    """Process, its number, MiB of its own, descriptors, threads."""
    found = []
    for process in processes(leader):
        try:
            with process.oneshot():
                # Ray writes what an actor does behind its class: ray::WorkerDict.update_actor.
                name = " ".join(process.cmdline()).split(" ")[0].rsplit("/", 1)[-1].partition(".")[0]
                own = round(process.memory_full_info().uss / 2**20, 1)
                found.append((name, process.pid, own, process.num_fds(), process.num_threads()))
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def _seconds(folder: Path) -> pd.DataFrame:
    """Step and seconds, of all attempts."""
    found: dict[int, float] = {}
    for log in [*sorted(folder.glob(f"attempt-*/{LOG}")), folder / LOG]:
        found |= {
            step: values["timing_s/step"] for step, values in read_metrics(log).items() if "timing_s/step" in values
        }
    return pd.DataFrame(sorted(found.items()), columns=["step", "seconds"])


def growth(samples: pd.DataFrame, seconds: pd.DataFrame) -> list[str]:
    """What is larger in the last fifth of the last attempt than in the first fifth after SETTLED steps: medians."""
    last = samples[samples.attempt == samples.attempt.max()]
    settled = last[last.step > SETTLED]
    lines = [f"{settled.pid.nunique()} processes after step {SETTLED} of attempt {last.attempt.max()}"]
    for (pid, name), values in settled.groupby(["pid", "process"]):
        for measure in MEASURES:
            first, end = _ends(values[measure])
            # A megabyte, a descriptor, a thread more or less is no trend.
            if end > (1 + GROWTH) * first + 1:
                lines.append(f"GREW {name} {pid}: {first:.0f} to {end:.0f} {measure}")
    first, end = _ends(seconds[seconds.step > SETTLED].seconds)
    return [*lines, f"seconds per step: {first:.3f} to {end:.3f}" + (" GREW" if end > (1 + GROWTH) * first else "")]


def _ends(values: pd.Series) -> tuple[float, float]:
    part = max(1, len(values) // 5)
    return float(values.iloc[:part].median()), float(values.iloc[-part:].median())


def draw(samples: pd.DataFrame, seconds: pd.DataFrame, path: Path) -> None:
    """Over the steps: MiB of every process, descriptors and threads of all, seconds per step."""
    figure = Figure(figsize=(7, 7), layout="constrained")
    memory, counts, time_axis = figure.subplots(3, sharex=True)
    last = samples[samples.attempt == samples.attempt.max()]
    for (_, name), values in last.groupby(["pid", "process"]):
        if values.mib.max() > 50:
            memory.plot(values.step, values.mib, label=name, linewidth=1)
    memory.set_ylabel("MiB of each process")
    memory.legend(fontsize=6, ncols=3)
    together = last.groupby("step")[["descriptors", "threads"]].sum()
    counts.plot(together.index, together, linewidth=1, label=list(together.columns))
    counts.set_ylabel("of all processes")
    counts.legend(fontsize=7)
    time_axis.plot(seconds.step, seconds.seconds, ",", color="#7f7f7f")
    time_axis.plot(seconds.step, seconds.seconds.rolling(50).median(), linewidth=1)
    time_axis.set_ylabel("seconds per step, median of 50")
    time_axis.set_ylim(0, 3 * seconds.seconds.median())
    time_axis.set_xlabel("training step")
    for axis in (memory, counts):
        axis.set_ylim(bottom=0)
    figure.savefig(path, metadata={"Date": None})
