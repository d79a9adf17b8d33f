"""Token samples for the page: few enough that it stays a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from srpo_verl.report.groups import Group
from srpo_verl.report.run import Run

MAX_STEPS = 6
"""Steps of a run that are shown: the first, the last, and some between."""
MAX_BYTES = 3_000_000
"""Of all samples of a page."""
COLORINGS = {
    "teacher_entropy": ("teacher entropy", "nats"),
    "weight": ("weight", "mean 1 over distilled tokens"),
    "divergence": ("divergence", "nats"),
    "advantage": ("advantage", ""),
    "log_prob": ("log-prob of the policy", "nats"),
}
"""What tokens can be coloured by: field of a sample, its name, its unit."""


def token_samples(groups: Sequence[Group]) -> tuple[list[dict[str, Any]], list[str]]:
    """Samples of the first run with any of every group, and notes on what was left out."""
    shown, notes, left = [], [], MAX_BYTES
    for group in groups:
        run = next((run for run in group.runs if run.samples), None)
        if run is None:
            continue
        steps = _spread(sorted(run.samples), MAX_STEPS)
        samples = []
        for step in steps:
            text = run.samples[step].read_text(encoding="utf-8")
            if len(text) > left:
                notes.append(
                    f"token view: step {step} of {run.label} left out, the page holds {MAX_BYTES:,} bytes of samples"
                )
                continue
            sample = _read(text)
            if sample is None:
                notes.append(f"{run.samples[step]}: not read as a token sample")
                continue
            left -= len(text)
            samples.append(sample)
        if samples:
            shown.append({"label": _title(group, run), "steps": samples})
        if len(steps) < len(run.samples):
            notes.append(f"token view: {len(steps)} of {len(run.samples)} sampled steps of {run.label} are shown")
    return shown, notes


def _title(group: Group, run: Run) -> str:
    seed = run.identity.seed
    return ", ".join(part for part in (group.label, group.task, f"seed {seed}" if seed else "") if part)


def _read(text: str) -> dict[str, Any] | None:
    try:
        sample = json.loads(text)
        for prompt in sample["prompts"]:
            for rollout in prompt["rollouts"]:
                if not all(isinstance(token, str) for token in rollout["tokens"]):
                    return None
        return sample
    except (ValueError, KeyError, TypeError):
        return None


def _spread(steps: Sequence[int], count: int) -> list[int]:
    """The first, the last, and evenly spaced ones between."""
    if len(steps) <= count:
        return list(steps)
    return [steps[round(index * (len(steps) - 1) / (count - 1))] for index in range(count)]
