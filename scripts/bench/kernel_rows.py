"""The benchmark of the kernels from measured rounds to rows, tables and verdicts."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from scripts.bench.implementations import IMPLEMENTATIONS, STAGES
from scripts.bench.spread import of_the_same_round, spread
from scripts.bench.time_and_memory import Case, Times

COLUMNS = [
    *("device", "dtype", "tokens", "vocab", "support", "threads", "rounds", "load", "implementation", "phase"),
    *("seconds", "seconds_p20", "seconds_p80", "ratio", "ratio_p20", "ratio_p80", "bytes_limit", "exp_limit"),
    *("extra_memory", "gradient_error", "entropy_error"),
]
"""Of kernels.csv; docs/performance/columns.md says what they are."""
RESULTS = COLUMNS[COLUMNS.index("implementation") :]
SHOWN = ["dtype", "tokens", *(name for name in RESULTS if not name.startswith("seconds_p"))]
"""On the console."""

TRAFFIC = {
    "support": (1, 0),
    "teacher": (1, 1),
    "student_forward": (1, 1),
    "student_backward": (2, 1),
    "student": (3, 2),
    # The support comes from the pass that sums the student's exponentials anyway.
    "pipeline": (4, 3),
}
"""Per logit of one of the two tensors: (times it is read or written in memory, times exp is taken of it)."""


def _phases(rounds: Sequence[Mapping[str, float]]) -> pd.DataFrame:
    stages = pd.DataFrame(rounds, columns=STAGES).fillna(0.0)
    student = stages.student_forward + stages.student_backward
    return stages.assign(student=student, pipeline=stages.sum(axis=1))


def _reported(name: str) -> Sequence[str]:
    if name == "logsumexp":
        return ("teacher",)
    # The stages of other libraries are cut differently.
    return tuple(TRAFFIC) if name.startswith(("srpo", "eager")) else ("pipeline",)


def make_rows(case: Case, measured: Times, extra: Mapping[str, int]) -> list[dict[str, Any]]:
    """One implementation in one phase of a case each; `extra`: peak bytes by implementation."""
    common = {key: getattr(case, key) for key in COLUMNS[:6]}
    common |= {"rounds": len(measured.copy), "load": measured.load}
    copy, exp = statistics.median(measured.copy), statistics.median(measured.exp)
    rows: list[dict[str, Any]] = []

    def add(name: str, phase: str, seconds: Sequence[float], ratios: Sequence[float]) -> dict[str, Any]:
        row = {**common, "implementation": name, "phase": phase}
        for what, values in (("seconds", seconds), ("ratio", ratios)):
            row |= zip((what, f"{what}_p20", f"{what}_p80"), spread(values), strict=True)
        rows.append(row)
        return row

    phases = {name: _phases(rounds) for name, rounds in measured.seconds.items()}
    for name, theirs in phases.items():
        ours = phases[IMPLEMENTATIONS[name].against]
        for phase in _reported(name):
            row = add(name, phase, theirs[phase], of_the_same_round(ours[phase], theirs[phase]))
            if name == "srpo":
                moves, exps = TRAFFIC[phase]
                row["bytes_limit"] = moves * case.logits_bytes / copy
                row["exp_limit"] = exps * case.tokens * case.vocab / exp
            if phase == "pipeline":
                row["gradient_error"], row["entropy_error"] = measured.errors.get(name, (None, None))
                row["extra_memory"] = extra[name] / case.logits_bytes if name in extra else None
    for name, head in measured.head.items():
        # A row like the others: SRPO's functions on the case's tokens over the same on the first ones, per token.
        first = [seconds / case.head_tokens for seconds in head]
        whole = phases[name]["pipeline"] / case.tokens
        add(f"{name}, first {case.head_tokens} tokens", "per_token", first, of_the_same_round(whole, first))
    return rows


def judge(rows: pd.DataFrame, limits: Mapping[str, float]) -> pd.DataFrame:
    """Every limit, the worst that was measured, where, and whether it holds; not, where nothing was measured.

    Ratios and memory at the two largest numbers of tokens of every dtype, growth at the largest, errors at all.
    """
    sizes = sorted(rows.tokens.unique())

    def of(implementation: str, phase: str = "pipeline") -> pd.DataFrame:
        is_it = (rows.implementation == implementation) & (rows.phase == phase)
        return rows[is_it & rows.tokens.isin(sizes[-2:])]

    ours = rows[rows.implementation.isin(("srpo", "srpo_engine")) & (rows.phase == "pipeline")]
    seen = {
        "pipeline / eager": of("eager").ratio,
        "pipeline as the engine runs it / eager": of("eager_labels").ratio,
        "teacher scoring / logsumexp": of("logsumexp", "teacher").ratio,
        "extra memory / logits": of("srpo").extra_memory,
        # Not to grow. It falls where a call's fixed cost shows: the engine's way is that fast.
        "time per token, most / fewest tokens": rows[(rows.phase == "per_token") & rows.tokens.isin(sizes[-1:])].ratio,
        "gradient error, float32": ours[ours["dtype"] == "float32"].gradient_error,
        "gradient error, bfloat16": ours[ours["dtype"] == "bfloat16"].gradient_error,
        "entropy error, nats": ours.entropy_error,
    }
    verdicts = pd.DataFrame({"limit": list(limits), "at_most": list(limits.values()), "where": "not measured"})
    worst = [seen[name].dropna().astype(float) for name in limits]
    verdicts["worst"] = [values.max() for values in worst]
    for number, values in enumerate(worst):
        if len(values):
            row = rows.loc[values.idxmax()]
            verdicts.loc[number, "where"] = f"{row['dtype']}, N = {row.tokens}"
    return verdicts.assign(holds=verdicts.worst <= verdicts.at_most)
