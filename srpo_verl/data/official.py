"""The published split files of the paper's benchmarks: JSON lines, one question each."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from srpo_verl.data.benchmarks import SPLITS, WHERE_TO_GET, Benchmark
from srpo_verl.data.rows import DataError, Row, is_unicode, malformed, read_json_lines
from srpo_verl.rewards import validate_ground_truth


def find_files(benchmark: Benchmark, source: Path, splits: Sequence[str]) -> dict[str, Path]:
    """The file of each wanted split.

    Args:
        source: the directory of all benchmarks (``sciknoweval/chemistry/...``), one above it (``datasets/...``),
            the benchmark's own directory, or, for one split, its file.
    """
    if source.is_file():
        if len(splits) != 1:
            raise DataError(f"{source} is one file: say which split it is with --splits train or --splits test")
        return {splits[0]: source}
    if not source.exists():
        raise DataError(f"{source} does not exist. {WHERE_TO_GET}")
    candidates = [
        source / benchmark.folder,
        source / "datasets" / benchmark.folder,
        source / Path(benchmark.folder).name,
        source,
    ]
    for folder in candidates:
        if any((folder / f"{split}.json").is_file() for split in SPLITS):
            break
    else:
        raise DataError(f"{source} holds no {benchmark.folder}/train.json or test.json. {WHERE_TO_GET}")
    files = {split: folder / f"{split}.json" for split in splits}
    missing = [split for split, file in files.items() if not file.is_file()]
    if missing:
        present = [split for split in splits if split not in missing]
        remedy = f"To prepare the other split alone, pass --splits {present[0]}. " if present else ""
        raise DataError(f"{files[missing[0]]} does not exist. {remedy}{WHERE_TO_GET}")
    return files


def sha256_of(file: Path) -> str:
    """Checksum of a file, in hexadecimal."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _check_fields(record: Any, benchmark: Benchmark) -> str:
    """What is wrong with a row's fields, '' if nothing is."""
    if not isinstance(record, dict):
        return "the line is not a JSON object"
    for field in ("prompt", "answer", "kind", "dataset", "idx", "system"):
        if field not in record:
            return f"field '{field}' is missing"
    if not isinstance(record["prompt"], str) or not record["prompt"].strip():
        return "field 'prompt' must be a text that is not empty"
    if not isinstance(record["answer"], str):
        return f"field 'answer' must be a text, got {type(record['answer']).__name__}"
    if record["system"] is not None and not isinstance(record["system"], str):
        return f"field 'system' must be a text or null, got {type(record['system']).__name__}"
    if isinstance(record["idx"], bool) or not isinstance(record["idx"], int) or not 0 <= record["idx"] < 2**63:
        return f"field 'idx' must be an integer of at least 0, got {record['idx']!r:.80}"
    for field, wanted in (("kind", benchmark.kind), ("dataset", benchmark.dataset)):
        if record[field] != wanted:
            return f"field '{field}' must be {wanted!r}, got {record[field]!r:.80}"
    if not all(is_unicode(record[field] or "") for field in ("prompt", "system", "answer")):
        return "a text holds half a character (a lone surrogate)"
    return ""


def read_rows(benchmark: Benchmark, file: Path) -> list[Row]:
    """All rows of a split file.

    Raises:
        DataError: naming the malformed lines.
    """
    rows, problems = [], []
    for place, record in read_json_lines(file):
        problem = _check_fields(record, benchmark)
        if not problem:
            try:
                validate_ground_truth(benchmark.data_source, record["answer"])
            except ValueError as error:
                problem = str(error)
        if problem:
            problems.append(f"{place}: {problem}")
        else:
            rows.append(Row(place, record["idx"], record["prompt"], record["system"], record["answer"]))
    if problems:
        raise malformed(problems)
    return rows
