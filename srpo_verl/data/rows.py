"""Rows in veRL's columns, and parquet files of them that are written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

MAX_SHOWN = 10  # of the malformed or duplicate rows, in messages


class DataError(ValueError):
    """Data that cannot be prepared; the message names the file and the line, and what to do."""


@dataclass(frozen=True)
class Row:
    """One question.

    Attributes:
        place: file and line, for messages.
        index: the row's number in its source.
        prompt: the user message. system: the system message or None.
        ground_truth: what the verifier of the data source reads.
    """

    place: str
    index: int
    prompt: str
    system: str | None
    ground_truth: str

    @property
    def question(self) -> tuple[str | None, str]:
        """What a model sees; rows that agree in it are duplicates."""
        return self.system, self.prompt


SCHEMA = pa.schema(
    [
        ("data_source", pa.string()),
        ("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("ability", pa.string()),
        ("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
        ("extra_info", pa.struct([("split", pa.string()), ("index", pa.int64()), ("benchmark", pa.string())])),
    ]
)


def is_unicode(text: str) -> bool:
    """False for half a character: JSON can spell one, no tokenizer and no parquet file takes it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def malformed(problems: Sequence[str]) -> DataError:
    """One error for all malformed rows, so that a file is mended in one go."""
    more = f"\n... and {len(problems) - MAX_SHOWN} more" if len(problems) > MAX_SHOWN else ""
    return DataError(f"{len(problems)} malformed rows\n" + "\n".join(problems[:MAX_SHOWN]) + more)


def read_json_lines(file: Path) -> list[tuple[str, Any]]:
    """Place (``file:line``) and value of each line.

    Raises:
        DataError: the file is not UTF-8, holds lines that are not JSON (all are named), or nothing.
    """
    try:
        lines = file.read_bytes().decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        number = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(f"{file}:{number}: not UTF-8 ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error})") from error
    if lines[-1] == "":
        lines.pop()
    if not lines:
        raise DataError(f"{file}: no rows")
    values, problems = [], []
    for number, line in enumerate(lines, start=1):
        place = f"{file}:{number}"
        try:
            values.append((place, json.loads(line)))
        except (ValueError, RecursionError) as error:
            problems.append(f"{place}: not JSON ({error}); the file must hold one JSON object per line")
    if problems:
        raise malformed(problems)
    return values


def to_verl(row: Row, *, data_source: str, ability: str, split: str, benchmark: str) -> dict[str, Any]:
    """The columns that veRL's dataset, agent loop and reward manager read."""
    system = [] if row.system is None else [{"role": "system", "content": row.system}]
    return {
        "data_source": data_source,
        "prompt": [*system, {"role": "user", "content": row.prompt}],
        "ability": ability,
        "reward_model": {"style": "rule", "ground_truth": row.ground_truth},
        "extra_info": {"split": split, "index": row.index, "benchmark": benchmark},
    }


def find_duplicates(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Pairs (first, later) of rows with the same question."""
    first: dict[tuple[str | None, str], Row] = {}
    pairs = []
    for row in rows:
        known = first.setdefault(row.question, row)
        if known is not row:
            pairs.append((known, row))
    return pairs


def find_overlap(train: Sequence[Row], test: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Pairs (train, test) of rows with the same question."""
    first = {row.question: row for row in reversed(test)}
    return [(row, first[row.question]) for row in train if row.question in first]


@contextlib.contextmanager
def _temporary_file(directory: Path) -> Iterator[Path]:
    """A name in `directory` that is gone afterwards, whatever happens."""
    descriptor, name = tempfile.mkstemp(dir=directory, prefix=".tmp-", suffix=".parquet")
    os.close(descriptor)
    try:
        yield Path(name)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def write_splits(splits: Mapping[str, Sequence[dict[str, Any]]], directory: Path) -> list[Path]:
    """Write ``<split>.parquet`` for each split. None is replaced before all are complete on the disk."""
    directory.mkdir(parents=True, exist_ok=True)
    umask = os.umask(0)
    os.umask(umask)
    with contextlib.ExitStack() as stack:
        finished = []
        for split, records in splits.items():
            temporary = stack.enter_context(_temporary_file(directory))
            pq.write_table(pa.Table.from_pylist(list(records), schema=SCHEMA), temporary)
            temporary.chmod(0o666 & ~umask)  # temporary files are private, data files are not
            finished.append((temporary, directory / f"{split}.parquet"))
        for temporary, target in finished:
            os.replace(temporary, target)
    return [target for _, target in finished]
