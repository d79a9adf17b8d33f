"""Data files: do they exist, can veRL read them, and do they have the columns."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from srpo_verl.preflight.findings import ERROR, NOTE, Finding
from srpo_verl.preflight.settings import DataSettings, Split

ROWS_AT_ONCE = 1024

PROMPT_EXAMPLE = "[{'role': 'user', 'content': ...}]"


@dataclass(frozen=True)
class DataFile:
    """A readable file.

    Attributes:
        name: as configured.
        schema: of its columns.
        rows: how many.
        source: a local parquet file, or a table for other formats.
    """

    name: str
    schema: pa.Schema
    rows: int
    source: str | pa.Table

    def batches(self, columns: Sequence[str]) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """Rows as dictionaries, `ROWS_AT_ONCE` at a time, each time with the number of the first one."""
        wanted = [name for name in columns if name in self.schema.names]
        if isinstance(self.source, str):
            with pq.ParquetFile(self.source) as file:
                yield from _numbered(file.iter_batches(batch_size=ROWS_AT_ONCE, columns=wanted))
        else:
            yield from _numbered(self.source.select(wanted).to_batches(max_chunksize=ROWS_AT_ONCE))


def _numbered(batches: Any) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    first = 0
    for batch in batches:
        yield first, batch.to_pylist()
        first += batch.num_rows


def open_files(split: Split) -> tuple[list[DataFile], list[Finding]]:
    """Open every file of a split. What cannot be opened is an error, and what is not local is said to be unchecked."""
    if not split.files:
        return [], [Finding(ERROR, split.key, "no file", f"set {split.key}")]
    opened: list[DataFile] = []
    findings: list[Finding] = []
    for name in split.files:
        if "://" in name:
            findings.append(Finding(NOTE, split.key, "not a local file: its rows are unchecked", file=name))
            continue
        local = os.path.expanduser(name)
        matching = [local] if os.path.exists(local) else sorted(glob.glob(local))
        if not matching:
            remedy = "`python -m srpo_verl data` prepares the benchmarks; for data of your own see docs/custom_task.md"
            findings.append(Finding(ERROR, split.key, "no such file", remedy, file=name))
        for file in matching:
            found = _open(split.key, name if file == local else file, file)
            if isinstance(found, Finding):
                findings.append(found)
            else:
                opened.append(found)
    return opened, [*findings, *_disagreements(split.key, opened)]


def _open(key: str, name: str, local: str) -> DataFile | Finding:
    if not local.endswith((".parquet", ".json", ".jsonl")):
        return Finding(ERROR, key, "veRL reads .parquet, .json and .jsonl", "convert or rename the file", file=name)
    try:
        if local.endswith(".parquet"):
            with pq.ParquetFile(local) as file:
                return DataFile(name, file.schema_arrow, file.metadata.num_rows, local)
        # As veRL does: what it infers from JSON is what the run will see.
        table = datasets.load_dataset("json", data_files=local)["train"].data.table
        return DataFile(name, table.schema, table.num_rows, table)
    except Exception as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        kind = "parquet" if local.endswith(".parquet") else "JSON"
        return Finding(ERROR, key, f"is no readable {kind}: {reason}", "write it again", file=name)


def _disagreements(key: str, files: Sequence[DataFile]) -> list[Finding]:
    """veRL concatenates the files of a split, so that their common columns need the same type."""
    findings = []
    types: dict[str, tuple[pa.DataType, str]] = {}
    for file in files:
        for field in file.schema:
            known, where = types.setdefault(field.name, (field.type, file.name))
            if not (known == field.type or pa.types.is_null(known) or pa.types.is_null(field.type)):
                message = f"column {field.name!r} is {field.type}, and {known} in {where}"
                findings.append(Finding(ERROR, key, message, "write the files with the same types", file=file.name))
    return findings


def column_findings(split: Split, file: DataFile, settings: DataSettings) -> list[Finding]:
    """Missing columns, and types that veRL's data set, its reward managers or a teacher cannot take."""
    problems = [_prompt_problem(file.schema, settings.prompt_key)]
    if settings.reads_ground_truth:
        problems += [_data_source_problem(file.schema), _reward_problem(file.schema)]
    problems.append(_extra_info_problem(file.schema))
    if split.trains and settings.reference:
        problems.append(_reference_problem(file.schema, settings.reference))
    return [Finding(ERROR, split.key, *problem, file=file.name) for problem in problems if problem is not None]


def _type(schema: pa.Schema, name: str) -> pa.DataType | None:
    return schema.field(name).type if name in schema.names else None


def _missing(schema: pa.Schema, name: str, remedy: str) -> tuple[str, str]:
    return f"no column {name!r} (it has {', '.join(schema.names)})", remedy


def _prompt_problem(schema: pa.Schema, name: str) -> tuple[str, str] | None:
    kind = _type(schema, name)
    if kind is None:
        return _missing(schema, name, "name the column of the messages with data.prompt_key")
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if is_list and pa.types.is_struct(kind.value_type):
        fields = {field.name for field in kind.value_type}
        if lacking := {"role", "content"} - fields:
            return f"messages of {name!r} have no {' and no '.join(sorted(lacking))}", f"messages are {PROMPT_EXAMPLE}"
        return None
    return f"column {name!r} is {kind}", f"it has to hold messages, {PROMPT_EXAMPLE}"


def _data_source_problem(schema: pa.Schema) -> tuple[str, str] | None:
    kind = _type(schema, "data_source")
    if kind is None:
        return _missing(schema, "data_source", "name the verifier's data source in every row")
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or _is_dictionary_of_text(kind)):
        return f"column 'data_source' is {kind}", "it has to hold a text"
    return None


def _is_dictionary_of_text(kind: pa.DataType) -> bool:
    return pa.types.is_dictionary(kind) and pa.types.is_string(kind.value_type)


def _reward_problem(schema: pa.Schema) -> tuple[str, str] | None:
    example = "it has to hold {'ground_truth': ...}"
    kind = _type(schema, "reward_model")
    if kind is None:
        return _missing(schema, "reward_model", example)
    if not pa.types.is_struct(kind):
        return f"column 'reward_model' is {kind}", example
    if "ground_truth" not in {field.name for field in kind}:
        return "column 'reward_model' has no ground_truth", example
    return None


def _extra_info_problem(schema: pa.Schema) -> tuple[str, str] | None:
    kind = _type(schema, "extra_info")
    if kind is None or pa.types.is_struct(kind) or pa.types.is_null(kind):
        return None
    return f"column 'extra_info' is {kind}", "it has to hold named values, such as {'index': 0}"


def _reference_problem(schema: pa.Schema, path: Sequence[str]) -> tuple[str, str] | None:
    name = ".".join(path)
    remedy = "name the column of the solutions with srpo.demonstration.reference_column, keys inside it after dots"
    kind = _type(schema, path[0])
    if kind is None:
        return _missing(schema, path[0], remedy)
    for key in path[1:]:
        fields = {field.name: field.type for field in kind} if pa.types.is_struct(kind) else {}
        if key not in fields:
            return f"column {name!r}: no {key!r} in {kind}", remedy
        kind = fields[key]
    if pa.types.is_nested(kind) or pa.types.is_binary(kind):
        return f"column {name!r} is {kind}", "a solution is shown as it stands, so it has to be a text"
    return None
