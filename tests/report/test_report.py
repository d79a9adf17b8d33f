"""The report on logs as real runs leave them: resumed, cut off, collapsed, several seeds."""

import csv
import json
import math
import os

import numpy as np
import pytest

from srpo_verl.budget import TrainingRecord, best_accuracy_name, mean_accuracy
from srpo_verl.report.__main__ import main
from srpo_verl.report.figures import FIGURES, rolling
from srpo_verl.report.loader import ReportError, load_runs
from srpo_verl.report.tables import (
    BUDGETS_H,
    budget_cells,
    find_collapse,
    reached_windows,
    seconds_per_step,
    seed_rows,
    summary_rows,
    warnings,
)
from tests.report.logs import realistic, training_line, validation, write

PNG = b"\x89PNG\r\n"


def one_run(directory, lines, name="srpo"):
    """The run in `lines`, written and read back."""
    write(directory / "srpo" / f"{name}.jsonl", lines)
    runs, notes = load_runs([directory])
    assert len(runs) == 1
    return runs[0], notes


def test_the_command_writes_tables_and_every_figure(tmp_path, capsys):
    for seed in (0, 1):
        write(tmp_path / f"seed{seed}" / "srpo" / "srpo.jsonl", realistic(60, 0.8, 80, seed))
    write(tmp_path / "seed0" / "srpo" / "grpo.jsonl", realistic(50, 0.7, 90, 7, collapse_at=40))
    out = tmp_path / "out"

    assert main([str(tmp_path / "seed0"), str(tmp_path / "seed1"), "--out", str(out)]) == 0

    printed = capsys.readouterr().out
    for name in [*FIGURES, "summary.md", "summary.csv", "seeds.csv"]:
        assert f"wrote {out / name}" in printed
    assert all((out / name).read_bytes().startswith(PNG) for name in FIGURES)
    assert "left out" not in printed
    assert "grpo: late collapse from step 40 on" in printed
    summary = (out / "summary.md").read_text()
    assert "late collapse from step 40 on" in summary.split("## Validation accuracy")[0]
    assert "srpo (seed0)" in summary
    assert "One run only: grpo." in summary
    with (out / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == ["grpo", "srpo (seed0)", "srpo (seed1)"]
    with (out / "seeds.csv").open() as file:
        (spread,) = csv.DictReader(file)
    bests = [float(row["best_acc"]) for row in rows[1:]]
    assert float(spread["best_acc_mean"]) == pytest.approx(sum(bests) / 2)
    assert float(spread["best_acc_std"]) == pytest.approx(abs(bests[0] - bests[1]) / math.sqrt(2))
    assert spread["runs"] == "2"


def test_figures_without_metrics_are_left_out_and_an_earlier_one_is_removed(tmp_path, capsys):
    lines = [{"step": step, "data": {"response_length/mean": 30.0}} for step in (1, 2, 3)]
    write(tmp_path / "run" / "a.jsonl", lines)
    out = tmp_path / "out"
    out.mkdir()
    (out / "teacher.png").write_bytes(b"of another report")

    assert main([str(tmp_path / "run"), "--out", str(out)]) == 0

    printed = capsys.readouterr().out
    assert sorted(path.name for path in out.glob("*.png")) == ["response_length.png"]
    for name in set(FIGURES) - {"response_length.png"}:
        assert f"left out: {name}, no run has logged " in printed
    assert "no run has logged srpo/teacher_entropy_mean and srpo/student_teacher_divergence" in printed
    assert "3 of 3 steps have no timing_s/step" in printed


def test_budgets_count_the_seconds_of_steps_without_validations_and_checkpoints(tmp_path):
    lines = [{"step": 0, "data": validation(0.2)}]
    for step, accuracy in enumerate([0.5, 0.4, 0.7, 0.9, 0.1], start=1):
        # 1,700 s of training: two steps to the hour. With the validation or the checkpoint it would be one.
        lines.append(
            training_line(step, timing_s__step=1800.0, timing_s__save_checkpoint=100.0, timing_s__testing=200.0)
        )
        lines[-1]["data"] |= validation(accuracy)
    run, notes = one_run(tmp_path, lines)
    (row,) = summary_rows([run])
    assert notes == []
    assert row["hours"] == pytest.approx(5 * 1700 / 3600)
    assert row["steps"] == 5
    assert (row["best_acc"], row["best_step"]) == (pytest.approx(90.0), 4)
    assert (row["final_acc"], row["final_step"]) == (pytest.approx(10.0), 5)
    assert row["best_acc_1h"] == pytest.approx(50.0)
    assert row["best_acc_5h"] == row["best_acc_10h"] == pytest.approx(90.0)
    assert (row["steps_1h"], row["steps_5h"]) == (2, 5)
    assert row["s_per_step_1h"] == pytest.approx(1700.0)
    assert reached_windows(run) == [1, 5]


def counted_by_the_run(lines, budgets=BUDGETS_H, record=None):
    """Add what a run of this package logs to lines with `timing_s/step` and validations; returns the run's record."""
    record = record or TrainingRecord()
    for line in lines:
        data = line["data"]
        if "timing_s/step" in data:
            record.add_step(data["timing_s/step"] - data.get("timing_s/save_checkpoint", 0.0))
            data["srpo/hours"] = record.hours
        accuracy = mean_accuracy(data)
        if accuracy is not None:
            record.add_validation(line["step"], accuracy)
            data |= record.metrics(budgets)
    return record


def best_of_the_run(run, budget):
    """The last value of srpo/best_accuracy_*, in percent."""
    return 100 * run.series(best_accuracy_name(budget))[1][-1]


def test_table_1_is_what_the_run_itself_logged(tmp_path):
    lines = [{"step": 0, "data": validation(0.3, "a") | validation(0.5, "b")}]
    for step in range(1, 12):
        lines.append(training_line(step, timing_s__step=3500.0, timing_s__save_checkpoint=3.0))
        if step % 2 == 0:
            lines[-1]["data"] |= validation(0.4 + 0.04 * step, "a") | validation(0.5 - 0.02 * step, "b")
    counted_by_the_run(lines)
    run, notes = one_run(tmp_path, lines)
    rows = {row["benchmark"]: row for row in summary_rows([run])}
    assert notes == []
    for budget in BUDGETS_H:
        assert rows["average"][f"best_acc_{budget}h"] == pytest.approx(best_of_the_run(run, budget))
    assert best_of_the_run(run, 1) == pytest.approx(40.0)
    assert best_of_the_run(run, 5) == pytest.approx(54 - 50 + 45)
    assert rows["average"]["hours"] == run.series("srpo/hours")[1][-1]
    # A log of another trainer, without the run's own count, gives the same table.
    for line in lines:
        line["data"] = {
            name: value for name, value in line["data"].items() if not name.startswith(("srpo/h", "srpo/b"))
        }
    (stock,) = summary_rows([one_run(tmp_path / "stock", lines)[0]])[-1:]
    assert [stock[f"best_acc_{budget}h"] for budget in BUDGETS_H] == pytest.approx(
        [rows["average"][f"best_acc_{budget}h"] for budget in BUDGETS_H]
    )


def test_a_resumed_run_and_the_report_of_it_agree(tmp_path):
    first = [training_line(step, timing_s__step=1200.0) for step in range(1, 5)]
    first[1]["data"] |= validation(0.8)
    record = counted_by_the_run(first[:2])
    kept = TrainingRecord.from_dict(record.to_dict())  # the checkpoint of step 2
    counted_by_the_run(first[2:], record=record)
    # The same weights again, measured lower; then steps 3 and 4 once more.
    second = [{"step": 2, "data": validation(0.6)}]
    second += [training_line(step, timing_s__step=1500.0) for step in range(3, 6)]
    second[-1]["data"] |= validation(0.7)
    counted_by_the_run(second, record=kept)
    write(tmp_path / "0" / "srpo.jsonl", first)
    write(tmp_path / "1" / "srpo.jsonl", second)
    (run,), _ = load_runs([tmp_path])
    (row,) = summary_rows([run])
    assert row["steps"] == 5
    assert row["hours"] == pytest.approx((2 * 1200 + 3 * 1500) / 3600)
    assert [row[f"best_acc_{budget}h"] for budget in (1, 5)] == pytest.approx([60.0, 70.0])
    assert [best_of_the_run(run, budget) for budget in (1, 5)] == pytest.approx([60.0, 70.0])


def test_the_run_s_own_hours_do_not_depend_on_the_log_being_complete(tmp_path):
    lines = [training_line(step, timing_s__step=1800.0) for step in range(1, 7)]
    counted_by_the_run(lines)
    run, notes = one_run(tmp_path, lines[3:])
    assert run.total_hours == pytest.approx(3.0)
    assert notes == ["srpo: 3 of 6 steps are not in the log, so their validations are missing"]


def test_a_validation_by_itself_is_no_training_step(tmp_path):
    lines = [{"step": 0, "data": validation(0.2)}, training_line(1)]
    counted_by_the_run(lines)
    run, notes = one_run(tmp_path, lines)
    assert "srpo/hours" in run.metrics[0]
    assert run.training_steps == [1]
    assert notes == []


def test_a_run_that_ended_with_the_last_step_that_fits_has_used_its_budget_up(tmp_path):
    def starred(directory, steps):
        lines = [training_line(step, timing_s__step=700.0) for step in range(1, steps + 1)]
        lines[-1]["data"] |= validation(0.5)
        (row,) = summary_rows([one_run(tmp_path / directory, lines)[0]])
        return ["*" in cell for cell in budget_cells(row, "best_acc")]

    # Five steps are 3,500 s; a sixth would be beyond the hour.
    assert starred("whole", 5) == [False, True, True]
    assert starred("short", 4) == [True, True, True]


def test_seconds_per_step_of_figure_4b_agree_with_the_papers_step_counts(tmp_path):
    # 1h / 5h / 10h of SRPO are about 43 / 230 / 475 steps at 83.4 / 78.3 / 75.8 s.
    seconds = [83.4] * 43 + [(230 * 78.3 - 43 * 83.4) / 187] * 187 + [(475 * 75.8 - 230 * 78.3) / 245] * 245
    # A thousandth of a second per step less keeps the boundary steps inside their windows.
    lines = [training_line(step, timing_s__step=value - 0.05) for step, value in enumerate(seconds, start=1)]
    row = seconds_per_step(one_run(tmp_path, lines)[0])
    assert [row[f"steps_{budget}h"] for budget in (1, 5, 10)] == pytest.approx([43, 230, 475], abs=1)
    assert [row[f"s_per_step_{budget}h"] for budget in (1, 5, 10)] == pytest.approx([83.4, 78.3, 75.8], abs=0.2)


def test_several_benchmarks_get_a_row_each_and_their_average(tmp_path):
    line = training_line(1)
    line["data"] |= validation(0.4, "sciknoweval") | validation(0.8, "math/amc")
    rows = summary_rows([one_run(tmp_path, [line])[0]])
    assert {row["benchmark"]: round(row["best_acc"], 6) for row in rows} == {
        "math/amc": 80.0,
        "sciknoweval": 40.0,
        "average": 60.0,
    }


def test_accuracy_comes_before_reward_and_most_samples_before_fewer(tmp_path):
    line = training_line(1)
    line["data"] |= {
        "val-core/a/acc/mean@16": 0.5,
        "val-core/a/acc/mean@4": 0.1,
        "val-core/a/reward/mean@32": 0.2,
        "val-core/b/reward/mean@2": 0.3,
    }
    curves = one_run(tmp_path, [line])[0].validation()
    assert {name: float(values[0]) for name, (_, values) in curves.items()} == {"a": 0.5, "average": 0.4, "b": 0.3}


def test_a_resumed_run_is_one_run_and_its_later_values_count(tmp_path):
    first = [training_line(step, response_length__mean=100.0) for step in range(1, 9)]
    first[5]["data"] |= validation(0.9)
    # Resumed at the checkpoint of step 5: veRL validates there before it goes on.
    second = [{"step": 5, "data": validation(0.6)}]
    second += [training_line(step, response_length__mean=200.0) for step in range(6, 11)]
    # Names that sort against the order in time.
    write(tmp_path / "z_first" / "srpo.jsonl", first)
    write(tmp_path / "a_second" / "srpo.jsonl", second)
    runs, notes = load_runs([tmp_path])
    assert len(runs) == 1
    run = runs[0]
    assert run.training_steps == list(range(1, 11))
    assert run.series("response_length/mean")[1].tolist() == [100.0] * 5 + [200.0] * 5
    assert run.total_hours == pytest.approx(10 * 80 / 3600)
    assert run.validation()["sciknoweval"][0].tolist() == [5, 6]
    assert any("2 files read as one resumed run" in note for note in notes)
    assert any("steps logged more than once: 4" in note for note in notes)


def test_of_two_attempts_from_one_checkpoint_the_later_written_counts(tmp_path):
    write(tmp_path / "0" / "srpo.jsonl", [training_line(step) for step in range(1, 5)])
    late = write(tmp_path / "1" / "srpo.jsonl", [training_line(5, actor__entropy=2.0)])
    early = write(tmp_path / "2" / "srpo.jsonl", [training_line(5, actor__entropy=1.0)])
    os.utime(early, (1_000_000, 1_000_000))
    os.utime(late, (2_000_000, 2_000_000))
    (run,), _ = load_runs([tmp_path])
    assert run.metrics[5]["actor/entropy"] == 2.0


def test_steps_repeated_within_a_file_count_once(tmp_path):
    lines = [training_line(1), training_line(2, actor__entropy=1.0), training_line(2, actor__entropy=2.0)]
    run, notes = one_run(tmp_path, lines)
    assert run.metrics[2]["actor/entropy"] == 2.0
    assert run.total_hours == pytest.approx(160 / 3600)
    assert notes == ["srpo: steps logged more than once: 1; the later values count"]


def test_runs_of_one_name_that_all_start_afresh_are_seeds(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name / "srpo.jsonl", [training_line(1), training_line(2)])
    runs, _ = load_runs([tmp_path])
    assert [run.label for run in runs] == ["srpo (a)", "srpo (b)"]
    assert len(seed_rows(summary_rows(runs))) == 1


def test_a_resumed_part_of_unknown_seed_is_an_error(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name / "srpo.jsonl", [training_line(1)])
    write(tmp_path / "c" / "srpo.jsonl", [training_line(7)])
    with pytest.raises(ReportError, match=r"c.srpo\.jsonl: resumes one of 2 runs named 'srpo'"):
        load_runs([tmp_path])


def test_a_file_reached_by_two_arguments_is_read_once(tmp_path):
    path = write(tmp_path / "srpo" / "srpo.jsonl", [training_line(1)])
    runs, _ = load_runs([tmp_path, path.parent])
    assert len(runs) == 1


def test_a_generic_file_name_takes_the_directorys(tmp_path):
    write(tmp_path / "grpo_seed3" / "run" / "metrics.jsonl", [training_line(1)])
    (run,), _ = load_runs([tmp_path / "grpo_seed3"])
    assert run.experiment == "grpo_seed3"


def test_missing_steps_are_noted(tmp_path):
    _, notes = one_run(tmp_path, [training_line(step) for step in (1, 2, 5)])
    assert notes == ["srpo: 2 of 5 steps are not in the log, so its hours are too few"]


@pytest.mark.parametrize("tail", ['{"step": 3, "da', '{"step": 3, "da\n\n', "\x00\x00\x00"])
def test_a_half_written_last_line_is_left_out_and_reported(tmp_path, tail, capsys):
    path = write(tmp_path / "run" / "srpo.jsonl", [training_line(1), training_line(2)])
    path.write_text(path.read_text() + tail)
    assert main([str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    assert f"note: {path}:3: half-written last line left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"step": 2, "da', "not JSON"),
        ("[1, 2]", "expected an object"),
        ('{"step": "2", "data": {}}', "\"step\" has to be a whole number of at least 0, got '2'"),
        ('{"step": true, "data": {}}', '"step" has to be'),
        ('{"step": -1, "data": {}}', '"step" has to be'),
        ('{"step": 2, "data": [1]}', '"data" has to be an object'),
        ('{"step": 2}', '"data" has to be an object'),
    ],
)
def test_any_other_malformed_line_is_an_error_with_file_and_line(tmp_path, line, message, capsys):
    good = json.dumps(training_line(1))
    path = tmp_path / "run" / "srpo.jsonl"
    path.parent.mkdir()
    path.write_text(f"{good}\n{line}\n{good}\n")
    assert main([str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert f"{path}:2: " in error
    assert message in error
    assert not (tmp_path / "out").exists()


def test_an_empty_directory_is_an_error_that_says_what_was_looked_for(tmp_path, capsys):
    assert main([str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "*.jsonl" in error
    assert '{"step": 1, "data": ' in error
    assert "trainer.logger=[console,file]" in error
    assert main([str(tmp_path / "absent"), "--out", str(tmp_path / "out")]) == 1
    assert "not a directory" in capsys.readouterr().err


def test_dumped_rollouts_are_not_taken_for_a_log(tmp_path):
    write(tmp_path / "rollouts" / "1.jsonl", [{"input": "q", "output": "a", "step": 1}])
    with pytest.raises(ReportError, match=r"1 \*\.jsonl files, but none of them is one"):
        load_runs([tmp_path])
    write(tmp_path / "srpo.jsonl", [training_line(1)])
    runs, notes = load_runs([tmp_path])
    assert len(runs) == 1
    assert notes == [f"{tmp_path}: 1 of 2 *.jsonl files are no metric logs and were left out"]


def test_values_that_are_no_finite_numbers_count_as_not_measured(tmp_path):
    path = tmp_path / "srpo.jsonl"
    path.write_text('{"step": 1, "data": {"a": null, "b": NaN, "c": "text", "d": true, "e": 2, "f": Infinity}}\n')
    (run,), _ = load_runs([tmp_path])
    assert run.metrics == {1: {"e": 2.0}}


def collapse_of(directory, points):
    """The verdict on a run of (response length, entropy) per step."""
    lines = [
        training_line(step, response_length__mean=length, actor__entropy=entropy)
        for step, (length, entropy) in enumerate(points, start=1)
    ]
    return find_collapse(one_run(directory, lines)[0])


EARLY = [(300.0, 0.3)] * 12


def test_the_collapse_is_dated_by_its_first_step(tmp_path):
    found = collapse_of(tmp_path, [*EARLY, (500.0, 0.05), (700.0, 0.2), (601.0, 0.09), (800.0, 0.05), (900.0, 0.05)])
    assert found is not None
    assert (found.step, found.early_length, found.length, found.entropy) == (15, 300.0, 601.0, 0.09)


@pytest.mark.parametrize(
    "late",
    [
        [(700.0, 0.3)] * 5,
        [(590.0, 0.01)] * 5,
        [(700.0, 0.05), (300.0, 0.05), (300.0, 0.05), (300.0, 0.05)],
    ],
    ids=["longer but not certain", "certain but not longer", "one odd batch"],
)
def test_one_sign_alone_is_no_collapse(tmp_path, late):
    assert collapse_of(tmp_path, EARLY + late) is None


def test_a_log_that_ends_in_the_collapse_is_warned_of(tmp_path):
    assert collapse_of(tmp_path, [*EARLY, (900.0, 0.05)]) is not None


def test_a_collapse_that_cannot_be_checked_for_is_said_to_be(tmp_path):
    line = training_line(1)
    del line["data"]["actor/entropy"]
    run, _ = one_run(tmp_path, [line])
    assert warnings([run]) == ["srpo: not checked for late collapse, actor/entropy not logged"]


def test_the_rolling_mean_looks_back_over_five_points_only():
    mean, std = rolling(np.array([1.0, 2.0, 3.0, 4.0, 5.0, 60.0]))
    assert mean.tolist() == [1.0, 1.5, 2.0, 2.5, 3.0, 14.8]
    assert std[0] == 0.0
    assert std[4] == pytest.approx(math.sqrt(2))
