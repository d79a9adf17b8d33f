"""Runs made to fail, and what the guards say of them: ``python -m recipes.mini.failing --case length --seed 0``.

Every case is the task of sums with SRPO and one thing wrong; `healthy` has nothing wrong. What the guards read of the
log goes to ``results/failing``. ``--table`` prints, for every log there, the alarms and the step at which validation
accuracy had lost ten points.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.mini import failing_rewards, verifier
from recipes.mini.run import ROOT, RunFailed, data_of, provenance, run_command, starting_model
from recipes.mini.tasks import TASKS
from recipes.small_model import Sizes, training_command
from srpo_verl.budget import mean_accuracy
from srpo_verl.guards import Alarm, Settings, review
from srpo_verl.guards.history import WATCHED
from srpo_verl.markdown import markdown_table

RESULTS = Path(__file__).resolve().parent / "results" / "failing"
LOST = 0.10
"""Loss of validation accuracy, against its best so far, that is called a collapse."""
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
    "healthy": Case("nothing wrong"),
    "rate": Case("learning rate ten times as high", learning_rate=10 * RATE),
    "rate_less": Case("learning rate four times as high", learning_rate=4 * RATE),
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
    path = results / f"{name}-seed{seed}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"case": name, "seed": seed, "exit_code": code, **provenance()})]
    lines += [json.dumps({"step": step, "data": kept}) for step, kept in _kept(log)]
    path.write_text("\n".join(lines) + "\n")
    return path


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
    """First of two validations in a row that are ten points below the best before them; one alone may be chance."""
    best, low = 0.0, None
    for step, metrics in steps:
        value = mean_accuracy(metrics)
        if value is None:
            continue
        if value <= best - LOST and low is not None:
            return low
        low = step if value <= best - LOST else None
        best = max(best, value)
    return None


def alarms(case: str, steps: Sequence[tuple[int, Mapping[str, Any]]]) -> list[Alarm]:
    """What the guards say of a run."""
    threshold = 2.0 if case == "threshold" else 0.5
    return review(steps, Settings(teacher_kind="ema", failed_only=True, success_threshold=threshold))


def table(paths: Sequence[Path]) -> str:
    """Markdown: a row for every log."""
    rows = []
    for path in paths:
        header, steps = read(path)
        raised = ", ".join(f"{alarm.guard} {alarm.step}" for alarm in alarms(header["case"], steps)) or "none"
        title, lost = CASES[header["case"]].title, collapse(steps)
        rows.append((title, str(header["seed"]), raised, "not lost" if lost is None else str(lost)))
    return markdown_table(("What is wrong", "seed", "alarms, at step", "ten points lost at step"), rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES, action="append", default=[], help="may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=ROOT / "outputs" / "mini", help="models, data, runs")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--model", type=Path, help="the starting model; default: made in --work")
    parser.add_argument("--warmup-steps", type=int, default=1000, help="of the starting model that is made")
    parser.add_argument("--table", action="store_true", help="print what the guards say of the logs in --results")
    arguments = parser.parse_args(argv)
    work = arguments.work.resolve()
    for name in arguments.case:
        model = arguments.model or starting_model(TASK, arguments.seed, work, arguments.warmup_steps)
        print(run_case(name, arguments.seed, model.resolve(), work, arguments.results.resolve()), flush=True)
    if arguments.table:
        print(table(sorted(arguments.results.glob("*.jsonl"))))


if __name__ == "__main__":
    main()
