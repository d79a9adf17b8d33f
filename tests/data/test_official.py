"""The paper's benchmarks: layout, counts, checksums, fields, and files that are whole or absent."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from srpo_verl.data import official, rows
from srpo_verl.data.__main__ import main
from srpo_verl.data.benchmarks import BENCHMARKS
from srpo_verl.rewards import compute_score
from tests.data.samples import data_dir, science_row, tooluse_row, write_lines

SCIENCE = ["chemistry", "physics", "biology", "materials"]
PAPER = {
    "chemistry": (1890, 210),
    "physics": (720, 80),
    "biology": (450, 50),
    "materials": (841, 94),
    "tooluse": (4046, 68),
}
REPOSITORY = Path(__file__).resolve().parents[2]


def write_benchmark(root, name, *, train=None, test=None):
    """Look-alike split files with the published number of rows, or with the given rows."""
    benchmark = BENCHMARKS[name]
    make = tooluse_row if name == "tooluse" else science_row
    if train is None:
        train = [make(index) for index in range(benchmark.rows["train"])]
    if test is None:
        test = [make(len(train) + index) for index in range(benchmark.rows["test"])]
    write_lines(root / benchmark.folder / "train.json", train)
    write_lines(root / benchmark.folder / "test.json", test)
    return root


def convert(name, source, out, *flags):
    return main([name, "--source", str(source), "--out", str(out), *flags])


def load(out, split):
    return pq.read_table(out / f"{split}.parquet").to_pylist()


def published(name):
    """The directory of the official files; the test is left out where they are not at hand."""
    directory = data_dir()
    if directory is None or not (directory / BENCHMARKS[name].folder / "test.json").is_file():
        pytest.skip("the official split files are not at hand; set SRPO_DATA_DIR")
    return directory


def test_the_counts_are_the_papers():
    assert {name: (b.rows["train"], b.rows["test"]) for name, b in BENCHMARKS.items()} == PAPER


@pytest.mark.parametrize("name", SCIENCE)
def test_official_science(name, tmp_path, capsys):
    assert convert(name, published(name), tmp_path) == 0
    assert (len(load(tmp_path, "train")), len(load(tmp_path, "test"))) == PAPER[name]
    printed = capsys.readouterr().out
    assert printed.count("sha256 as published") == 2
    if name == "materials":
        assert "questions in both train and test: 1" in printed
        assert "train.json:315" in printed
        assert "test.json:15" in printed
    else:
        assert "both train and test" not in printed
    assert "duplicate questions within" not in printed
    for row in load(tmp_path, "test"):
        gold = row["reward_model"]["ground_truth"]
        assert compute_score(row["data_source"], f"<answer>\n{gold}\n</answer>", gold)["score"] == 1.0


def test_official_materials_without_the_question_of_the_test_split(tmp_path, capsys):
    assert convert("materials", published("materials"), tmp_path, "--drop-train-overlap") == 0
    assert (len(load(tmp_path, "train")), len(load(tmp_path, "test"))) == (840, 94)
    assert "dropped from train: 1" in capsys.readouterr().out


def test_official_tooluse(tmp_path, capsys):
    assert convert("tooluse", published("tooluse"), tmp_path, "--splits", "test") == 0
    assert len(load(tmp_path, "test")) == 68
    assert not (tmp_path / "train.parquet").exists()
    assert "sha256 as published" in capsys.readouterr().out


@pytest.mark.parametrize("name", [*SCIENCE, "tooluse"])
def test_look_alike_rows(name, tmp_path, capsys):
    source = write_benchmark(tmp_path / "in", name)
    assert convert(name, source, tmp_path / "out", "--allow-checksum-mismatch") == 0
    train, test = load(tmp_path / "out", "train"), load(tmp_path / "out", "test")
    assert (len(train), len(test)) == PAPER[name]
    printed = capsys.readouterr().out
    assert f"{name} train: {PAPER[name][0]} rows" in printed
    assert "NOT the published file" in printed
    if name == "tooluse":
        assert "no checksum of the published file is on record" in printed


def test_columns(tmp_path):
    source = write_benchmark(tmp_path / "in", "biology")
    assert convert("biology", source, tmp_path / "out", "--allow-checksum-mismatch") == 0
    wanted = science_row(451)
    assert load(tmp_path / "out", "test")[1] == {
        "data_source": "sciknoweval/biology",
        "prompt": [{"role": "system", "content": wanted["system"]}, {"role": "user", "content": wanted["prompt"]}],
        "ability": "mcq",
        "reward_model": {"style": "rule", "ground_truth": wanted["answer"]},
        "extra_info": {"split": "test", "index": 451, "benchmark": "biology"},
    }


def test_a_null_system_message_is_left_out(tmp_path):
    source = write_benchmark(tmp_path / "in", "tooluse")
    assert convert("tooluse", source, tmp_path / "out", "--allow-checksum-mismatch") == 0
    row = load(tmp_path / "out", "train")[7]
    assert [message["role"] for message in row["prompt"]] == ["user"]
    assert (row["data_source"], row["ability"]) == ("tooluse", "tooluse")
    assert json.loads(row["reward_model"]["ground_truth"])[0]["Action"] == "getNumber"


@pytest.mark.parametrize("below", ["", "sciknoweval", "sciknoweval/material"])
def test_where_the_source_may_point(below, tmp_path):
    source = write_benchmark(tmp_path / "in" / "datasets", "materials")
    for root in (source / below, tmp_path / "in"):
        assert convert("materials", root, tmp_path / "out", "--allow-checksum-mismatch") == 0


def test_one_file(tmp_path, capsys):
    source = write_benchmark(tmp_path, "physics") / "sciknoweval" / "physics" / "test.json"
    assert convert("physics", source, tmp_path / "out", "--allow-checksum-mismatch") == 1
    assert "--splits" in capsys.readouterr().err
    assert convert("physics", source, tmp_path / "out", "--splits", "test", "--allow-checksum-mismatch") == 0
    assert len(load(tmp_path / "out", "test")) == 80


def test_a_missing_train_file_says_how_to_go_on(tmp_path, capsys):
    source = write_benchmark(tmp_path / "in", "tooluse")
    (source / "tooluse" / "train.json").unlink()
    assert convert("tooluse", source, tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert str(source / "tooluse" / "train.json") in error
    assert "--splits test" in error
    assert "lasgroup/SDPO" in error
    assert not (tmp_path / "out").exists()
    assert convert("tooluse", source, tmp_path / "out", "--splits", "test", "--allow-checksum-mismatch") == 0


@pytest.mark.parametrize("what", ["absent", "empty"])
def test_a_source_without_files_says_where_they_are(what, tmp_path, capsys):
    source = tmp_path / "in"
    if what == "empty":
        source.mkdir()
    assert convert("physics", source, tmp_path / "out") == 1
    assert "git clone https://github.com/lasgroup/SDPO" in capsys.readouterr().err


def test_a_wrong_count_is_an_error_that_can_be_overridden(tmp_path, capsys):
    source = write_benchmark(tmp_path / "in", "biology", train=[science_row(index) for index in range(449)])
    assert convert("biology", source, tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "train.json: 449 rows, published are 450" in error
    assert "--allow-count-mismatch" in error
    assert not (tmp_path / "out").exists()
    flags = ("--allow-count-mismatch", "--allow-checksum-mismatch")
    assert convert("biology", source, tmp_path / "out", *flags) == 0


def test_the_right_count_with_other_content_is_an_error_that_can_be_overridden(tmp_path, capsys):
    source = write_benchmark(tmp_path / "in", "biology")
    assert convert("biology", source, tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert BENCHMARKS["biology"].sha256["train"] in error
    assert "--allow-checksum-mismatch" in error


def test_the_checksum_is_of_the_bytes(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert official.sha256_of(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


BAD = {
    "not json": ("{", "not JSON"),
    "deep": ("[" * 100_000, "not JSON"),
    "a number of many digits": ('{"idx": ' + "1" * 5000 + "}", "not JSON"),
    "blank": ("", "not JSON"),
    "list": ("[]", "not a JSON object"),
    "no answer": ({"answer": ...}, "field 'answer' is missing"),
    "no prompt": ({"prompt": " "}, "field 'prompt' must be a text"),
    "answer type": ({"answer": 3}, "field 'answer' must be a text, got int"),
    "answer letter": ({"answer": "E"}, "A, B, C, D"),
    "system type": ({"system": []}, "field 'system' must be a text or null"),
    "index": ({"idx": "3"}, "field 'idx' must be an integer"),
    "negative index": ({"idx": -1}, "field 'idx' must be an integer"),
    "kind": ({"kind": "code"}, "field 'kind' must be 'mcq'"),
    "dataset": ({"dataset": "gpqa"}, "field 'dataset' must be 'sciknoweval'"),
    "surrogate": ({"prompt": "\ud800"}, "surrogate"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_malformed_row_is_named_by_file_and_line(case, tmp_path, capsys):
    content, message = BAD[case]
    source = write_benchmark(tmp_path / "in", "physics")
    file = source / "sciknoweval" / "physics" / "test.json"
    lines = file.read_text().split("\n")
    if isinstance(content, dict):
        row = {**science_row(41), **content}
        content = json.dumps({key: value for key, value in row.items() if value is not ...})
    lines[41] = content
    file.write_text("\n".join(lines))
    out = tmp_path / "out"
    out.mkdir()
    (out / "train.parquet").write_text("kept")
    assert convert("physics", source, out, "--allow-checksum-mismatch", "--allow-count-mismatch") == 1
    error = capsys.readouterr().err
    assert f"{file}:42: " in error
    assert message in error
    assert [entry.name for entry in out.iterdir()] == ["train.parquet"]
    assert (out / "train.parquet").read_text() == "kept"


def test_a_malformed_tooluse_answer_is_named(tmp_path, capsys):
    broken = [tooluse_row(index) for index in range(68)]
    broken[3]["answer"] = "[{"
    broken[9]["answer"] = '[{"Action": "a"}]'
    source = write_benchmark(tmp_path / "in", "tooluse", test=broken)
    assert convert("tooluse", source, tmp_path / "out", "--splits", "test") == 1
    error = capsys.readouterr().err
    assert "2 malformed rows" in error
    assert "test.json:4: the answer is not valid JSON" in error
    assert "test.json:10: call 0 of the answer must have 'Action_Input'" in error


def test_a_doubtful_tooluse_answer_is_reported_and_kept(tmp_path, capsys):
    odd = [tooluse_row(index) for index in range(68)]
    odd[5]["answer"] = '[{"Action": "get-x", "Action_Input": "{}"}]'
    source = write_benchmark(tmp_path / "in", "tooluse", test=odd)
    assert convert("tooluse", source, tmp_path / "out", "--splits", "test", "--allow-checksum-mismatch") == 0
    printed = capsys.readouterr().out
    assert "doubtful answers: 1" in printed
    assert "test.json:6: no response can be right" in printed
    assert len(load(tmp_path / "out", "test")) == 68


def test_only_the_first_malformed_rows_are_listed(tmp_path, capsys):
    source = write_benchmark(tmp_path / "in", "physics", test=[1] * 80)
    assert convert("physics", source, tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "80 malformed rows" in error
    assert "... and 70 more" in error


def test_a_file_that_is_not_utf8_is_named_with_the_line(tmp_path, capsys):
    source = write_benchmark(tmp_path / "in", "physics")
    file = source / "sciknoweval" / "physics" / "train.json"
    file.write_bytes(file.read_bytes().split(b"\n")[0] + b'\n{"a": "\xff"}\n')
    assert convert("physics", source, tmp_path / "out") == 1
    assert f"{file}:2: not UTF-8" in capsys.readouterr().err


def test_an_empty_file_is_an_error(tmp_path, capsys):
    source = write_benchmark(tmp_path / "in", "physics", test=[])
    assert convert("physics", source, tmp_path / "out", "--allow-count-mismatch") == 1
    assert "test.json: no rows" in capsys.readouterr().err


def test_duplicates_are_reported_and_can_be_dropped(tmp_path, capsys):
    train = [science_row(index) for index in range(450)]
    test = [science_row(450 + index) for index in range(50)]
    train[7]["prompt"] = train[3]["prompt"]
    train[8]["prompt"] = test[4]["prompt"] = "the same"
    train[8]["answer"], test[4]["answer"] = "A", "B"
    test[9]["system"] = None
    test[9]["prompt"] = train[20]["prompt"]  # the same prompt under another system message is another question
    source = write_benchmark(tmp_path / "in", "biology", train=train, test=test)
    assert convert("biology", source, tmp_path / "out", "--allow-checksum-mismatch") == 0
    printed = capsys.readouterr().out
    assert "duplicate questions within train: 1" in printed
    assert "train.json:4 = " in printed
    assert "duplicate questions within test" not in printed
    assert "questions in both train and test: 1" in printed
    assert "test.json:5 (with different answers)" in printed
    assert len(load(tmp_path / "out", "train")) == 450
    flags = ("--allow-checksum-mismatch", "--drop-train-overlap")
    assert convert("biology", source, tmp_path / "out", *flags) == 0
    assert (len(load(tmp_path / "out", "train")), len(load(tmp_path / "out", "test"))) == (449, 50)


def test_nothing_is_replaced_when_the_second_file_cannot_be_written(tmp_path, monkeypatch):
    source = write_benchmark(tmp_path / "in", "biology")
    out = tmp_path / "out"
    assert convert("biology", source, out, "--allow-checksum-mismatch") == 0
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    write_table, calls = pq.write_table, []

    def fail_later(table, where):
        calls.append(where)
        if len(calls) == 2:
            raise OSError("the disk is full")
        write_table(table.slice(0, 1), where)

    monkeypatch.setattr(rows.pq, "write_table", fail_later)
    with pytest.raises(OSError, match="the disk is full"):
        convert("biology", source, out, "--allow-checksum-mismatch")
    assert len(calls) == 2
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_the_same_files_give_the_same_bytes(tmp_path):
    source = write_benchmark(tmp_path / "in", "biology")
    for out in ("one", "two"):
        assert convert("biology", source, tmp_path / out, "--allow-checksum-mismatch") == 0
    for split in ("train", "test"):
        assert (tmp_path / "one" / f"{split}.parquet").read_bytes() == (
            tmp_path / "two" / f"{split}.parquet"
        ).read_bytes()


@pytest.mark.parametrize(
    "flags",
    [
        ("physics", "--problem-field", "x"),
        ("tooluse", "--name", "x"),
        ("math", "--allow-count-mismatch"),
        ("math", "--name", " "),
        ("physics", "--drop-train-overlap", "--splits", "test"),
        ("geography",),
        ("physics", "--splits", "dev"),
    ],
)
def test_flags_that_would_do_nothing_are_errors(flags, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*flags, "--source", str(tmp_path), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    assert flags[1 if len(flags) > 1 else 0] in capsys.readouterr().err


def test_the_command(tmp_path):
    """As a user runs it: the status is 1 and there is no traceback."""
    command = [sys.executable, "-m", "srpo_verl.data", "physics", "--source", "nowhere", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.startswith("error: nowhere does not exist.")


def test_verls_dataset_reads_the_files(tmp_path):
    from omegaconf import OmegaConf
    from verl.utils.dataset.rl_dataset import RLHFDataset

    from tests.support import tiny_tokenizer

    source = write_benchmark(tmp_path / "in", "biology")
    assert convert("biology", source, tmp_path / "out", "--allow-checksum-mismatch") == 0
    config = OmegaConf.create(
        {
            "cache_dir": str(tmp_path / "cache"),
            "prompt_key": "prompt",
            "max_prompt_length": 1024,
            "filter_overlong_prompts": True,
            "filter_overlong_prompts_workers": 1,
        }
    )
    dataset = RLHFDataset(str(tmp_path / "out" / "test.parquet"), tiny_tokenizer(), config)
    shutil.rmtree(tmp_path / "in")
    assert len(dataset) == 50
    item = dataset[0]
    assert [message["role"] for message in item["raw_prompt"]] == ["system", "user"]
    assert item["data_source"] == "sciknoweval/biology"
    assert item["reward_model"]["ground_truth"] == science_row(450)["answer"]
    assert item["index"] == 450
