"""What only a GPU can show, in one command: ``python -m scripts.gpu_check``.

The parts: the kernels against float64 and against plain PyTorch (needs torch alone); the same compiled
(`srpo.kernels.compile`; needs a compiler); the shipped worker's update on one and on several ranks, and offloaded,
against the same update on the CPU; and three SRPO steps of a randomly
initialised Qwen3 of 0.6B shape through veRL's entry point, for every rollout engine that is installed, with the
checkpoint exported at the end. Writes gpu_check.json and gpu_check.md. Exit status 1 if a line
failed, or if none passed.

    python -m scripts.gpu_check                               # everything, on all GPUs
    python -m scripts.gpu_check --device cpu --small          # the rehearsal: the same code on a CPU, tiny sizes
    python -m scripts.gpu_check --parts kernels
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import shutil
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from scripts.gpu_check.lines import FAIL, INACTIVE, PASS, Line, as_json, as_markdown

ROOT = Path(__file__).resolve().parents[2]
PARTS = {"kernels": "torch", "compiled": "torch", "update": "verl", "training": "verl"}
"""Each part and the package that it cannot do without."""


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def describe(device: torch.device, ranks: int) -> dict[str, Any]:
    """Where the figures are from."""
    gpus = sorted({torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())})
    packages = ("torch", "verl", "transformers", "flash-attn", "vllm", "sglang")
    return {
        "device": f"{ranks} x {', '.join(gpus) or 'no GPU'}"
        if device.type == "cuda"
        else f"{device.type}, {ranks} ranks",
        "CUDA of torch": torch.version.cuda,
        "python": platform.python_version(),
        **{name: found for name in packages if (found := installed(name))},
        "commit": commit(),
    }


def commit() -> str:
    if shutil.which("git") is None:
        return "unknown"
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def lines_of(part: str, arguments: argparse.Namespace) -> Iterator[Line]:
    """The lines of one part; one more, FAIL, where it breaks off."""
    try:
        yield from run_part(part, arguments)
    except Exception as error:
        traceback.print_exc()
        yield Line(part, "broke off", FAIL, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def run_part(part: str, arguments: argparse.Namespace) -> Iterator[Line]:
    """The lines of one part, as they are there; it is imported here, so that `kernels` needs torch alone."""
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        yield Line(part, "all", INACTIVE, "torch sees no GPU; --device cpu rehearses the check")
        return
    if installed(PARTS[part]) is None:
        yield Line(part, "all", INACTIVE, f"{PARTS[part]} is not installed")
        return
    module = importlib.import_module(f"scripts.gpu_check.{part}")
    if PARTS[part] == "torch":
        yield from module.run(device, arguments.small)
    else:
        yield from module.run(device, arguments.small, arguments.ranks, arguments.out / part)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--ranks", type=int, help="GPUs to use (default: all; on a CPU 2)")
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=list(PARTS))
    parser.add_argument("--small", action="store_true", help="sizes for a rehearsal on a CPU")
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "gpu_check")
    arguments = parser.parse_args(argv)
    arguments.out = arguments.out.resolve()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.ranks is None:
        arguments.ranks = max(torch.cuda.device_count(), 1) if arguments.device == "cuda" else 2
    machine = describe(torch.device(arguments.device), arguments.ranks)
    print(*(f"{key}: {value}" for key, value in machine.items()), sep="\n")
    lines: list[Line] = []
    for part in arguments.parts:
        for line in lines_of(part, arguments):
            lines.append(line)
            print(f"{line.status:<9}{line.part}: {line.name}{f' ({line.detail})' if line.detail else ''}", flush=True)
            # After every line: what is there survives whatever ends the next one.
            (arguments.out / "gpu_check.json").write_text(json.dumps(as_json(machine, lines), indent=1) + "\n")
            (arguments.out / "gpu_check.md").write_text(as_markdown(machine, lines))
    print(f"{arguments.out / 'gpu_check.md'}, gpu_check.json")
    statuses = {line.status for line in lines}
    return 1 if FAIL in statuses or PASS not in statuses else 0


if __name__ == "__main__":
    sys.exit(main())
