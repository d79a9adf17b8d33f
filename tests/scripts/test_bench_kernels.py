"""The benchmark of the functions over logits: the command, its CSV, its arithmetic and its verdicts. No timing."""

import csv
import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from scripts import bench_kernels
from scripts.bench import results, work
from scripts.bench.catalogue import GROWTH, IMPLEMENTATIONS, applicable
from scripts.bench.results import LIMITS, TRAFFIC, Row, judge, make_rows, spread

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"
NUMBERS = {"tokens", "seconds", "ratio", "ratio_p20", "ratio_p80", "bytes_limit", "exp_limit", "extra_memory"}


def run(out, *arguments):
    sizes = [
        "--vocab",
        "600",
        "--support",
        "5",
        "--repeats",
        "3",
        "--threads",
        "1",
        "--no-with-trl",
    ]
    return bench_kernels.main([*sizes, "--out", str(out), *arguments])


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """(exit status, folder) of a run with tiny sizes."""
    out = tmp_path_factory.mktemp("bench")
    return run(out, "--tokens", "5", "--dtypes", "bfloat16", "--figure", str(out / "images" / "figure.png")), out


@pytest.fixture(scope="module")
def rows(measured):
    with (measured[1] / "kernels.csv").open() as file:
        return [
            {key: float(value) if key in NUMBERS and value else value for key, value in row.items()}
            for row in csv.DictReader(file)
        ]


def test_command_writes_the_csv_and_the_figure(measured, rows):
    status, out = measured
    assert status == 0
    assert (out / "images" / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert list(rows[0]) == [field.name for field in fields(Row)]
    page = (PAGE.parent / "performance" / "columns.md").read_text()
    assert all(f"`{name}`" in page for name in rows[0]), "a column that docs/performance/columns.md does not name"


def test_every_implementation_in_every_phase(rows):
    seen = {(row["implementation"], row["phase"]) for row in rows}
    whole = ("srpo", "srpo_engine", "srpo_labels", "eager", "eager_labels", "eager_cast")
    expected = {(name, phase) for name in whole for phase in TRAFFIC}
    expected |= {("logsumexp", "teacher")} | {(f"{name}, first 5 tokens", "per_token") for name in GROWTH}
    assert seen == expected
    assert len(rows) == len(expected)


def test_ratios_and_parts_are_consistent(rows):
    by_name = {(row["implementation"], row["phase"]): row for row in rows}
    limits = {"bytes_limit": by_name["srpo", "support"], "exp_limit": by_name["srpo", "teacher"]}
    for (name, phase), row in by_name.items():
        assert row["seconds"] > 0
        assert row["ratio_p20"] <= row["ratio"] <= row["ratio_p80"]
        if name == "srpo":
            assert row["ratio"] == 1.0
            for times, (column, once) in zip(TRAFFIC[phase], limits.items(), strict=True):
                assert row[column] == pytest.approx(times * once[column], rel=1e-4)
            assert (row["extra_memory"] != "") == (phase == "pipeline")
    whole = by_name["srpo", "pipeline"]
    assert float(whole["gradient_error"]) < 2e-2
    assert float(whole["entropy_error"]) < 2e-5


@pytest.mark.parametrize("name", LIMITS)
def test_check_fails_where_a_limit_is_missed(name, monkeypatch, tmp_path, capsys):
    answer = {
        "rounds": [
            {
                "seconds": {
                    **{which: dict.fromkeys(work.STAGES, 0.1) for which in (*GROWTH, "srpo_labels")},
                    **{which: dict.fromkeys(work.STAGES, 1.0) for which in ("eager", "eager_labels")},
                    "logsumexp": {"teacher": 0.2},
                },
                "head": {"srpo": 0.04},
                "copy": 1e10,
                "exp": 1e9,
            }
        ],
        "errors": dict.fromkeys(GROWTH, (1e-6, 1e-6)),
        "not_run": {},
        "load": 0.0,
        "extra": {},
    }

    def worker(spec):
        extra = dict.fromkeys(spec["implementations"], spec["tokens"])
        return {**answer, "extra": extra if spec["mode"] == "memory" else {}}

    monkeypatch.setattr(bench_kernels, "run_worker", worker)
    arguments = ("--tokens", "1", "10", "--check")
    assert run(tmp_path, *arguments) == 0
    assert "missed" not in capsys.readouterr().err
    monkeypatch.setitem(LIMITS, name, 1e-9)
    monkeypatch.setattr(results, "OTHER_LIMITS", {})
    assert run(tmp_path, *arguments) == 1
    assert re.findall("missed: (.+) is ", capsys.readouterr().err) == [name]
    assert run(tmp_path, *arguments[:-1]) == 0


def test_check_fails_where_nothing_was_measured(monkeypatch, tmp_path, capsys):
    def worker(spec):
        raise bench_kernels.CaseFailed("the process ended with -9: killed")

    monkeypatch.setattr(bench_kernels, "run_worker", worker)
    assert run(tmp_path, "--tokens", "4", "--check") == 1
    out, err = capsys.readouterr()
    assert err.count("(not measured)") == len(LIMITS)
    assert "not run: the process ended with -9: killed" in out


def test_a_case_larger_than_the_memory_is_not_started():
    case = {"tokens": 2**40, "vocab": 600, "dtype": "float32", "device": "cpu"}
    if Path("/proc/meminfo").exists():
        assert re.match(r"needs .* GiB are free", bench_kernels._does_not_fit(case, 0.0))
    assert bench_kernels._does_not_fit({**case, "tokens": 1}, 0.0) is None


def test_large_cases_are_judged_and_the_worst_counts():
    case = {"device": "cpu", "dtype": "float32", "vocab": 10, "support": 2, "threads": 1, "head_tokens": 1}
    ours, theirs = dict.fromkeys(work.STAGES, 0.1), dict.fromkeys(work.STAGES, 1.0)
    rows = []
    for tokens, factor in ((1, 9.0), (2, 2.0), (3, 1.0)):
        seconds = {"srpo": {stage: factor * value for stage, value in ours.items()}, "eager": theirs}
        answer = {
            "rounds": [{"seconds": seconds, "head": {"srpo": 0.2}, "copy": 1.0, "exp": 1.0}],
            "errors": {},
            "load": 0.0,
        }
        rows += make_rows({**case, "tokens": tokens}, answer, {"srpo": 4})
    verdicts = {verdict.name: verdict for verdict in judge(rows, LIMITS)}
    assert verdicts["pipeline / eager"].worst == pytest.approx(0.2)  # of N = 2 and 3, not of N = 1
    assert verdicts["pipeline / eager"].where == "float32, N = 2"
    assert verdicts["extra memory / logits"].worst == pytest.approx(4 / (2 * 10 * 4))
    assert verdicts["time per token, most / fewest tokens"].worst == pytest.approx(0.2 / (0.4 / 3))  # either way
    assert not verdicts["teacher scoring / logsumexp"].holds


def test_spread():
    assert spread([3.0]) == (3.0, 3.0, 3.0)
    assert spread([5.0, 1.0, 2.0, 4.0, 3.0, 6.0]) == (3.5, 2.0, 5.0)


@pytest.mark.parametrize("name", ["srpo", "srpo_engine", "srpo_labels", "eager", "eager_labels"])
def test_all_make_the_same_gradient_and_entropy(name):
    inputs = work.make_inputs(4, 500, 7, torch.float32, torch.device("cpu"))
    result = IMPLEMENTATIONS[name].load()(inputs, work.Clock(inputs.student.device))
    # fp32; the eager path's tail is 1 minus a sum.
    assert max(work.errors(inputs, result, IMPLEMENTATIONS[name].labels)) < 1e-5
    # The comparison can fail: labels change the gradient.
    assert work.errors(inputs, result, not IMPLEMENTATIONS[name].labels)[0] > 1e-2


def test_which_implementations_a_case_has():
    assert "eager_cast" not in applicable(set(), "float32")
    assert "eager_cast" in applicable(set(), "bfloat16")
    assert "trl" in applicable({"trl"}, "float32")
    assert not any("trl" in name for name in applicable(set(), "float32"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokens", "0"], "--tokens must be at least 1, got 0"),
        (["--repeats", "0"], "--repeats must be at least 1, got 0"),
        (["--support", "600"], "--vocab 600, got 600"),
    ],
)
def test_errors_name_the_value(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(tmp_path, *arguments)
    assert message in capsys.readouterr().err


def test_a_library_that_is_asked_for_must_be_there(monkeypatch, tmp_path):
    monkeypatch.setattr(bench_kernels.others, "find", lambda name: None)
    with pytest.raises(SystemExit, match="--with-trl: trl is not installed"):
        run(tmp_path, "--with-trl")


def test_page_states_the_limits():
    page = PAGE.read_text()
    for name, limit in results.LIMITS.items():
        assert re.search(rf"^\| {re.escape(name)} \| {limit:g} \|", page, re.MULTILINE), name


def test_limits_by_device(monkeypatch):
    monkeypatch.setattr(results.Path, "read_text", lambda path: "vendor_id\t: GenuineIntel\n")
    assert results.limits_for("cpu") == LIMITS | dict.fromkeys(results.RATIOS, 0.25)
    assert results.limits_for("cuda") == LIMITS | dict.fromkeys(results.RATIOS, 0.65)
    monkeypatch.setattr(results.Path, "read_text", lambda path: "vendor_id\t: AuthenticAMD\n")
    assert results.limits_for("cpu") == LIMITS
