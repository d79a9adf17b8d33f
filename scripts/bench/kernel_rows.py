"""The benchmark of the kernels from measured rounds to rows, tables and verdicts."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from scripts.bench.implementations import IMPLEMENTATIONS, STAGES
from scripts.bench.spread import of_the_same_round, spread
from scripts.bench.time_and_memory import Case, Times
from srpo_verl.markdown import markdown_table

COLUMNS = [
    *("device", "dtype", "tokens", "vocab", "support", "threads", "rounds", "load", "implementation", "phase"),
    *("seconds", "seconds_p20", "seconds_p80", "ratio", "ratio_p20", "ratio_p80", "bytes_limit", "exp_limit"),
    *("extra_memory", "gradient_error", "entropy_error"),
]
"""Of kernels.csv; docs/performance/columns.md says what they are."""

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


@dataclass
class Verdict:
    """A limit and the worst that was measured; None: nothing was."""

    name: str
    limit: float
    worst: float | None
    where: str

    @property
    def holds(self) -> bool:
        return self.worst is not None and self.worst <= self.limit


def _phases(seconds: Mapping[str, float]) -> dict[str, float]:
    stages = {stage: seconds.get(stage, 0.0) for stage in STAGES}
    student = stages["student_forward"] + stages["student_backward"]
    return {**stages, "student": student, "pipeline": sum(stages.values())}


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

    phases = {name: pd.DataFrame(map(_phases, rounds)) for name, rounds in measured.seconds.items()}
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


def judge(rows: pd.DataFrame, limits: Mapping[str, float]) -> list[Verdict]:
    """Ratios and memory at the two largest numbers of tokens of every dtype, growth at the largest, errors at all."""
    sizes = sorted(rows.tokens.unique())

    def of(implementation: str, phase: str = "pipeline") -> pd.DataFrame:
        is_it = (rows.implementation == implementation) & (rows.phase == phase)
        return rows[is_it & rows.tokens.isin(sizes[-2:])]

    growth = rows[(rows.phase == "per_token") & rows.tokens.isin(sizes[-1:])].ratio
    ours = rows[rows.implementation.isin(("srpo", "srpo_engine")) & (rows.phase == "pipeline")]
    seen = {
        "pipeline / eager": of("eager").ratio,
        "pipeline as the engine runs it / eager": of("eager_labels").ratio,
        "teacher scoring / logsumexp": of("logsumexp", "teacher").ratio,
        "extra memory / logits": of("srpo").extra_memory,
        # Not to grow. It falls where a call's fixed cost shows: the engine's way is that fast.
        "time per token, most / fewest tokens": growth,
        "gradient error, float32": ours[ours["dtype"] == "float32"].gradient_error,
        "gradient error, bfloat16": ours[ours["dtype"] == "bfloat16"].gradient_error,
        "entropy error, nats": ours.entropy_error,
    }
    verdicts = []
    for name, limit in limits.items():
        values = seen[name].dropna()
        if values.empty:
            verdicts.append(Verdict(name, limit, None, "not measured"))
            continue
        row = rows.loc[values.idxmax()]
        verdicts.append(Verdict(name, limit, float(values.max()), f"{row['dtype']}, N = {row.tokens}"))
    return verdicts


def _number(value: float | None, pattern: str = ".3g") -> str:
    return "" if pd.isna(value) else format(value, pattern)


def _ratio(row: Any) -> str:
    return f"{row.ratio:.2f} ({row.ratio_p20:.2f} to {row.ratio_p80:.2f})"


def phases_table(rows: pd.DataFrame) -> str:
    """SRPO's functions against the eager path and the lower limits, phase by phase."""
    case = ["dtype", "tokens", "phase"]
    whole = rows[rows.implementation == "srpo"].merge(rows[rows.implementation == "eager"], on=case)
    student = rows.phase.str.startswith("student")
    as_engine = rows[student & (rows.implementation == "srpo_engine")]
    engine = as_engine.merge(rows[rows.implementation == "eager_labels"], on=case)
    lines = []
    for both in pd.concat([whole, engine]).sort_values(case[:2], kind="stable").itertuples():
        limits = [both.bytes_limit_x, both.exp_limit_x]
        name = both.phase.replace("_", " ")
        name += " as the engine runs it" if both.implementation_x == "srpo_engine" else ""
        ratio = f"{both.ratio_y:.2f} ({both.ratio_p20_y:.2f} to {both.ratio_p80_y:.2f})"
        times = [_number(both.seconds_x), _number(both.seconds_y), ratio, *map(_number, limits)]
        lines.append([both.dtype, str(both.tokens), name, *times, _number(both.seconds_x / max(limits), ".1f")])
    head = ["dtype", "N", "phase", "SRPO, s", "eager, s", "SRPO / eager", "bytes, s", "exp, s", "SRPO / larger limit"]
    return markdown_table(head, lines)


def implementations_table(rows: pd.DataFrame, not_run: Mapping[tuple[str, int, str], str]) -> str:
    """Every implementation as a whole: time, memory and errors; what was not run says why."""
    lines = []
    for row in rows[(rows.phase == "pipeline") | (rows.implementation == "logsumexp")].itertuples():
        case = [row.dtype, str(row.tokens), row.implementation, IMPLEMENTATIONS[row.implementation].computes]
        figures = [_number(row.seconds), _ratio(row), _number(row.extra_memory)]
        lines.append([*case, *figures, _number(row.gradient_error, ".1g"), _number(row.entropy_error, ".1g")])
    for (dtype, tokens, name), reason in not_run.items():
        lines.append([dtype, str(tokens), name, IMPLEMENTATIONS[name].computes, f"not run: {reason}", *[""] * 4])
    lines.sort(key=lambda line: (line[0], int(line[1])))
    head = ["dtype", "N", "implementation", "computes", "s", "SRPO / this", "extra memory / logits"]
    return markdown_table([*head, "gradient error", "entropy error, nats"], lines)


def verdicts_table(verdicts: Sequence[Verdict]) -> str:
    return markdown_table(
        ["limit", "at most", "worst measured", "where", "holds"],
        [[v.name, _number(v.limit), _number(v.worst), v.where, "yes" if v.holds else "no"] for v in verdicts],
    )
