"""Numbers of the report: budgets as a run itself counts them, spread over seeds, warnings."""

import math
import re

import numpy as np
import pytest

from srpo_verl.budget import TrainingRecord, best_accuracy_name
from srpo_verl.config.schema import default_values
from srpo_verl.report import paper
from srpo_verl.report.figures import seconds_within
from srpo_verl.report.groups import centred, group_runs
from srpo_verl.report.loader import load_runs
from srpo_verl.report.tables import budgets_of, group_frame, run_frame, table_1, table_2
from srpo_verl.report.warnings import warnings
from tests.report.logs import counted_by_the_run, one_run, record, training_line, validation, write


def table_of(*runs, steps=()):
    return table_1(group_runs(runs), steps)


def cells_of(run):
    """By budget the one value of a single run."""
    (table,) = table_of(run)
    (row,) = table.rows.values()
    return dict(zip(table.columns, row, strict=True))


def test_budgets_count_the_seconds_of_steps_without_validations_and_checkpoints(tmp_path):
    lines = [{"step": 0, "data": validation(0.2)}]
    for step, accuracy in enumerate([0.5, 0.4, 0.7, 0.9, 0.1], start=1):
        # 1,700 s of training: two steps to the hour. With the validation or the checkpoint it would be one.
        lines.append(
            training_line(step, timing_s__step=1800.0, timing_s__save_checkpoint=100.0, timing_s__testing=200.0)
        )
        lines[-1]["data"] |= validation(accuracy)
    run, _ = one_run(tmp_path, lines)
    cells = {name: (cell.mean, cell.ended_before) for name, cell in cells_of(run).items()}
    # Five hours were not reached, so there is no such column, let alone ten.
    assert cells == {"1 h": (50.0, False), "whole run": (90.0, False), "last": (10.0, False)}
    assert run.total_hours == pytest.approx(5 * 1700 / 3600)
    assert seconds_within(run, 1) == 1700.0
    assert seconds_within(run, 5) is None


def test_table_1_is_what_the_run_itself_logged(tmp_path):
    lines = [{"step": 0, "data": validation(0.3, "a") | validation(0.5, "b")}]
    for step in range(1, 12):
        lines.append(training_line(step, timing_s__step=3500.0, timing_s__save_checkpoint=3.0))
        if step % 2 == 0:
            lines[-1]["data"] |= validation(0.4 + 0.04 * step, "a") | validation(0.5 - 0.02 * step, "b")
    counted_by_the_run(lines)
    run, _ = one_run(tmp_path, lines)
    own = {f"{hours} h": 100 * run.series(best_accuracy_name(hours))[1][-1] for hours in paper.BUDGETS_H}

    def averages(run):
        table = next(table for table in table_of(run) if table.title == "average")
        return {
            column: cell.mean for column, cell in zip(table.columns, table.rows["SRPO"], strict=True) if "h" in column
        }

    found = averages(run)
    assert found.pop("whole run") >= found["10 h"]
    assert found == pytest.approx(own)
    assert own["1 h"] == pytest.approx(40.0)
    assert own["5 h"] == pytest.approx(54 - 50 + 45)
    # A log of another trainer, without the run's own count, gives the same table.
    for line in lines:
        line["data"] = {
            name: value for name, value in line["data"].items() if not name.startswith(("srpo/h", "srpo/b"))
        }
    stock = averages(one_run(tmp_path / "stock", lines)[0])
    assert {name: stock[name] for name in own} == pytest.approx(own)


def test_a_resumed_run_and_the_report_of_it_agree(tmp_path):
    first = [training_line(step, timing_s__step=1200.0) for step in range(1, 5)]
    first[1]["data"] |= validation(0.8)
    kept_record = counted_by_the_run(first[:2])
    kept = TrainingRecord.from_dict(kept_record.to_dict())  # the checkpoint of step 2
    counted_by_the_run(first[2:], record=kept_record)
    # The same weights again, measured lower; then steps 3 and 4 once more.
    second = [{"step": 2, "data": validation(0.6)}]
    second += [training_line(step, timing_s__step=1500.0) for step in range(3, 6)]
    second[-1]["data"] |= validation(0.7)
    counted_by_the_run(second, record=kept)
    write(tmp_path / "0" / "srpo.jsonl", first)
    write(tmp_path / "1" / "srpo.jsonl", second)
    (run,), _ = load_runs([tmp_path])
    assert len(run.training_steps) == 5
    assert run.total_hours == pytest.approx((2 * 1200 + 3 * 1500) / 3600)
    cells = cells_of(run)
    assert [cells["1 h"].mean, cells["whole run"].mean] == pytest.approx([60.0, 70.0])
    assert 100 * run.series(best_accuracy_name(5))[1][-1] == pytest.approx(70.0)


def test_a_run_that_ended_with_the_last_step_that_fits_has_used_its_budget_up(tmp_path):
    def starred(directory, steps):
        lines = [training_line(step, timing_s__step=700.0) for step in range(1, steps + 1)]
        lines[-1]["data"] |= validation(0.5)
        write(tmp_path / directory / "srpo.jsonl", lines)
        other = write(
            tmp_path / directory / "long" / "grpo.jsonl", [*lines, *(training_line(s) for s in range(9, 60))]
        )
        runs, _ = load_runs([tmp_path / directory / "srpo.jsonl", other])
        return table_of(*runs)[0].rows["SRPO"][0].ended_before

    # Five steps are 3,500 s; a sixth would be beyond the hour.
    assert starred("whole", 5) is False
    assert starred("short", 4) is True


def test_figure_4b_agrees_with_the_papers_step_counts(tmp_path):
    # 1h / 5h / 10h of SRPO are about 43 / 230 / 475 steps at 83.4 / 78.3 / 75.8 s.
    seconds = [83.4] * 43 + [(230 * 78.3 - 43 * 83.4) / 187] * 187 + [(475 * 75.8 - 230 * 78.3) / 245] * 245
    # A thousandth of a second per step less keeps the boundary steps inside their windows.
    lines = [training_line(step, timing_s__step=value - 0.05) for step, value in enumerate(seconds, start=1)]
    run, _ = one_run(tmp_path, lines)
    assert [seconds_within(run, hours) for hours in (1, 5, 10)] == pytest.approx(paper.STEP_SECONDS["SRPO"], abs=0.2)
    steps = run.hours(np.array(run.training_steps))
    assert [(steps <= hours).sum() for hours in paper.BUDGETS_H] == pytest.approx(paper.STEPS_OF_BUDGETS, abs=1)


def test_runs_shorter_than_an_hour_are_compared_at_the_papers_shares_of_their_length(tmp_path):
    lines = [training_line(step, timing_s__step=1.0) for step in range(1, 151)]
    run, _ = one_run(tmp_path, lines)
    assert [budget.name for budget in budgets_of([run])] == ["step 14", "step 73", "step 150"]
    assert [budget.name for budget in budgets_of([run], [20, 60])] == ["step 20", "step 60", "whole run"]


def test_several_benchmarks_get_a_part_each_and_their_average(tmp_path):
    line = training_line(1)
    line["data"] |= validation(0.4, "sciknoweval") | validation(0.8, "math/amc")
    tables = table_of(one_run(tmp_path, [line])[0])
    found = {table.title: round(table.rows["SRPO"][-1].mean, 6) for table in tables}
    assert found == {"math/amc": 80.0, "sciknoweval": 40.0, "average": 60.0}


def test_the_checkpoint_is_chosen_on_validation_and_reported_on_test(tmp_path):
    lines = [training_line(step) for step in (1, 2, 3)]
    for line, (chooses, reported) in zip(lines, [(0.5, 0.9), (0.7, 0.3), (0.6, 0.4)], strict=True):
        line["data"] |= validation(chooses, "mini/sums") | validation(reported, "mini/sums/test")
    (table,) = table_of(one_run(tmp_path, lines)[0], steps=[1, 3])
    assert table.title == "mini/sums"
    assert [cell.mean for cell in table.rows["SRPO"]] == pytest.approx([90.0, 30.0, 40.0])


def test_accuracy_comes_before_reward_and_most_samples_before_fewer(tmp_path):
    line = training_line(1)
    line["data"] |= {
        "val-core/a/acc/mean@16": 0.5,
        "val-core/a/acc/mean@4": 0.1,
        "val-core/a/reward/mean@32": 0.2,
        "val-core/b/reward/mean@2": 0.3,
    }
    curves = one_run(tmp_path, [line])[0].validation()
    assert {name: float(curve.values[0]) for name, curve in curves.items()} == {"a": 0.5, "b": 0.3, "average": 0.4}


@pytest.fixture
def seeds(tmp_path):
    """Three seeds of SRPO, two of SRPO without weights, on Chemistry; of 2 hours each."""
    for routing, beta, accuracies in (("sample", 1.0, (0.7, 0.8, 0.9)), ("sample", 0.0, (0.6, 0.7))):
        for seed, accuracy in enumerate(accuracies):
            lines = [training_line(step, timing_s__step=1800.0) for step in range(1, 5)]
            lines[1]["data"] |= validation(accuracy - 0.1)
            lines[3]["data"] |= validation(accuracy)
            log = write(tmp_path / f"{beta}-{seed}" / "log.jsonl", lines)
            weighting = {"beta": beta, "floor": 0.0, "pass_rate": False}
            record(log, seed=seed, routing=routing, weighting=weighting)
    return group_runs(load_runs([tmp_path])[0])


def test_seeds_are_aggregated_and_the_papers_values_stand_beside(seeds):
    (table,) = table_1(seeds)
    assert table.title == "Chemistry, Qwen3-8B"
    assert [str(cell) for cell in table.rows["SRPO"]] == ["70.0 ± 10.0", "80.0 ± 10.0", "80.0 ± 10.0"]
    assert table.seeds == {"SRPO": 3, "SRPO without weights": 2}
    assert table.of_paper["SRPO"] == (69.2, 81.8, 83.0)
    ablation = table_2(seeds, [table])
    assert ablation.rows["SRPO without weights"] == (["55.0 ± 7.1", "65.0 ± 7.1"], (66.5, 74.8, 75.6))


def test_a_band_is_the_spread_over_the_seeds(seeds):
    curve = seeds[0].curve(lambda run: (lambda c: (c.steps, c.values))(run.validation()["sciknoweval"]), factor=100.0)
    assert curve.x.tolist() == [2, 4]
    assert curve.mean.tolist() == pytest.approx([70.0, 80.0])
    assert (curve.high - curve.mean).tolist() == pytest.approx([10.0, 10.0])
    assert curve.seeds == len(curve.lines) == 3


def test_the_frames_hold_every_run_and_every_group(seeds):
    runs = run_frame(seeds)
    assert len(runs) == 5
    frame = group_frame(runs).set_index("group")
    assert frame.loc["SRPO", ["runs", "best_acc_mean", "best_acc_std"]].tolist() == pytest.approx([3, 80.0, 10.0])
    assert frame.loc["SRPO", "best_acc_1_h_max"] == pytest.approx(80.0)


def test_every_number_of_the_paper_is_in_its_place():
    averages = paper.TABLE_1["Qwen3-8B"]
    for model, methods in paper.TABLE_1.items():
        for method, cells in methods.items():
            for budget in range(3):
                mean = np.mean([values[budget] for name, values in cells.items() if name != "Average"])
                assert cells["Average"][budget] == pytest.approx(mean, abs=0.06), (model, method, budget)
        columns = paper.START[model]
        assert columns["Average"] == pytest.approx(np.mean([columns[name] for name in paper.COLUMNS[:-1]]), abs=0.06)
    assert paper.TABLE_2["SRPO"] == averages["SRPO"]["Average"]


def test_the_rolling_mean_is_centred_and_the_last_value_is_the_last_value():
    assert centred(np.array([1.0, 2.0, 3.0, 4.0, 5.0, 60.0])).tolist() == [1.0, 2.0, 3.0, 14.8, 23.0, 60.0]


# --- warnings --------------------------------------------------------------------------------------------------------


def test_the_guards_look_at_the_log_with_the_settings_that_the_run_recorded(tmp_path):
    """Responses that triple; a second run had the guard switched off."""
    lines = [training_line(step, response_length__mean=300.0 if step < 20 else 900.0) for step in range(1, 40)]
    found = {}
    for level in ("warn", "off"):
        log = write(tmp_path / level / "log.jsonl", lines)
        guards = {**default_values()["guards"], "length": level}
        record(log, guards=guards)
        (run,), _ = load_runs([log])
        found[level] = [warning for warning in warnings([run]) if warning.kind == "length"]
    assert len(found["warn"]) == 1
    assert re.match(r"since step 2\d responses have 900 tokens, 3 times those of the first", found["warn"][0].text)
    assert found["off"] == []


def test_one_seed_is_not_taken_for_two(tmp_path):
    lines = [training_line(step) for step in range(1, 9)]
    places = {"a": 1, "b": 2, "c": 1}
    paths = [write(tmp_path / name / "log.jsonl", lines) for name in places]
    for path, (name, seed) in zip(paths, places.items(), strict=True):
        record(path, seed=seed, checkpoints=name)
    runs, _ = load_runs(paths)
    found = [warning for warning in warnings(runs) if warning.kind == "same seed"]
    assert [runs.index(warning.run) for warning in found] == [0, 2]
    assert found[0].text.startswith(f"the seeds of {runs[2].label}: ")
    assert not [warning for warning in warnings(runs[:2]) if warning.kind == "same seed"]


@pytest.mark.parametrize(
    ("accuracies", "fell"),
    [
        ([0.2, 0.5, 0.7, 0.7, 0.7, 0.6, 0.5, 0.4], True),
        ([0.2, 0.5, 0.7, 0.9, 0.7, 0.7, 0.7, 0.7], False),  # one lucky validation is no peak
        ([0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.7, 0.7], False),
    ],
)
def test_a_run_that_peaked_and_fell_is_warned_of(tmp_path, accuracies, fell):
    lines = [training_line(step) for step in range(1, len(accuracies) + 1)]
    for line, accuracy in zip(lines, accuracies, strict=True):
        line["data"] |= validation(accuracy)
    run, _ = one_run(tmp_path, lines)
    assert [warning.kind for warning in warnings([run])].count("peaked and fell") == fell
    assert not math.isnan(run.total_hours)
