"""The exact versions behind the extras `vllm` and `sglang`: write them down, or check that they still fit.

    python -m scripts.constraints write    # constraints/vllm.txt and constraints/sglang.txt as of today
    python -m scripts.constraints check    # does each extra resolve under them, for every Python?

Both resolve for Linux x86-64 and install nothing. They need the network and `uv` (pip install uv).
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "constraints"
PYTHONS = ("3.10", "3.11", "3.12")


@dataclass(frozen=True)
class Engine:
    """An extra of setup.py, the oldest platform that all of its wheels are built for, and what has to be overridden.

    `overrides` are requirements that replace those of every package; pip cannot do that, so without them is without a
    resolution.
    """

    extra: str
    platform: str
    overrides: str | None = None


ENGINES = (
    Engine("vllm", "x86_64-manylinux_2_28"),
    Engine("sglang", "x86_64-manylinux_2_34", "sglang-overrides.txt"),
)


def command(engine: Engine, python: str) -> list[str]:
    """How uv resolves an extra of this checkout for one Python."""
    overrides = ["--override", str(FOLDER / engine.overrides)] if engine.overrides else []
    return [
        *("uv", "pip", "compile", "--quiet", "--no-annotate", "--no-header", "--extra", engine.extra, "setup.py"),
        *("--python-platform", engine.platform, "--python-version", python, *overrides),
    ]


def resolve(engine: Engine, python: str, *, under: Path | None = None) -> dict[str, str] | str:
    """Name and version of everything that the extra installs; uv's message where nothing fits."""
    constraints = ["--constraint", str(under)] if under else []
    done = subprocess.run([*command(engine, python), *constraints], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        return done.stderr.strip()
    lines = [line.partition(";")[0].strip() for line in done.stdout.splitlines()]
    return dict(sorted(line.split("==") for line in lines if line))


def merge(resolved: Mapping[str, Mapping[str, str]]) -> list[str]:
    """One requirement per line; a marker where a version is not that of every Python.

    Args:
        resolved: {Python: {name: version}}.
    """
    lines = []
    for name in sorted({name for versions in resolved.values() for name in versions}):
        pythons: dict[str, list[str]] = {}
        for python, versions in resolved.items():
            if name in versions:
                pythons.setdefault(versions[name], []).append(python)
        for version, those in pythons.items():
            marker = " or ".join(f'python_version == "{python}"' for python in those)
            lines.append(f"{name}=={version}" + ("" if len(those) == len(resolved) else f" ; {marker}"))
    return lines


def header(engine: Engine) -> list[str]:
    """What a reader of the file has to know."""
    return [
        f"# Everything that srpo-verl[{engine.extra}] installs on Linux x86-64, Python {', '.join(PYTHONS)}.",
        f"# Resolved {date.today()} by `python -m scripts.constraints write`. docs/gpu.md says what was run.",
        "# A complete list: pip install --no-deps -r this file. docs/gpu.md has the order, and flash-attn's wheel.",
        *([f"# Resolved under {engine.overrides}, which says why."] if engine.overrides else []),
    ]


def path_of(engine: Engine) -> Path:
    return FOLDER / f"{engine.extra}.txt"


def write(engine: Engine) -> str | None:
    """Write the file of one engine; the message where it does not resolve."""
    resolved = {}
    for python in PYTHONS:
        found = resolve(engine, python)
        if isinstance(found, str):
            return f"{engine.extra}, Python {python}: {found}"
        resolved[python] = found
    path_of(engine).write_text("\n".join([*header(engine), *merge(resolved)]) + "\n")
    print(f"{path_of(engine).relative_to(ROOT)}: {len({n for v in resolved.values() for n in v})} packages")
    return None


def check(engine: Engine) -> str | None:
    """Resolve one extra under its file, one line for every Python; the first message where it does not."""
    failure = None
    for python in PYTHONS:
        found = resolve(engine, python, under=path_of(engine))
        says = found.splitlines()[0] if isinstance(found, str) else f"{len(found)} packages"
        print(f"{'FAIL' if isinstance(found, str) else 'PASS'}  {engine.extra:8}Python {python}: {says}")
        failure = failure or (found if isinstance(found, str) else None)
    return failure


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("write", "check"))
    parser.add_argument("--engine", choices=[engine.extra for engine in ENGINES], help="only this one")
    arguments = parser.parse_args()
    if shutil.which("uv") is None:
        parser.error("uv is not on PATH: pip install uv")
    act = write if arguments.action == "write" else check
    chosen = [engine for engine in ENGINES if arguments.engine in (None, engine.extra)]
    failures = [failure for engine in chosen if (failure := act(engine))]
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
