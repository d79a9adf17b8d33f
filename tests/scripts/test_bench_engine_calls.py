"""The engine's calls on a device: the same calls as are counted, and the script's rows. Times need a GPU."""

import pandas as pd
import pytest
import torch

from scripts import bench_engine_calls, count_kernels
from scripts.bench.engine_calls import Case, EngineCalls
from scripts.bench.gpu_meter import Meter
from scripts.bench.gpu_stopwatch import Measured, Stopwatch

CPU = torch.device("cpu")


@pytest.mark.parametrize("share", count_kernels.SHARES)
def test_what_is_timed_is_what_is_counted(share):
    case = Case(60, 128, 5, share, torch.bfloat16)
    timed, counted = EngineCalls(case, Stopwatch(CPU)).run(), EngineCalls(case, Meter()).run()
    assert timed.keys() == counted.keys()
    assert all(found.time > 0 for found in timed.values())
    assert all(found.launches > 0 for found in counted.values())


def test_calls_add_up_one_after_the_other():
    assert Measured(1.0, 5) + Measured(2.0, 3) == Measured(3.0, 5)


def test_the_command_writes_a_row_per_call(tmp_path, capsys):
    sizes = ["--device", "cpu", "--tokens", "60", "--vocab", "128", "--support", "5", "--repeats", "2"]
    assert bench_engine_calls.main([*sizes, "--out", str(tmp_path)]) == 0
    rows = pd.read_csv(tmp_path / "engine_calls.csv")
    assert not rows.duplicated(["path", "call"]).any()
    assert set(rows.path) >= {"engine, 40 % distilled", "engine compiled, 40 % distilled", "stock veRL"}
    parts = rows[(rows.path == "engine, 40 % distilled") & (rows.call != "all")]
    whole = rows[(rows.path == "engine, 40 % distilled") & (rows.call == "all")].iloc[0]
    assert parts.counted.sum() == pytest.approx(whole.counted, abs=0.03)  # each is rounded to 0.01
    assert (rows.least <= rows.ms).all()
    assert (rows.ms <= rows.most).all()
    assert "a copy moves" in capsys.readouterr().out


def test_a_path_that_does_not_fit_says_so():
    def too_large(watch):
        raise torch.OutOfMemoryError

    counted = [count_kernels.Line("stock veRL", "entropy", Meter().count)]
    (row,) = bench_engine_calls.rows_of(bench_engine_calls.Timed(too_large, counted), CPU, 1, 1e12)
    assert row == {"path": "stock veRL", "call": "not enough memory"}
