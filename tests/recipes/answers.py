"""Real rows and a tiny model that answers them, so that the published scorers reward some of its rollouts.

The model guesses among the right responses (srpo_verl/stand_in.py); rows, prompts, scorer and threshold are the real
ones.
"""

import json
from pathlib import Path

from srpo_verl.data.__main__ import main as make_data
from srpo_verl.data.benchmarks import BENCHMARKS
from srpo_verl.rewards import compute_score
from srpo_verl.stand_in import answering_model

ROWS = 8


def short_rows(benchmark: str, source: Path) -> list[dict]:
    """The official test rows with the shortest prompts. Tool Use has no other split at hand."""
    file = source / BENCHMARKS[benchmark].folder / "test.json"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return sorted(rows, key=lambda row: len(row["prompt"]))[:ROWS]


def write_data(benchmark: str, rows: list[dict], work: Path) -> Path:
    """Run the data command on the rows as both splits; returns the root of the parquet files."""
    folder = work / "splits" / BENCHMARKS[benchmark].folder
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        (folder / f"{split}.json").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    out = work / "data" / benchmark
    arguments = [benchmark, "--source", str(work / "splits"), "--out", str(out)]
    assert make_data([*arguments, "--allow-count-mismatch", "--allow-checksum-mismatch"]) == 0
    return work / "data"


def right_response(row: dict) -> str:
    """A response that the row's scorer accepts; a test holds it to that."""
    if row["kind"] == "mcq":
        return f"<answer>{row['answer']}</answer>"
    calls = json.loads(row["answer"])
    return "\n".join(f"Action: {call['Action']}\nAction Input: {call['Action_Input']}" for call in calls)


def is_right(benchmark: str, row: dict, response: str) -> bool:
    return compute_score(BENCHMARKS[benchmark].data_source, response, row["answer"])["score"] == 1.0


def guessing_model(rows: list[dict], directory: Path) -> Path:
    """Save a model that guesses among the right responses of the rows."""
    texts = [f"{row['system'] or ''}\n{row['prompt']}" for row in rows]
    return answering_model(texts, list(dict.fromkeys(map(right_response, rows))), directory)
