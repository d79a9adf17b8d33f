"""Command line: ``python -m srpo_verl data <benchmark> --source DIR --out DIR``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from srpo_verl.data import mathematics, official
from srpo_verl.data.benchmarks import BENCHMARKS, SPLITS, WHERE_TO_GET, Benchmark
from srpo_verl.data.rows import MAX_SHOWN, DataError, Row, find_duplicates, find_overlap, to_verl, write_splits
from srpo_verl.rewards import ground_truth_doubts


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m srpo_verl data",
        description="Turn a benchmark's split files into the parquet files that veRL reads.",
        epilog=f"{WHERE_TO_GET}\n\nexample:\n"
        "  python -m srpo_verl data chemistry --source SDPO/datasets --out data/chemistry",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("benchmark", choices=[*BENCHMARKS, "math"])
    parser.add_argument(
        "--source",
        required=True,
        help="directory with the split files, or the file of one split; for math also a data set id on the hub",
    )
    parser.add_argument("--out", required=True, type=Path, help="directory for train.parquet and test.parquet")
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=list(SPLITS), help="default: both")
    parser.add_argument(
        "--drop-train-overlap", action="store_true", help="leave out training rows whose question is in the test split"
    )
    group = parser.add_argument_group("the paper's benchmarks")
    group.add_argument(
        "--allow-count-mismatch", action="store_true", help="go on though a split has not the published number of rows"
    )
    group.add_argument(
        "--allow-checksum-mismatch", action="store_true", help="go on though a file is not the published one"
    )
    group = parser.add_argument_group("math")
    group.add_argument("--name", help="reported by veRL as math/NAME instead of math")
    group.add_argument("--problem-field", default="problem", help="default: %(default)s")
    group.add_argument("--answer-field", help="default: 'answer' where a row has it, else \\boxed in the solution")
    group.add_argument("--solution-field", default="solution", help="default: %(default)s")
    group.add_argument("--instruction", default=mathematics.INSTRUCTION, help="appended to each problem")
    group.add_argument("--system", help="system message; default: none")
    group.add_argument("--hub-config", help="configuration of the hub data set")
    group.add_argument("--hub-train-split", default="train", help="default: %(default)s")
    group.add_argument("--hub-test-split", default="test", help="default: %(default)s")
    return parser


def _reject_ineffective(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """A flag of the other kind of benchmark would do nothing, so it is an error."""
    is_math = arguments.benchmark == "math"
    flags = (
        ("--allow-count-mismatch", "--allow-checksum-mismatch")
        if is_math
        else (
            *("--name", "--problem-field", "--answer-field", "--solution-field", "--instruction", "--system"),
            *("--hub-config", "--hub-train-split", "--hub-test-split"),
        )
    )
    for flag in flags:
        key = flag[2:].replace("-", "_")
        if getattr(arguments, key) != parser.get_default(key):
            parser.error(f"{flag} has no effect on {arguments.benchmark}")
    if arguments.drop_train_overlap and set(arguments.splits) != set(SPLITS):
        parser.error("--drop-train-overlap needs both splits")
    if is_math and arguments.name is not None and not arguments.name.strip():
        parser.error("--name must not be empty")


def _read_official(benchmark: Benchmark, arguments: argparse.Namespace) -> dict[str, list[Row]]:
    files = official.find_files(benchmark, Path(arguments.source), arguments.splits)
    splits = {split: official.read_rows(benchmark, file) for split, file in files.items()}
    for split, rows in splits.items():
        published = benchmark.rows[split]
        if len(rows) != published and not arguments.allow_count_mismatch:
            raise DataError(
                f"{files[split]}: {len(rows)} rows, published are {published} ({benchmark.name}, {split}). "
                "If this is meant, pass --allow-count-mismatch"
            )
        found, recorded = official.sha256_of(files[split]), benchmark.sha256.get(split)
        if recorded is None:
            print(f"{files[split]}: sha256 {found}; no checksum of the published file is on record to compare with")
        elif found == recorded:
            print(f"{files[split]}: sha256 as published")
        elif len(rows) == published and not arguments.allow_checksum_mismatch:
            raise DataError(
                f"{files[split]}: sha256 {found}, published is {recorded}: the rows are as many, but not the same. "
                "If this is meant, pass --allow-checksum-mismatch"
            )
        else:
            print(f"{files[split]}: NOT the published file (sha256 {found}); allowed")
    return splits


def _read_math(arguments: argparse.Namespace) -> dict[str, list[Row]]:
    names = {"train": arguments.hub_train_split, "test": arguments.hub_test_split}
    wanted = {split: names[split] for split in arguments.splits}
    records = mathematics.load_records(arguments.source, wanted, arguments.hub_config)
    return {
        split: mathematics.make_rows(
            rows,
            problem_field=arguments.problem_field,
            answer_field=arguments.answer_field,
            solution_field=arguments.solution_field,
            instruction=arguments.instruction,
            system=arguments.system,
        )
        for split, rows in records.items()
    }


def _report_pairs(what: str, pairs: Sequence[tuple[Row, Row]]) -> None:
    if pairs:
        print(f"{what}: {len(pairs)}")
        for first, second in pairs[:MAX_SHOWN]:
            note = "" if first.ground_truth == second.ground_truth else " (with different answers)"
            print(f"  {first.place} = {second.place}{note}")
        if len(pairs) > MAX_SHOWN:
            print(f"  ... and {len(pairs) - MAX_SHOWN} more")


def _report_doubts(data_source: str, splits: Mapping[str, list[Row]]) -> None:
    """Rows that are in order but that the rule reads otherwise than they look; published data may hold some."""
    doubts = [
        f"  {row.place}: {doubt}"
        for rows in splits.values()
        for row in rows
        for doubt in ground_truth_doubts(data_source, row.ground_truth)
    ]
    if doubts:
        print(f"doubtful answers: {len(doubts)}", *doubts[:MAX_SHOWN], sep="\n")
        if len(doubts) > MAX_SHOWN:
            print(f"  ... and {len(doubts) - MAX_SHOWN} more")


def _report_duplicates(splits: Mapping[str, list[Row]]) -> list[tuple[Row, Row]]:
    for split, rows in splits.items():
        _report_pairs(f"duplicate questions within {split}", find_duplicates(rows))
    overlap = find_overlap(splits.get("train", []), splits.get("test", []))
    _report_pairs("questions in both train and test", overlap)
    return overlap


def run(arguments: argparse.Namespace) -> None:
    """Read and check everything, then write.

    Raises:
        DataError: and then nothing has been written.
    """
    benchmark = BENCHMARKS.get(arguments.benchmark)
    if benchmark is not None:
        splits = _read_official(benchmark, arguments)
        data_source, ability = benchmark.data_source, benchmark.kind
    else:
        splits = _read_math(arguments)
        data_source, ability = f"math/{arguments.name}" if arguments.name else "math", "math"
    _report_doubts(data_source, splits)
    overlap = _report_duplicates(splits)
    if arguments.drop_train_overlap:
        dropped = {row.place for row, _ in overlap}
        splits["train"] = [row for row in splits["train"] if row.place not in dropped]
        print(f"dropped from train: {len(dropped)}")
    records = {
        split: [
            to_verl(row, data_source=data_source, ability=ability, split=split, benchmark=arguments.benchmark)
            for row in rows
        ]
        for split, rows in splits.items()
    }
    for (split, rows), file in zip(records.items(), write_splits(records, arguments.out), strict=True):
        print(f"{arguments.benchmark} {split}: {len(rows)} rows, data_source {data_source}: {file}")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0, or 1 with the reason on standard error; 2 for wrong arguments."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    arguments.splits = [split for split in SPLITS if split in arguments.splits]
    _reject_ineffective(parser, arguments)
    try:
        run(arguments)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
