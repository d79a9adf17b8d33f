"""The shipped worker's update on a device and several ranks, against the same update on the CPU.

The CPU's is what the tests compare with a float64 oracle. Every rank is a process of its own that sees one GPU, as
under Ray; `rank.py` is what it runs.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from scripts.bench.update_rounds import make_model
from scripts.gpu_check.lines import INACTIVE, Line, guarded, limited
from scripts.outside_ray import free_port, rank_environment

PART = "update"
ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 600
ACTOR, FSDP = "actor_rollout_ref.actor", "actor_rollout_ref.actor.fsdp_config"

EXACT = {"metrics": 1e-3, "student": 4e-3, "teacher": 4e-3}
"""In fp32. veRL hands out sharded weights rounded to bf16, which is 2^-9 of a weight; an update moves them by 10 %."""
IN_BF16 = {"metrics": 0.1, "student": 3e-2, "teacher": 3e-2}

FP32 = [f"++{FSDP}.mixed_precision.{kind}_dtype=fp32" for kind in ("param", "reduce", "buffer")]
SDPA = "++actor_rollout_ref.model.override_config.attn_implementation=sdpa"
ULYSSES = f"{ACTOR}.ulysses_sequence_parallel_size=2"
PLAIN_ULYSSES = [
    "actor_rollout_ref.model.external_lib=tests.verl_ext.ulysses_attention",
    "++actor_rollout_ref.model.override_config.attn_implementation=plain_ulysses",
]
"""veRL cuts sequences inside flash-attention; in the rehearsal the tests' attention stands in its place."""
OFFLOADING = [f"{FSDP}.param_offload=true", f"{FSDP}.optimizer_offload=true", "srpo.teacher.cpu_offload=true"]


@dataclass(frozen=True)
class Case:
    """One way to compute the same two updates."""

    name: str
    device: str
    ranks: int
    overrides: tuple[str, ...] = ()


def precision(device: str, bf16: bool) -> list[str]:
    """platform=cpu has fp32 and sdpa; on a GPU fp32 needs them, since flash-attn has no fp32."""
    if bf16:
        return [f"++{FSDP}.mixed_precision.param_dtype=bf16"]
    return [] if device == "cpu" else [*FP32, SDPA]


def cases_of(device: str, ranks: int) -> list[Case]:
    """What is computed in fp32."""
    fp32 = precision(device, bf16=False)
    fsdp2 = (*fp32, f"{ACTOR}.strategy=fsdp2")
    return [
        Case("1 rank", device, 1, fsdp2),
        Case(f"{ranks} ranks", device, ranks, fsdp2),
        Case(f"{ranks} ranks, FSDP1", device, ranks, (*fp32, f"{ACTOR}.strategy=fsdp")),
        Case("offloading", device, ranks, (*fsdp2, *OFFLOADING)),
    ]


def run(device: torch.device, small: bool, ranks: int, out: Path) -> Iterator[Line]:
    """One rank, several ranks, FSDP1, offloading, bf16 with flash-attn, Ulysses."""
    out.mkdir(parents=True, exist_ok=True)
    sizes = (256, 128, 2) if small else (4096, 512, 4)
    model = make_model(out / "model", *sizes)
    rows = ranks * -(-16 // ranks)
    kind = device.type
    reference = run_case(Case("reference", "cpu", 1), model, rows, out)
    held: dict[str, float] = {}
    for case in cases_of(kind, ranks):
        if case.name.startswith("1 ranks"):
            yield Line(PART, case.name.replace("1 ranks", "several ranks"), INACTIVE, "there is one GPU")
            continue
        yield guarded(PART, case.name, partial(judge, case, model, rows, out, reference, EXACT, held))
    for case, limits in others(kind, ranks):
        lacking = missing(case)
        if lacking:
            yield Line(PART, case.name, INACTIVE, lacking)
        else:
            yield guarded(PART, case.name, partial(judge, case, model, rows, out, reference, limits, held))


def others(device: str, ranks: int) -> list[tuple[Case, Mapping[str, float]]]:
    """In bf16 with flash-attn, which has no fp32; on a CPU without. With their limits."""
    bf16 = precision(device, bf16=True)
    if device == "cpu":
        return [
            (Case("bf16", device, ranks, tuple(bf16)), IN_BF16),
            (Case("Ulysses", device, ranks, (ULYSSES, *PLAIN_ULYSSES)), EXACT),
        ]
    return [
        (Case("bf16, flash-attn", device, ranks, tuple(bf16)), IN_BF16),
        (Case("Ulysses, flash-attn", device, ranks, (*bf16, ULYSSES)), IN_BF16),
    ]


def missing(case: Case) -> str:
    """What a case of `others` lacks here, or ""."""
    if case.device == "cuda" and importlib.util.find_spec("flash_attn") is None:
        return "flash-attn is not installed"
    if ULYSSES in case.overrides and case.ranks % 2:
        return f"it cuts a sequence over pairs of ranks, and there are {case.ranks}"
    return ""


def judge(
    case: Case,
    model: Path,
    rows: int,
    out: Path,
    reference: Mapping[str, Any],
    limits: Mapping[str, float],
    held: dict[str, float],
) -> Line:
    """Run a case and compare; on a GPU also what its first rank holds between steps (kept in `held`)."""
    result = run_case(case, model, rows, out)
    figures = {**differences(result, reference), "s": result["seconds"]}
    limits = dict(limits)
    if case.device == "cuda":
        figures |= {"peak MB": result["peak"] / 1e6, "held MB": result["held"] / 1e6}
        if case.name == "offloading":
            figures["held ratio"] = result["held"] / held[f"{case.ranks} ranks" if case.ranks > 1 else "1 rank"]
            limits["held ratio"] = 0.5
        held[case.name] = result["held"]
    return limited(PART, case.name, figures, limits, f"{rows} rows, {case.ranks} x {case.device}, against the CPU")


def differences(result: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, float]:
    """Largest relative difference of a metric in a step, and of a weight matrix in norm; infinite where one lacks."""
    found = {"metrics": 0.0}
    for ours, theirs in zip(result["metrics"], reference["metrics"], strict=True):
        if ours.keys() != theirs.keys():
            return {"metrics": float("inf")}
        for key, value in theirs.items():
            found["metrics"] = max(found["metrics"], abs(ours[key] - value) / max(abs(value), 1e-3))
    for who in ("student", "teacher"):
        if result[who].keys() != reference[who].keys():
            return {**found, who: float("inf")}
        found[who] = max(
            float((result[who][key] - value).norm() / value.norm()) for key, value in reference[who].items()
        )
    return found


def run_case(case: Case, model: Path, rows: int, out: Path) -> dict[str, Any]:
    """Start the ranks, wait for all of them, read what the first one wrote. RuntimeError with the end of its log."""
    port = free_port()
    answer, log = out / f"{case.name}.pt".replace(" ", "_"), out / f"{case.name}.log".replace(" ", "_")
    answer.unlink(missing_ok=True)
    spec = json.dumps({**asdict(case), "model": str(model), "rows": rows, "answer": str(answer)})
    command = [sys.executable, "-W", "ignore", "-m", "scripts.gpu_check.rank", spec]
    with log.open("wb") as output:
        processes = [
            subprocess.Popen(
                command, cwd=ROOT, env=environment(case, rank, port), stdout=output, stderr=subprocess.STDOUT
            )
            for rank in range(case.ranks)
        ]
        try:
            codes = wait(processes)
        finally:
            for process in processes:
                process.kill()
    if any(codes) or not answer.is_file():
        last = log.read_text(errors="replace").strip().splitlines()[-1:]
        raise RuntimeError(f"the ranks ended with {codes}: {' '.join(last)} (log: {log})")
    return torch.load(answer, weights_only=True)


def wait(processes: Sequence[subprocess.Popen]) -> list[int | None]:
    """Exit statuses once all have ended, or one has failed, since the others would wait for it for ever."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        codes = [process.poll() for process in processes]
        if None not in codes or any(codes):
            return codes
        time.sleep(0.2)
    raise RuntimeError(f"the ranks did not end within {TIMEOUT} s")


def environment(case: Case, rank: int, port: int) -> dict[str, str]:
    """What torchrun and Ray would set: one visible GPU for each process."""
    own = {**rank_environment(rank, case.ranks, port), "TOKENIZERS_PARALLELISM": "false"}
    if case.device == "cpu":
        return {**os.environ, **own, "VERL_PLATFORM": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    own["CUDA_VISIBLE_DEVICES"] = visible[rank] if rank < len(visible) and visible[rank] else str(rank)
    return {**os.environ, **own}
