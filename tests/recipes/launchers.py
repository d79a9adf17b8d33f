"""The launchers of recipes/paper, as files."""

import shlex
from pathlib import Path

RECIPES = Path(__file__).parents[2] / "recipes" / "paper"


def launcher(method: str) -> Path:
    """The recipe of a method."""
    return RECIPES / f"{method}.sh"


def read_launcher(path: Path, extra=()) -> list[str]:
    """The command a launcher executes when it is given `extra` arguments."""
    text = path.read_text().split("exec ", 1)[1]
    arguments = shlex.split(text.replace("\\\n", " "))
    assert arguments[-1] == "$@", path
    return [*arguments[:-1], *extra]
