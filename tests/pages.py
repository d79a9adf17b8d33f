"""The pages of the checkout as tests read them: prose, blocks, and the commands in both."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("recipes/*/*.md"),
        *ROOT.glob("scripts/**/*.md"),
    ]
)
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
SHELL = ("bash", "sh", "shell", "console")


def page_id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def prose(path: Path) -> str:
    return FENCE.sub("", path.read_text())


@dataclass(frozen=True)
class Command:
    """A command of a page, on one line and without its comment."""

    page: Path
    line: int
    text: str
    section: str
    """The text from the heading above it to the next one."""

    def __str__(self) -> str:
        return f"{page_id(self.page)}:{self.line}: {self.text}"


def commands(page: Path) -> Iterator[Command]:
    """Those of shell blocks, whole functions and loops as one, and those in the prose, which are in backquotes."""
    text = page.read_text()
    blocks = list(FENCE.finditer(text))
    blank = FENCE.sub(
        lambda block: re.sub(r"[^\n]", " ", block[0]), text
    )  # as long, without what looks like a heading
    starts = [0, *(heading.start() for heading in re.finditer(r"^#+ ", blank, re.MULTILINE)), len(text)]

    def made(position: int, command: str) -> Command:
        begin, end = next(pair for pair in pairwise(starts) if pair[0] <= position < pair[1])
        return Command(page, text.count("\n", 0, position) + 1, " ".join(command.split()), text[begin:end])

    for block in blocks:
        if block[1] in SHELL:
            for offset, command in _logical_lines(block[2]):
                yield made(block.start(2) + offset, command)
    for quoted in re.finditer(r"`((?:python -m|make|bash|pip install|pip download) [^`]+)`", blank):
        yield made(quoted.start(), quoted[1])


def _logical_lines(block: str) -> Iterator[tuple[int, str]]:
    """Where a command begins in a block, and the command."""
    begin, position, parts = 0, 0, []
    for line in block.splitlines(keepends=True):
        if not parts:
            begin = position
        position += len(line)
        code = re.sub(r"(^|\s)#.*", "", line).strip()
        parts.append(code.removesuffix("\\"))
        whole = " ".join(parts).strip()
        is_open = (re.search(r"\(\) \{", whole) and code != "}") or (whole.startswith("for ") and code != "done")
        if is_open or code.endswith("\\"):
            continue
        if whole:
            yield begin, whole
        parts = []
