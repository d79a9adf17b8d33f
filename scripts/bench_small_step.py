"""Seconds per phase of the quickstart's training step: ``python -m scripts.bench_small_step``.

Trains through veRL's own entry point, as the quickstart does, on a starting model of a short warm-up, and reports
veRL's timings. Meant for an idle machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from recipes.quickstart.demo import HELD_OUT, METHODS, ROOT, command_of, make_starting_model
from recipes.quickstart.make_data import make_data
from recipes.runner import train
from scripts.bench.spread import spread

PHASES = {
    "gen": "rollouts and rewards",
    "old_log_prob": "old log-probs",
    "adv": "advantages",
    "update_actor": "update, teacher pass included",
    "srpo_teacher": "  of which teacher pass and EMA",
    "update_weights": "weights to the rollout engine",
    "step": "step",
}
"""veRL's `timing_s/...`: what is timed. The step holds routing, balancing and transfers besides the phases above."""


def summarize(metrics: Mapping[int, Mapping[str, float]], skip: int) -> list[tuple[str, float, float, float]]:
    """(phase, median, 20th percentile, 80th percentile) in seconds over the steps after the first `skip`."""
    steps = [metrics[step] for step in sorted(metrics) if step > skip]
    rows = []
    for name, label in PHASES.items():
        seconds = [step[f"timing_s/{name}"] for step in steps if f"timing_s/{name}" in step]
        if seconds:
            rows.append((label, *spread(seconds)))
    return rows


def processor_time(so_far: Mapping[int, float], skip: int) -> float:
    """Mean of the steps after the first `skip`, from what all processes had used at the end of each step."""
    first, last = skip, max(so_far)
    return (so_far[last] - so_far[first]) / (last - first)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "bench_small_step", help="folder of the run")
    parser.add_argument("--method", choices=METHODS, default="srpo")
    parser.add_argument("--steps", type=int, default=30, help="training steps")
    parser.add_argument("--skip", type=int, default=5, help="first steps that are not counted, at least 1")
    parser.add_argument("--ranks", type=int, default=1, help="FSDP ranks")
    parser.add_argument("--warmup-steps", type=int, default=150, help="supervised steps that make the model")
    parser.add_argument("--timeout", type=float, default=900, help="seconds the training may take")
    parser.add_argument("overrides", nargs="*", help="further Hydra overrides")
    args = parser.parse_args(arguments)
    if not 1 <= args.skip < args.steps:
        parser.error(f"--skip {args.skip}: at least the first step is left out, and not all {args.steps}")

    out = args.out.resolve()
    run = out / f"run-{args.method}"
    make_starting_model(out / "model", args.warmup_steps)
    make_data(out / "data")
    (run / "metrics.jsonl").unlink(missing_ok=True)
    steps_only = [
        "trainer.val_before_train=false",
        "trainer.test_freq=-1",
        "trainer.save_freq=-1",
        "trainer.resume_mode=disable",
    ]
    command = command_of(args.method, out, run, args.steps, 0, args.ranks, [*steps_only, *args.overrides])
    training = train(command, run, steps=args.steps, timeout=args.timeout, held_out=HELD_OUT)

    print(f"\nseconds: median of {args.steps - args.skip} steps, 20th and 80th percentile")
    for label, median, low, high in summarize(training.metrics, args.skip):
        print(f"{label:34} {median:6.3f}  ({low:.3f} to {high:.3f})")
    print(f"{'processor time, all processes':34} {processor_time(training.processor_seconds, args.skip):6.3f}  (mean)")


if __name__ == "__main__":
    main()
