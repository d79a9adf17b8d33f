"""Mathematics from local files and from the hub."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from srpo_verl.data.__main__ import main
from srpo_verl.data.mathematics import INSTRUCTION
from srpo_verl.rewards import compute_score
from tests.data.samples import write_lines

SOLVED = [
    {"problem": "1+1?", "solution": "It is \\boxed{3}, no, \\boxed{2}."},
    {"problem": "1/2?", "answer": "0.5", "solution": "\\boxed{\\frac{1}{2}}"},
    {"problem": "2*3?", "answer": 6},
]


def convert(source, out, *flags):
    return main(["math", "--source", str(source), "--out", str(out), *flags])


def load(out, split):
    return pq.read_table(out / f"{split}.parquet").to_pylist()


def test_json_lines(tmp_path):
    write_lines(tmp_path / "in" / "train.jsonl", SOLVED)
    write_lines(tmp_path / "in" / "test.json", SOLVED[:1])
    assert convert(tmp_path / "in", tmp_path / "out", "--name", "toy", "--system", "Be brief.") == 0
    train = load(tmp_path / "out", "train")
    assert [row["reward_model"]["ground_truth"] for row in train] == ["2", "0.5", "6"]
    assert [row["extra_info"]["index"] for row in train] == [0, 1, 2]
    assert train[0]["data_source"] == "math/toy"
    assert train[0]["prompt"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1+1?" + INSTRUCTION},
    ]
    for row in train:
        gold = row["reward_model"]["ground_truth"]
        assert compute_score(row["data_source"], f"\\boxed{{{gold}}}", gold)["score"] == 1.0
    assert len(load(tmp_path / "out", "test")) == 1


def test_parquet_and_field_names(tmp_path):
    rows = [{"question": "1+1?", "final": "2"}, {"question": "1+2?", "final": "3"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data.parquet")
    flags = ("--splits", "test", "--problem-field", "question", "--answer-field", "final", "--instruction", "")
    assert convert(tmp_path / "data.parquet", tmp_path / "out", *flags) == 0
    assert [row["prompt"][0]["content"] for row in load(tmp_path / "out", "test")] == ["1+1?", "1+2?"]
    assert load(tmp_path / "out", "test")[0]["data_source"] == "math"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"solution": "\\boxed{2}"}, "--problem-field"),
        ({"problem": ""}, "--problem-field"),
        ({"problem": "\ud800", "answer": "1"}, "--problem-field"),
        ({"problem": "p"}, "--answer-field"),
        ({"problem": "p", "solution": "no box"}, "--solution-field"),
        ({"problem": "p", "answer": ["1"]}, "--answer-field"),
        ({"problem": "p", "answer": "\ud800"}, "surrogate"),
        ([], "not an object"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line(row, message, tmp_path, capsys):
    file = write_lines(tmp_path / "train.jsonl", [*SOLVED, row])
    assert convert(file, tmp_path / "out", "--splits", "train") == 1
    error = capsys.readouterr().err
    assert f"{file}:4: " in error
    assert message in error
    assert not (tmp_path / "out").exists()


def test_a_line_that_is_not_json_is_named(tmp_path, capsys):
    file = tmp_path / "train.jsonl"
    file.write_text(json.dumps(SOLVED[0]) + "\n{broken\n")
    assert convert(file, tmp_path / "out", "--splits", "train") == 1
    assert f"{file}:2: not JSON" in capsys.readouterr().err


def test_unreadable_sources(tmp_path, capsys):
    (tmp_path / "train.parquet").write_text("no parquet")
    (tmp_path / "both").mkdir()
    write_lines(tmp_path / "both" / "train.jsonl", SOLVED)
    write_lines(tmp_path / "both" / "train.json", SOLVED)
    (tmp_path / "data.csv").write_text("a,b\n")
    for source, message in [
        (tmp_path / "train.parquet", "cannot be read as parquet"),
        (tmp_path / "both", "more than one file train"),
        (tmp_path / "data.csv", "unknown kind of file"),
        (tmp_path / "no" / "such" / "place", "no id of a data set"),
    ]:
        assert convert(source, tmp_path / "out", "--splits", "train") == 1
        assert message in capsys.readouterr().err
    assert convert(tmp_path / "both" / "train.json", tmp_path / "out") == 1
    assert "--splits" in capsys.readouterr().err


def test_hub(tmp_path, monkeypatch, capsys):
    import datasets

    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        if split == "gone":
            raise ConnectionError("no network")
        return datasets.Dataset.from_list([{"problem": "1+1?", "answer": "2"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    flags = ("--hub-config", "main", "--hub-test-split", "validation")
    assert convert("owner/name", tmp_path / "out", *flags) == 0
    assert asked == [("owner/name", "main", "train"), ("owner/name", "main", "validation")]
    assert "questions in both train and test: 1" in capsys.readouterr().out
    assert convert("owner/name", tmp_path / "out2", "--hub-train-split", "gone") == 1
    assert "ConnectionError: no network" in capsys.readouterr().err
    assert not (tmp_path / "out2").exists()
