"""The benchmark of the functions over logits: the command, its CSV, its arithmetic and its verdicts. No timing."""

import csv
import re
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from scripts import bench_kernels
from scripts.bench import implementations, limits
from scripts.bench.float64 import errors
from scripts.bench.implementations import GROWTH, IMPLEMENTATIONS, STAGES, Clock, applicable, make_inputs
from scripts.bench.kernel_rows import COLUMNS, TRAFFIC, judge, make_rows
from scripts.bench.limits import LIMITS
from scripts.bench.spread import spread
from scripts.bench.time_and_memory import Case, CaseFailed, Times, peak_memory

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"
NUMBERS = {"tokens", "seconds", "ratio", "ratio_p20", "ratio_p80", "bytes_limit", "exp_limit", "extra_memory"}


def run(out, *arguments):
    sizes = ["--vocab", "600", "--support", "5", "--repeats", "3", "--threads", "1"]
    return bench_kernels.main([*sizes, "--out", str(out), *arguments])


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """(exit status, folder) of a run with tiny sizes."""
    out = tmp_path_factory.mktemp("bench")
    return run(out, "--tokens", "5", "--dtypes", "bfloat16"), out


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
    assert (out / "kernels.png").read_bytes().startswith(b"\x89PNG")
    assert list(rows[0]) == COLUMNS
    page = (PAGE.parent / "performance" / "columns.md").read_text()
    assert all(f"`{name}`" in page for name in rows[0]), "a column that docs/performance/columns.md does not name"


def test_every_implementation_in_every_phase(rows):
    seen = {(row["implementation"], row["phase"]) for row in rows}
    whole = ("srpo", "srpo_engine", "eager", "eager_labels", "eager_cast")
    expected = {(name, phase) for name in whole for phase in TRAFFIC}
    expected |= {("logsumexp", "teacher")} | {(f"{name}, first 5 tokens", "per_token") for name in GROWTH}
    expected |= {("trl", "pipeline")} if implementations.trl_version() else set()
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
    stages = {
        **{which: dict.fromkeys(STAGES, 0.1) for which in GROWTH},
        **{which: dict.fromkeys(STAGES, 1.0) for which in ("eager", "eager_labels")},
        "logsumexp": {"teacher": 0.2},
    }
    times = Times({which: [seconds] for which, seconds in stages.items()}, {"srpo": [0.04]}, [1e10], [1e9], 0.0)
    times.errors = dict.fromkeys(GROWTH, (1e-6, 1e-6))

    def measured(measure, case, names):
        return case.tokens if measure is peak_memory else times

    monkeypatch.setattr(bench_kernels, "in_a_process", measured)
    arguments = ("--tokens", "1", "10", "--check")
    assert run(tmp_path, *arguments) == 0
    assert "missed" not in capsys.readouterr().err
    monkeypatch.setitem(LIMITS, name, 1e-9)
    monkeypatch.setattr(limits, "OTHER_LIMITS", {})
    assert run(tmp_path, *arguments) == 1
    assert re.findall("missed: (.+) is ", capsys.readouterr().err) == [name]
    assert run(tmp_path, *arguments[:-1]) == 0


def test_check_fails_where_nothing_was_measured(monkeypatch, tmp_path, capsys):
    def killed(*given):
        raise CaseFailed("the process was killed")

    monkeypatch.setattr(bench_kernels, "in_a_process", killed)
    assert run(tmp_path, "--tokens", "4", "--check") == 1
    out, err = capsys.readouterr()
    assert err.count("(not measured)") == len(LIMITS)
    assert "not run: float32 4 srpo the process was killed" in out


def case_of(tokens, vocab=10):
    return Case("cpu", "float32", tokens, vocab, 2, threads=1, repeats=1, head_tokens=1)


def test_a_case_larger_than_the_memory_is_not_started():
    assert re.match(r"needs .* GiB are free", bench_kernels._does_not_fit(case_of(2**40, 600), ["srpo"]))
    assert bench_kernels._does_not_fit(case_of(1, 600), ["srpo", "eager"]) is None


def test_srpos_functions_are_measured_where_others_do_not_fit(monkeypatch):
    case = case_of(1000, 1000)
    free = SimpleNamespace(available=5 * case.logits_bytes)
    monkeypatch.setattr(bench_kernels.psutil, "virtual_memory", lambda: free)
    assert bench_kernels._does_not_fit(case, ["srpo", "srpo_engine", "logsumexp"]) is None
    assert bench_kernels._does_not_fit(case, ["srpo", "eager"])


def test_large_cases_are_judged_and_the_worst_counts():
    ours, theirs = dict.fromkeys(STAGES, 0.1), dict.fromkeys(STAGES, 1.0)
    rows = []
    for tokens, factor in ((1, 9.0), (2, 2.0), (3, 1.0)):
        seconds = {"srpo": [{stage: factor * value for stage, value in ours.items()}], "eager": [theirs]}
        rows += make_rows(case_of(tokens), Times(seconds, {"srpo": [0.2]}, [1.0], [1.0], 0.0), {"srpo": 4})
    verdicts = {it.limit: it for it in judge(pd.DataFrame(rows, columns=COLUMNS), LIMITS).itertuples()}
    assert verdicts["pipeline / eager"].worst == pytest.approx(0.2)  # of N = 2 and 3, not of N = 1
    assert verdicts["pipeline / eager"].where == "float32, N = 2"
    assert verdicts["extra memory / logits"].worst == pytest.approx(4 / (2 * 10 * 4))
    assert verdicts["time per token, most / fewest tokens"].worst == pytest.approx(0.4 / 3 / 0.2)  # it may fall
    assert not verdicts["teacher scoring / logsumexp"].holds


def test_spread():
    assert spread([3.0]) == (3.0, 3.0, 3.0)
    assert spread([5.0, 1.0, 2.0, 4.0, 3.0, 6.0]) == (3.5, 2.0, 5.0)


@pytest.mark.parametrize("name", ["srpo", "srpo_engine", "eager", "eager_labels"])
def test_all_make_the_same_gradient_and_entropy(name):
    inputs = make_inputs(4, 500, 7, torch.float32, torch.device("cpu"))
    result = IMPLEMENTATIONS[name].run(inputs, Clock(inputs.student.device))
    # fp32; the eager path's tail is 1 minus a sum.
    assert max(errors(inputs, result, IMPLEMENTATIONS[name].labels)) < 1e-5
    # The comparison can fail: labels change the gradient.
    assert errors(inputs, result, not IMPLEMENTATIONS[name].labels)[0] > 1e-2


def test_which_implementations_a_case_has(monkeypatch):
    monkeypatch.setattr(implementations, "trl_version", lambda: "1.16.0")
    assert "eager_cast" not in applicable("float32")
    assert "eager_cast" in applicable("bfloat16")
    assert "trl" in applicable("float32")
    monkeypatch.setattr(implementations, "trl_version", lambda: None)
    assert "trl" not in applicable("float32")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokens", "0"], "argument --tokens: must be at least 1, got 0"),
        (["--repeats", "0"], "argument --repeats: must be at least 1, got 0"),
        (["--support", "600"], "--vocab 600, got 600"),
    ],
)
def test_errors_name_the_value(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(tmp_path, *arguments)
    assert message in capsys.readouterr().err


def test_page_states_the_limits():
    page = PAGE.read_text()
    for name, limit in LIMITS.items():
        assert re.search(rf"^\| {re.escape(name)} \| {limit:g} \|", page, re.MULTILINE), name


def test_limits_by_device(monkeypatch):
    monkeypatch.setattr(limits.Path, "read_text", lambda path: "vendor_id\t: GenuineIntel\n")
    assert limits.limits_for("cpu") == LIMITS | dict.fromkeys(limits.RATIOS, 0.25)
    assert limits.limits_for("cuda") == LIMITS | dict.fromkeys(limits.RATIOS, 0.65)
    monkeypatch.setattr(limits.Path, "read_text", lambda path: "vendor_id\t: AuthenticAMD\n")
    assert limits.limits_for("cpu") == LIMITS
