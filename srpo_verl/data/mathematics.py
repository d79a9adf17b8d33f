"""Mathematics from any data set with a problem and an answer per row: local files, or the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from srpo_verl.data.rows import DataError, Row, is_unicode, malformed, read_json_lines
from srpo_verl.rewards import validate_ground_truth
from srpo_verl.rewards.math import extract_boxed

INSTRUCTION = "\n\nPlease reason step by step, and put your final answer within \\boxed{}."
SUFFIXES = (".jsonl", ".json", ".parquet")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def find_files(source: Path, splits: Sequence[str]) -> dict[str, Path]:
    """The file of each split: ``<split>.jsonl``, ``.json`` or ``.parquet`` in a directory; or one file, one split."""
    if source.is_file():
        if len(splits) != 1:
            raise DataError(f"{source} is one file: say which split it is with --splits train or --splits test")
        if source.suffix not in SUFFIXES:
            raise DataError(f"{source}: unknown kind of file; known are {', '.join(SUFFIXES)}")
        return {splits[0]: source}
    files = {}
    for split in splits:
        found = [source / f"{split}{suffix}" for suffix in SUFFIXES if (source / f"{split}{suffix}").is_file()]
        if len(found) != 1:
            what = "no" if not found else "more than one"
            raise DataError(
                f"{source} holds {what} file {split}{{{','.join(SUFFIXES)}}}; --splits chooses the splits to prepare"
            )
        files[split] = found[0]
    return files


def read_file(file: Path) -> list[tuple[str, Any]]:
    """Place and content of each row of a parquet file or of a file of JSON lines."""
    if file.suffix == ".parquet":
        try:
            records = pq.read_table(file).to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{file}: cannot be read as parquet ({error})") from error
        return [(f"{file}:{number}", record) for number, record in enumerate(records, start=1)]
    return [(place, record) for place, record in read_json_lines(file)]


def load_records(source: str, splits: Mapping[str, str], config: str | None) -> dict[str, list[tuple[str, Any]]]:
    """Per split the rows with their places.

    Args:
        source: a local path, or the id of a data set on the hub.
        splits: our split to the name it has in the source (the hub only).
        config: the hub data set's configuration.
    """
    path = Path(source)
    if path.exists():
        return {split: read_file(file) for split, file in find_files(path, list(splits)).items()}
    if not _HUB_ID.fullmatch(source):
        raise DataError(f"{source} does not exist, and is no id of a data set on the hub ('owner/name') either")
    import datasets  # slow to import, and needed for the hub alone

    loaded = {}
    for split, name in splits.items():
        try:
            records = list(datasets.load_dataset(source, config, split=name))
        except Exception as error:  # a network has many ways to fail
            reason = f"{type(error).__name__}: {error}"
            raise DataError(f"{source} is no local path, and loading it from the hub failed: {reason}") from error
        loaded[split] = [(f"{source}[{name}]:{number}", record) for number, record in enumerate(records, start=1)]
    return loaded


def make_rows(
    records: Sequence[tuple[str, Any]],
    *,
    problem_field: str,
    answer_field: str | None,
    solution_field: str,
    instruction: str,
    system: str | None,
) -> list[Row]:
    """Rows of one split.

    Args:
        answer_field: holds the answer; None takes 'answer' where the row has it, else the last ``\\boxed{...}`` of
            `solution_field`.
        instruction: what is appended to each problem.
    """
    rows, problems = [], []
    for index, (place, record) in enumerate(records):
        if not isinstance(record, dict):
            problems.append(f"{place}: the row is not an object with fields")
            continue
        problem = record.get(problem_field)
        if not isinstance(problem, str) or not problem.strip() or not is_unicode(problem):
            problems.append(f"{place}: field '{problem_field}' must be a text that is not empty (see --problem-field)")
            continue
        answer: Any
        if answer_field is not None:
            answer = record.get(answer_field)
        else:
            answer = record.get("answer")
            if answer is None:
                solution = record.get(solution_field)
                answer = extract_boxed(solution) if isinstance(solution, str) else None
        try:
            validate_ground_truth("math", answer)
        except ValueError as error:
            tried = f"'{answer_field}'" if answer_field else f"'answer' or \\boxed in '{solution_field}'"
            problems.append(f"{place}: {error} (from {tried}; see --answer-field, --solution-field)")
            continue
        if not is_unicode(str(answer)):
            problems.append(f"{place}: the answer holds half a character (a lone surrogate)")
            continue
        rows.append(Row(place, index, problem + instruction, system, str(answer).strip()))
    if problems:
        raise malformed(problems)
    return rows
