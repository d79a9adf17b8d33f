"""Run logs as veRL's `file` logger writes them, with curves like those of real runs."""

import json
from pathlib import Path

import numpy as np

from srpo_verl.budget import TrainingRecord, mean_accuracy
from srpo_verl.config.schema import default_values
from srpo_verl.report.loader import load_runs
from srpo_verl.run_files import record_path, sample_path, write_json

SOURCE = "sciknoweval"


def training_line(step: int, **metrics: float) -> dict:
    """One training step; `metrics` in place of the defaults, with "__" for "/"."""
    data = {
        "srpo/frac_correct": 0.5,
        "srpo/frac_sdpo": 0.4,
        "srpo/frac_grpo": 0.6,
        "srpo/frac_teacher_available": 0.8,
        "srpo/teacher_entropy_mean": 0.3,
        "srpo/student_teacher_divergence": 0.02,
        "critic/rewards/mean": 0.5,
        "actor/entropy": 0.3,
        "response_length/mean": 300.0,
        "timing_s/step": 80.0,
        "timing_s/srpo_teacher": 8.0,
        "training/global_step": step,
    }
    data.update({name.replace("__", "/"): value for name, value in metrics.items()})
    return {"step": step, "data": data}


def validation(accuracy: float, source: str = SOURCE, samples: int = 16) -> dict[str, float]:
    """The metrics of one validation."""
    return {
        f"val-core/{source}/acc/mean@{samples}": accuracy,
        f"val-core/{source}/acc/best@{samples}/mean": 1.0,
        f"val-aux/{source}/acc/std@{samples}": 0.1,
        f"val-aux/{source}/reward/mean@{samples}": 0.0,
    }


def write(path: Path, lines: list[dict]) -> Path:
    """Write JSON lines, the last one complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def realistic(steps: int, peak: float, seconds: float, seed: int, collapse_at: int | None = None) -> list[dict]:
    """A run that learns, its distilled share falling, and that may collapse late; validated every five steps."""
    noise = np.random.default_rng(seed)
    lines = [{"step": 0, "data": validation(0.41)}]
    for step in range(1, steps + 1):
        learnt = 1 - np.exp(-step / 60)
        accuracy = 0.41 + (peak - 0.41) * learnt
        length, entropy = 320 - 60 * learnt, 0.35 * np.exp(-step / 250) + 0.06
        if collapse_at is not None and step >= collapse_at:
            late = step - collapse_at + 1
            accuracy, length, entropy = max(0.07, accuracy - 0.02 * late), min(1700, 700 + 30 * late), 0.05
        shown = float(np.clip(accuracy + noise.normal(0, 0.03), 0, 1))
        line = training_line(
            step,
            srpo__frac_correct=shown,
            srpo__frac_sdpo=(1 - shown) * 0.75,
            srpo__frac_grpo=1 - (1 - shown) * 0.75,
            srpo__frac_teacher_available=0.85 + noise.normal(0, 0.02),
            srpo__teacher_entropy_mean=float(0.35 * np.exp(-step / 200) + abs(noise.normal(0.1, 0.01))),
            srpo__student_teacher_divergence=float(0.05 * np.exp(-step / 80) + abs(noise.normal(0.01, 0.001))),
            actor__entropy=float(entropy),
            response_length__mean=float(length + noise.normal(0, 12)),
            timing_s__step=float(seconds * (1 - 0.05 * learnt) + noise.normal(0, 2)),
        )
        if step % 5 == 0:
            line["data"] |= validation(float(np.clip(accuracy + noise.normal(0, 0.01), 0, 1)))
            line["data"]["timing_s/testing"] = 20.0
        lines.append(line)
    return lines


def one_run(directory: Path, lines: list[dict], name: str = "srpo"):
    """The run in `lines`, written and read back."""
    write(directory / "srpo" / f"{name}.jsonl", lines)
    runs, notes = load_runs([directory])
    assert len(runs) == 1
    return runs[0], notes


def counted_by_the_run(lines, budgets=(1, 5, 10), record=None):
    """Add what a run of this package logs to lines with `timing_s/step` and validations; returns the run's record."""
    record = record or TrainingRecord()
    for line in lines:
        data = line["data"]
        if "timing_s/step" in data:
            record.add_step(data["timing_s/step"] - data.get("timing_s/save_checkpoint", 0.0))
            data["srpo/hours"] = record.hours
        accuracy = mean_accuracy(data)
        if accuracy is not None:
            record.add_validation(line["step"], accuracy)
            data |= record.metrics(budgets)
    return record


def record(
    log: Path,
    *,
    started: str = "2026-01-01T00:00:00+00:00",
    seed: int = 0,
    lr: float = 5e-4,
    checkpoints: str | None = None,
    **srpo,
) -> None:
    """The record that a run writes beside its log; keyword arguments replace values of the `srpo` group."""
    config = {
        "srpo": {**default_values(), **srpo},
        "data": {"seed": seed, "train_files": "data/chemistry/train.parquet"},
        "actor_rollout_ref": {
            "model": {"path": "Qwen/Qwen3-8B"},
            "actor": {"optim": {"lr": lr}},
            "rollout": {"seed": seed},
        },
        "algorithm": {"adv_estimator": "srpo"},
        "trainer": {"experiment_name": "whatever", "save_freq": seed},
    }
    checkpoints = checkpoints or f"/checkpoints/{srpo.get('routing')}-{lr}-{seed}"
    versions = {"verl": "0.9.1"}
    content = {"config": config, "checkpoints": checkpoints, "started": started, "versions": versions}
    write_json(record_path(log), content)


def token_sample(log: Path, step: int, text: str = "1;2#3") -> None:
    """A token sample of one prompt with two rollouts, the first of them distilled."""
    tokens = list(text)
    values = {
        name: [0.1 * index for index in range(len(tokens))]
        for name in ("teacher_entropy", "weight", "divergence", "advantage", "log_prob")
    }
    shared = {"feedback": "", "length": len(tokens), "tokens": tokens, "counts": [1.0] * len(tokens)}
    failed = {
        **shared,
        **values,
        "reward": 0.0,
        "correct": False,
        "grpo_share": 0.0,
        "sdpo_share": 1.0,
        "demonstration": {"source": "sibling", "text": text, "rollout": 1, "shortened": False},
    }
    right = {
        **shared,
        "advantage": values["advantage"],
        "reward": 1.0,
        "correct": True,
        "grpo_share": 1.0,
        "sdpo_share": 0.0,
        "demonstration": None,
    }
    prompt = {"messages": [{"role": "user", "content": text}], "rollouts": [failed, right]}
    write_json(sample_path(log, step), {"step": step, "prompts": [prompt]})
