"""One run of the mini suite on a GPU with vLLM or SGLang: ``python -m recipes.mini.on_gpu --task sums4 --steps 60``.

The same model, data, configuration and seeds as the study's run on the CPU, with another rollout engine, flash
attention and bf16 beneath: a run that learns within minutes, whose curve can be laid beside the study's. Nothing is
downloaded; the starting model is made on the processor where it is missing.
"""

import argparse
from pathlib import Path

from recipes.mini import plan
from recipes.mini.best import ACCURACY
from recipes.mini.make_model import Settings
from recipes.mini.plan import Cell
from recipes.mini.run import command_of, data_of, starting_model
from recipes.mini.tasks import TASKS
from recipes.runner import train

ROLLOUT = "actor_rollout_ref.rollout"
TIMEOUT = 3600


def overrides(engine: str) -> list[str]:
    """What turns the CPU's command into a GPU's; a model of half a million parameters needs little memory."""
    return [
        "platform=gpu",
        f"{ROLLOUT}.name={engine}",
        f"{ROLLOUT}.gpu_memory_utilization=0.2",
        f"{ROLLOUT}.enforce_eager=true",
        "trainer.n_gpus_per_node=1",
    ]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m recipes.mini.on_gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="sums4", choices=sorted(TASKS))
    parser.add_argument("--method", default="srpo", choices=sorted(plan.METHODS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--lr", type=float, default=3e-4, help="learning rate")
    parser.add_argument("--engine", default="vllm", choices=("vllm", "sglang"))
    parser.add_argument("--work", type=Path, default=Path("outputs/mini_gpu"), help="models, data, logs")
    args = parser.parse_args()
    work = args.work.resolve()
    cell = Cell("A", args.task, args.method, args.lr, args.seed, args.steps)
    model = starting_model(cell.task, cell.seed, work, Settings.steps)
    run = work / "runs" / cell.name
    command = [*command_of(cell, model, data_of(cell.task, cell.seed, work), run), *overrides(args.engine)]
    held_out = ACCURACY.format(source=f"mini/{cell.task}")
    training = train(command, run, steps=cell.steps, timeout=TIMEOUT, held_out=held_out)
    accuracy = {step: logged[held_out] for step, logged in sorted(training.metrics.items()) if held_out in logged}
    print("held-out accuracy by step:", "  ".join(f"{step}: {value:.2f}" for step, value in accuracy.items()))
    print(f"{cell.steps} steps in {training.seconds:.0f} s; log: {run / 'metrics.jsonl'}")


if __name__ == "__main__":
    main()
