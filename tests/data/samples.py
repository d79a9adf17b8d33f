"""The official split files where they are at hand, and rows of the same form where they are not."""

import json
import os
from pathlib import Path
from typing import Any

SYSTEM = "\nGiven a question and four options, please select the right answer.\n"


def data_dir() -> Path | None:
    """The directory of the official files: $SRPO_DATA_DIR, else one beside the checkout, else None."""
    fallback = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    directory = Path(os.environ.get("SRPO_DATA_DIR", fallback))
    return directory if (directory / "sciknoweval").is_dir() else None


def science_row(index: int) -> dict[str, Any]:
    """A row of the form of the SciKnowEval files."""
    return {
        "idx": index,
        "kind": "mcq",
        "dataset": "sciknoweval",
        "answer": "ABCD"[index % 4],
        "elo": 1500,
        "prompt": f"What is {index} + 1?\n\nA: 1\nB: 2\nC: 3\nD: 4\nPlease reason step by step.",
        "description": f"What is {index} + 1? The solution will be evaluated in a mcq environment.",
        "tests": "-",
        "embedding": [],
        "system": SYSTEM,
    }


def tooluse_answer(*calls: tuple[str, Any]) -> str:
    """A gold answer: a JSON list in which each input is itself a string of JSON."""
    return json.dumps([{"Action": name, "Action_Input": json.dumps(value)} for name, value in calls])


def tooluse_row(index: int) -> dict[str, Any]:
    """A row of the form of the Tool Use files; the first two hold what the published scorer cannot score."""
    nested = {"userId": "u1", "profileData": {"pictureUrl": "https://example.com/a.jpg"}}
    answers = {
        0: tooluse_answer(("updateUserProfile", nested)),
        1: tooluse_answer(("getUserProfile", {"userId": "u1"}), ("[Optional]updateUserProfile", nested)),
    }
    return {
        "prompt": f"You have access to the following tools: ...\nQuestion: number {index}",
        "description": f"Question {index}",
        "idx": 4046 + index,
        "dataset": "tooluse",
        "system": None,
        "answer": answers.get(index, tooluse_answer(("getNumber", {"n": index, "tags": ["a", "b"]}))),
        "tests": None,
        "kind": "tooluse",
        "elo": None,
    }


def write_lines(file: Path, rows: list[Any]) -> Path:
    """JSON lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def tooluse_test_rows() -> list[dict[str, Any]]:
    """The official Tool Use test split, or 68 rows like it."""
    directory = data_dir()
    if directory is not None and (directory / "tooluse" / "test.json").is_file():
        return read_lines(directory / "tooluse" / "test.json")
    return [tooluse_row(index) for index in range(68)]


def tooluse_response(answer: str) -> str:
    """A response that makes exactly the calls of a gold answer, in the form that the prompts ask for."""
    return "\n".join(
        f"Thought: I need {call['Action']}.\nAction: {call['Action']}\nAction Input: {call['Action_Input']}"
        for call in json.loads(answer)
    )
