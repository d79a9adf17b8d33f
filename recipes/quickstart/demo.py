"""The quickstart from nothing to a report: ``python -m recipes.quickstart.demo`` (or ``make demo``).

Makes the starting model and the data where they are missing, trains through veRL's own entry point on the CPU with a
line of progress per step, and draws the report. The command it runs is printed, so that it can be run by hand.
"""

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from recipes.quickstart import task
from recipes.quickstart.make_data import make_data
from recipes.runner import train
from recipes.small_model import Sizes, training_command
from srpo_verl.config import methods
from srpo_verl.report.__main__ import main as report

ROOT = Path(__file__).resolve().parents[2]
METHODS = methods.PAPER
HELD_OUT = "val-core/last_digit/acc/mean@1"


def make_starting_model(out: Path, steps: int) -> None:
    """Make the model of so many warm-up steps where it is missing; in a process of its own, for its thread count."""
    command = [sys.executable, "-m", "recipes.quickstart.make_model", "--out", str(out), "--steps", str(steps)]
    subprocess.run(command, cwd=ROOT, check=True)


def command_of(
    method: str, out: Path, run: Path, steps: int, seed: int, ranks: int, overrides: Sequence[str]
) -> list[str]:
    """The stock veRL command that trains the model of `out` on the data of `out`."""
    has_teacher = method != "grpo"
    return training_command(
        method,
        # Prompts of 49 tokens at most, with a demonstration.
        sizes=Sizes(prompt=32, response=40, teacher_prompt=96 if has_teacher else None),
        distils=has_teacher,
        model=out / "model",
        train=out / "data" / "train.parquet",
        validation=[out / "data" / "test.parquet"],
        reward=Path(task.__file__),
        run=run,
        steps=steps,
        seed=seed,
        extra=["trainer.project_name=quickstart", f"trainer.n_gpus_per_node={ranks}", *overrides],
    )


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "quickstart", help="folder of everything made")
    parser.add_argument("--method", choices=METHODS, default="srpo")
    parser.add_argument("--steps", type=int, default=50, help="training steps")
    parser.add_argument("--seed", type=int, default=0, help="of data order and rollouts; the model is made with 0")
    parser.add_argument("--ranks", type=int, default=1, help="FSDP ranks")
    parser.add_argument("--warmup-steps", type=int, default=1000, help="supervised steps that make the model")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds the training may take")
    parser.add_argument("overrides", nargs="*", help="further Hydra overrides")
    arguments = parser.parse_args(argv)

    out = arguments.out.resolve()
    model, data = out / "model", out / "data"
    run = out / "runs" / f"{arguments.method}-{time.strftime('%Y%m%d-%H%M%S')}"
    print(f"1/3 starting model in {model}", flush=True)
    make_starting_model(model, arguments.warmup_steps)
    make_data(data)
    command = command_of(
        arguments.method, out, run, arguments.steps, arguments.seed, arguments.ranks, arguments.overrides
    )
    print(f"2/3 training in {run}\n{shlex.join(command)}", flush=True)
    training = train(command, run, steps=arguments.steps, timeout=arguments.timeout, held_out=HELD_OUT)

    print("3/3 report", flush=True)
    report([str(run), "--out", str(run / "report")])
    held_out = {step: values[HELD_OUT] for step, values in sorted(training.metrics.items()) if HELD_OUT in values}
    first, last = min(held_out), max(held_out)
    print(f"held-out accuracy {held_out[first]:.3f} (step {first}) -> {held_out[last]:.3f} (step {last})")
    print(f"metrics     {run / 'metrics.jsonl'}\nlog         {run / 'training.log'}")
    print(f"checkpoint  {run / 'checkpoints' / f'global_step_{arguments.steps}'}\nreport      {run / 'report'}")


if __name__ == "__main__":
    main()
