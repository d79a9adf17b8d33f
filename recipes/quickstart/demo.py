"""The quickstart from nothing to a report: ``python -m recipes.quickstart.demo`` (or ``make demo``).

Makes the starting model and the data where they are missing, trains through veRL's own entry point on the CPU with a
line of progress per step, and draws the report. The command it runs is printed, so that it can be run by hand.
"""

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

from recipes.quickstart import task
from recipes.quickstart.make_data import make_data
from recipes.runner import train
from recipes.small_model import Sizes, training_command
from srpo_verl.report.__main__ import main as report

ROOT = Path(__file__).resolve().parents[2]
METHODS = ("srpo", "grpo", "sdpo", "srpo_no_dw", "advantage_mix", "sdpo_correct_only", "sdpo_failed_only")
HELD_OUT = "val-core/last_digit/acc/mean@1"


def sizes(method: str) -> Sizes:
    """Prompts of 49 tokens at most, with a demonstration."""
    return Sizes(prompt=32, response=40, teacher_prompt=None if method == "grpo" else 96)


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
    # In a process of its own: it wants torch's thread count for itself.
    subprocess.run(
        [
            sys.executable,
            "-m",
            "recipes.quickstart.make_model",
            "--out",
            model,
            "--steps",
            str(arguments.warmup_steps),
        ],
        cwd=ROOT,
        check=True,
    )
    make_data(data)
    command = training_command(
        arguments.method,
        sizes=sizes(arguments.method),
        distils=arguments.method != "grpo",
        model=model,
        train=data / "train.parquet",
        validation=[data / "test.parquet"],
        reward=Path(task.__file__),
        run=run,
        steps=arguments.steps,
        seed=arguments.seed,
        extra=[
            "trainer.project_name=quickstart",
            f"trainer.n_gpus_per_node={arguments.ranks}",
            *arguments.overrides,
        ],
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
