"""Everything this package can be asked for, by one name: ``python -m srpo_verl COMMAND``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "doctor": ("srpo_verl.doctor", "what is here, what is missing: can a run start"),
    "data": ("srpo_verl.data.__main__", "split files of the benchmarks into veRL's parquet"),
    "check": ("srpo_verl.check", "settings, model, data and GPUs of a run, without starting it"),
    "stand-in": ("srpo_verl.stand_in", "a tiny model that guesses among a task's answers, to try the task on a CPU"),
    "launch": ("srpo_verl.launch.__main__", "the runs behind the paper's tables and figures"),
    "report": ("srpo_verl.report.__main__", "tables and figures from run logs"),
    "export": ("srpo_verl.export", "a checkpoint as a Hugging Face folder"),
    "upstream": ("srpo_verl.upstream.__main__", "whether another veRL agrees with what this package needs of it"),
}
"""Name -> module with `main(argv)`, and what it does."""


def usage() -> str:
    """The commands, one a line."""
    lines = [f"  {name:11}{what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: python -m srpo_verl COMMAND ...",
            "",
            *lines,
            "",
            "python -m srpo_verl COMMAND --help has arguments and examples. A run itself is stock veRL:",
            "  python -m verl.trainer.main_ppo --config-path pkg://srpo_verl.config --config-name srpo ...",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit status. 2 for one that there is not."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        print(f"srpo_verl: no command {name!r}\n{usage()}", file=sys.stderr)
        return 2
    # Here, because no command needs the modules of another.
    return import_module(COMMANDS[name][0]).main(rest) or 0


if __name__ == "__main__":
    sys.exit(main())
