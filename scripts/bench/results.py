"""From measured rounds to rows, tables and verdicts."""

from __future__ import annotations

import csv
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from scripts.bench.catalogue import IMPLEMENTATIONS
from scripts.bench.work import STAGES
from srpo_verl.markdown import markdown_table

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

# Per logit of one of the two tensors: (times it is read or written in memory, times exp is taken of it).
TRAFFIC = {
    "support": (1, 0),
    "teacher": (1, 1),
    "student_forward": (1, 1),
    "student_backward": (2, 1),
    "student": (3, 2),
    # The support comes from the pass that sums the student's exponentials anyway.
    "pipeline": (4, 3),
}

# What must hold on two CPU cores, whoever makes them, at a vocabulary of 151,936 and a support of 100.
LIMITS = {
    "pipeline / eager": 0.30,
    "pipeline as the engine runs it / eager": 0.30,
    "teacher scoring / logsumexp": 1.0,
    "extra memory / logits": 0.05,
    "time per token, most / fewest tokens": 1.3,
    "gradient error, float32": 1e-5,
    "gradient error, bfloat16": 2e-2,
    "entropy error, nats": 2e-5,
}

# Where another limit is asked for.
RATIOS = ("pipeline / eager", "pipeline as the engine runs it / eager")
OTHER_LIMITS = {"GenuineIntel": dict.fromkeys(RATIOS, 0.25), "cuda": dict.fromkeys(RATIOS, 0.65)}


def limits_for(device: str) -> dict[str, float]:
    """The limits on a device, by its kind or its processor's vendor."""
    try:
        found = re.search(r"^vendor_id\s*:\s*(\S+)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    name = found[1] if device == "cpu" and found else device
    return {**LIMITS, **OTHER_LIMITS.get(name, {})}


@dataclass
class Row:
    """One implementation in one phase of one case: a line of the CSV. Ratios are of the same round."""

    device: str
    dtype: str
    tokens: int
    vocab: int
    support: int
    threads: int
    rounds: int
    load: float
    """Load average of the machine while it ran."""
    implementation: str
    phase: str
    seconds: float
    seconds_p20: float
    seconds_p80: float
    ratio: float
    """Time of SRPO's functions over the time of this implementation; of `srpo` itself: 1."""
    ratio_p20: float
    ratio_p80: float
    bytes_limit: float | None = None
    """Seconds that the bytes that must move take at the bandwidth of a copy; rows of `srpo`."""
    exp_limit: float | None = None
    """Seconds that the exponentials take, from cache to cache; rows of `srpo`."""
    extra_memory: float | None = None
    """Peak beyond both logits tensors and the gradient, over one logits tensor; phase `pipeline`."""
    gradient_error: float | None = None
    entropy_error: float | None = None


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


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """(median, 20th percentile, 80th percentile)."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    cuts = statistics.quantiles(values, n=5, method="inclusive")
    return statistics.median(values), cuts[0], cuts[3]


def _phases(seconds: dict[str, float]) -> dict[str, float]:
    stages = {stage: seconds.get(stage, 0.0) for stage in STAGES}
    student = stages["student_forward"] + stages["student_backward"]
    return {**stages, "student": student, "pipeline": sum(stages.values())}


def _reported(name: str) -> Iterable[str]:
    if name == "logsumexp":
        return ("teacher",)
    # The stages of other libraries are cut differently.
    return TRAFFIC if name.startswith(("srpo", "eager")) else ("pipeline",)


def make_rows(case: dict[str, Any], answer: dict[str, Any], extra: dict[str, int]) -> list[Row]:
    """Rows of one case: `case` as it was asked for, `answer` of its worker, `extra` bytes by implementation."""
    common = {key: case[key] for key in ("device", "dtype", "tokens", "vocab", "support", "threads")}
    elements = case["tokens"] * case["vocab"]
    size = elements * BYTES[case["dtype"]]
    rounds = answer["rounds"]
    common |= {"rounds": len(rounds), "load": answer["load"]}
    copy, exp = (statistics.median(r[key] for r in rounds) for key in ("copy", "exp"))
    rows: list[Row] = []

    def add(name: str, phase: str, seconds: Sequence[float], ratios: Sequence[float]) -> Row:
        times, relative = spread(seconds), spread(ratios)
        row = Row(
            **common,
            implementation=name,
            phase=phase,
            seconds=times[0],
            seconds_p20=times[1],
            seconds_p80=times[2],
            ratio=relative[0],
            ratio_p20=relative[1],
            ratio_p80=relative[2],
        )
        rows.append(row)
        return row

    for name in rounds[0]["seconds"]:
        ours = [_phases(r["seconds"][IMPLEMENTATIONS[name].against]) for r in rounds]
        theirs = [_phases(r["seconds"][name]) for r in rounds]
        for phase in _reported(name):
            ratios = [o[phase] / t[phase] for o, t in zip(ours, theirs, strict=True)]
            row = add(name, phase, [t[phase] for t in theirs], ratios)
            if name == "srpo":
                moves, exps = TRAFFIC[phase]
                row.bytes_limit, row.exp_limit = moves * size / copy, exps * elements / exp
            if phase == "pipeline":
                row.gradient_error, row.entropy_error = answer["errors"].get(name, (None, None))
                row.extra_memory = extra[name] / size if name in extra else None
    head = case["head_tokens"]
    for name in rounds[0]["head"]:
        # A row like the others: SRPO's functions on the case's tokens over the same on the first ones, per token.
        first = [r["head"][name] / head for r in rounds]
        totals = [sum(r["seconds"][name].values()) / case["tokens"] for r in rounds]
        add(f"{name}, first {head} tokens", "per_token", first, [t / f for t, f in zip(totals, first, strict=True)])
    return rows


def judge(rows: Sequence[Row], limits: dict[str, float]) -> list[Verdict]:
    """Ratios and memory at the two largest numbers of tokens of every dtype, growth at the largest, errors at all."""
    large = sorted({row.tokens for row in rows})[-2:]

    def ours(row: Row) -> bool:
        return row.implementation in ("srpo", "srpo_labels", "srpo_engine") and row.phase == "pipeline"

    def at_large(implementation: str, phase: str) -> list[Row]:
        return [
            row for row in rows if row.tokens in large and row.implementation == implementation and row.phase == phase
        ]

    growth = [row for row in rows if row.phase == "per_token" and row.tokens == large[-1]] if large else []
    seen: dict[str, list[tuple[float | None, Row]]] = {
        "pipeline / eager": [(row.ratio, row) for row in at_large("eager", "pipeline")],
        "pipeline as the engine runs it / eager": [(row.ratio, row) for row in at_large("eager_labels", "pipeline")],
        "teacher scoring / logsumexp": [(row.ratio, row) for row in at_large("logsumexp", "teacher")],
        "extra memory / logits": [(row.extra_memory, row) for row in at_large("srpo", "pipeline")],
        "time per token, most / fewest tokens": [(max(row.ratio, 1.0 / row.ratio), row) for row in growth],
        "entropy error, nats": [(row.entropy_error, row) for row in rows if ours(row)],
    }
    for dtype in ("float32", "bfloat16"):
        seen[f"gradient error, {dtype}"] = [
            (row.gradient_error, row) for row in rows if ours(row) and row.dtype == dtype
        ]
    verdicts = []
    for name, limit in limits.items():
        measured = [(value, row) for value, row in seen[name] if value is not None]
        if not measured:
            verdicts.append(Verdict(name, limit, None, "not measured"))
            continue
        value, row = max(measured, key=lambda pair: pair[0])
        verdicts.append(Verdict(name, limit, value, f"{row.dtype}, N = {row.tokens}"))
    return verdicts


def write_csv(rows: Sequence[Row], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows({key: _short(value) for key, value in asdict(row).items()} for row in rows)


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


# --- Markdown --------------------------------------------------------------------------------------------------------


def _number(value: float | None, pattern: str = ".3g") -> str:
    return "" if value is None else format(value, pattern)


def _ratio(row: Row) -> str:
    return f"{row.ratio:.2f} ({row.ratio_p20:.2f} to {row.ratio_p80:.2f})"


def phases_table(rows: Sequence[Row]) -> str:
    """SRPO's functions against the eager path and the lower limits, phase by phase."""
    found = {(r.dtype, r.tokens, r.implementation, r.phase): r for r in rows}
    lines = []
    for (dtype, tokens, implementation, phase), row in found.items():
        other = found.get(
            (dtype, tokens, {"srpo": "eager", "srpo_engine": "eager_labels"}.get(implementation, ""), phase)
        )
        as_engine = implementation == "srpo_engine"
        if other is None or (as_engine and not phase.startswith("student")):
            continue
        limits = [limit for limit in (row.bytes_limit, row.exp_limit) if limit is not None]
        name = phase.replace("_", " ") + (" as the engine runs it" if as_engine else "")
        times = [_number(row.seconds), _number(other.seconds), _ratio(other)]
        distance = _number(row.seconds / max(limits), ".1f") if limits else ""
        lines.append([dtype, str(tokens), name, *times, _number(row.bytes_limit), _number(row.exp_limit), distance])
    head = ["dtype", "N", "phase", "SRPO, s", "eager, s", "SRPO / eager", "bytes, s", "exp, s", "SRPO / larger limit"]
    return markdown_table(head, lines)


def implementations_table(rows: Sequence[Row], not_run: dict[tuple[str, int, str], str]) -> str:
    """Every implementation as a whole: time, memory and errors; what was not run says why."""
    lines = []
    for row in rows:
        if row.phase == "pipeline" or row.implementation == "logsumexp":
            item = IMPLEMENTATIONS[row.implementation]
            case = [row.dtype, str(row.tokens), row.implementation, item.computes]
            errors = [_number(row.gradient_error, ".1g"), _number(row.entropy_error, ".1g")]
            lines.append([*case, _number(row.seconds), _ratio(row), _number(row.extra_memory), *errors])
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
