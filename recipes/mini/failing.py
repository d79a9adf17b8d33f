"""Runs made to fail, and what the guards say of them: ``python -m recipes.mini.failing --seeds 0 1 2``.

Every case is the task of sums with SRPO and one thing wrong. What the guards read of the log goes to
``results/failing``; a run that has its log is not made again. ``--table`` prints, for every log there, the alarms and
the step at which validation accuracy had lost ten points.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from recipes.mini import failing_rewards, verifier
from recipes.mini.losses import first_loss
from recipes.mini.run import ROOT, RunFailed, data_of, provenance, run_command, starting_model
from recipes.mini.tasks import TASKS
from recipes.small_model import Sizes, training_command
from srpo_verl.budget import mean_accuracy
from srpo_verl.guards import Alarm, Settings, review
from srpo_verl.guards.history import WATCHED
from srpo_verl.markdown import markdown_table

RESULTS = Path(__file__).resolve().parent / "results" / "failing"
TASK, STEPS, RATE = "sums4", 40, 5e-4


@dataclass(frozen=True)
class Case:
    """What is wrong."""

    title: str
    learning_rate: float = RATE
    steps: int = STEPS
    overrides: tuple[str, ...] = ()


def _reward(name: str) -> tuple[str, ...]:
    return (
        f"reward.custom_reward_function.path={failing_rewards.__file__}",
        f"reward.custom_reward_function.name={name}",
    )


CASES = {
    "rate": Case(
        "learning rate four times as high, reached after 40 steps",
        4 * RATE,
        80,
        overrides=("actor_rollout_ref.actor.optim.lr_warmup_steps=40",),
    ),
    "rate_at_once": Case("the same, at once", 4 * RATE),
    "length": Case("reward that pays for length", RATE / 2, 60, overrides=_reward("longer_is_better")),
    "shortness": Case("reward that pays for shortness", RATE / 5, 60, overrides=_reward("shorter_is_better")),
    "shortness_fast": Case("the same, five times as fast", overrides=_reward("shorter_is_better")),
    "threshold": Case("threshold above every reward", overrides=("srpo.success_threshold=2",)),
}


def command_of(case: Case, seed: int, model: Path, data: Path, run: Path) -> list[str]:
    """The stock veRL command of a case."""
    task = TASKS[TASK]
    teacher_prompt = task.max_prompt_tokens + task.max_response_tokens + 16
    return training_command(
        "srpo",
        sizes=Sizes(task.max_prompt_tokens, task.max_response_tokens, teacher_prompt),
        model=model,
        train=data / "train.parquet",
        validation=[data / "validation.parquet"],
        reward=Path(verifier.__file__),
        run=run,
        steps=case.steps,
        seed=seed,
        learning_rate=case.learning_rate,
        test_every=2,
        extra=["trainer.project_name=mini", "trainer.save_freq=-1", *case.overrides],
    )


def run_case(name: str, seed: int, model: Path, work: Path, results: Path) -> Path:
    """Make one run and write what the guards read of its log. Raises RunFailed where it logs no step."""
    run = work / "runs" / f"failing-{name}-{seed}"
    code = run_command(command_of(CASES[name], seed, model, data_of(TASK, seed, work), run), run)
    log = run / "metrics.jsonl"
    if not log.exists() or log.stat().st_size == 0:
        raise RunFailed(f"{name}, seed {seed}: exit code {code}; see {run / 'output.log'}")
    path = _path(name, seed, results)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"case": name, "seed": seed, "exit_code": code, **provenance()})]
    lines += [json.dumps({"step": step, "data": kept}) for step, kept in _kept(log)]
    path.write_text("\n".join(lines) + "\n")
    return path


def _path(name: str, seed: int, results: Path) -> Path:
    return results / f"{name}-seed{seed}.jsonl"


def _kept(log: Path) -> list[tuple[int, dict[str, Any]]]:
    """The watched metrics and the validations, in five significant digits."""
    found = []
    for line in log.read_text().splitlines():
        entry = json.loads(line)
        data = {name: value for name, value in entry["data"].items() if name in WATCHED or name.startswith("val-core")}
        found.append((entry["step"], {k: None if v is None else float(f"{v:.5g}") for k, v in data.items()}))
    return found


def read(path: Path) -> tuple[dict[str, Any], list[tuple[int, dict[str, Any]]]]:
    """Header and steps of a log."""
    header, *lines = [json.loads(line) for line in path.read_text().splitlines()]
    return header, [(line["step"], line["data"]) for line in lines]


def collapse(steps: Sequence[tuple[int, Mapping[str, Any]]]) -> int | None:
    """`first_loss` of the means of three validations in a row: of 128 questions one alone is off by four points."""
    found = [(step, mean_accuracy(metrics)) for step, metrics in steps]
    values = [(step, value) for step, value in found if value is not None]
    return first_loss(
        [
            (around[1][0], sum(value for _, value in around) / 3)
            for around in zip(values, values[1:], values[2:], strict=False)
        ]
    )


def alarms(case: str, steps: Sequence[tuple[int, Mapping[str, Any]]]) -> list[Alarm]:
    """What the guards say of a run."""
    threshold = 2.0 if case == "threshold" else 0.5
    return review(steps, Settings(teacher_kind="ema", failed_only=True, success_threshold=threshold))


def table(paths: Sequence[Path]) -> str:
    """Markdown: a row for every log, by case."""
    logs = sorted((read(path) for path in paths), key=lambda log: (list(CASES).index(log[0]["case"]), log[0]["seed"]))
    header = ("What is wrong", "seed", "alarms, at step", "ten points lost at step", "first alarm ahead by")
    return markdown_table(header, [_row(head, steps) for head, steps in logs])


def _row(header: Mapping[str, Any], steps: Sequence[tuple[int, Mapping[str, Any]]]) -> tuple[str, ...]:
    raised, lost = alarms(header["case"], steps), collapse(steps)
    words = ", ".join(f"{alarm.guard} {alarm.step}" for alarm in raised) or "none"
    ahead = "" if lost is None or not raised else str(lost - min(alarm.step for alarm in raised))
    return CASES[header["case"]].title, str(header["seed"]), words, "not lost" if lost is None else str(lost), ahead


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", choices=CASES, nargs="+", default=list(CASES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[], help="runs to make; none: only the tables")
    parser.add_argument("--work", type=Path, default=ROOT / "outputs" / "mini", help="models, data, runs")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--model", type=Path, help="the starting model; default: made in --work")
    parser.add_argument("--warmup-steps", type=int, default=1000, help="of the starting model that is made")
    parser.add_argument("--table", action="store_true", help="print what the guards say of the logs in --results")
    arguments = parser.parse_args(argv)
    work = arguments.work.resolve()
    for seed, name in product(arguments.seeds, arguments.cases):
        if not _path(name, seed, arguments.results).is_file():
            model = arguments.model or starting_model(TASK, seed, work, arguments.warmup_steps)
            print(run_case(name, seed, model.resolve(), work, arguments.results.resolve()), flush=True)
    if arguments.table:
        print(table(sorted(arguments.results.glob("*.jsonl"))))


if __name__ == "__main__":
    main()
