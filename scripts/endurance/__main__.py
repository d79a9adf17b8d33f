"""``python -m scripts.endurance kills`` and ``soak``: what takes hours, each resumable."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.endurance.kills import kills
from scripts.endurance.soak import soak


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.endurance", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    of_kills = commands.add_parser("kills", help="SIGKILL at random moments")
    of_kills.add_argument("--kills", type=int, default=200)
    of_kills.add_argument("--seed", type=int, default=0)
    of_kills.add_argument("--mean-s", type=float, default=6.0, help="seconds from the first step to a kill")
    of_soak = commands.add_parser("soak", help="a long run, watched")
    of_soak.add_argument("--steps", type=int, default=2000)
    for one in (of_kills, of_soak):
        one.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args(argv)
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    # However this process ends, the run's end with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    if arguments.command == "kills":
        kills(out, arguments.kills, arguments.seed, arguments.mean_s)
    else:
        soak(out, arguments.steps)


if __name__ == "__main__":
    main()
