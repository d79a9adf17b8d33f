"""Logs as real runs leave them: several attempts, cut off, seeds in any folder; and which runs belong together."""

import json
import math
import os

import pytest

from recipes.mini import logs, plan
from srpo_verl.report.__main__ import main
from srpo_verl.report.groups import group_runs
from srpo_verl.report.loader import ReportError, load_runs
from tests.report.logs import counted_by_the_run, one_run, record, token_sample, training_line, validation, write

GUESSED = "method and seeds go by the name, no configuration was recorded: srpo"


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
    assert any("2 files read as attempts of one run" in note for note in notes)
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
    assert "srpo: steps logged more than once: 1; the later values count" in notes


def test_runs_of_one_name_that_all_start_afresh_are_seeds(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name / "srpo.jsonl", [training_line(1), training_line(2)])
    runs, _ = load_runs([tmp_path])
    assert [run.label for run in runs] == ["srpo (a)", "srpo (b)"]
    assert [len(group.runs) for group in group_runs(runs)] == [2]


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
    assert notes == ["srpo: 2 of 5 steps are not in the log, so its hours are too few", GUESSED]


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
    assert "no such file or directory" in capsys.readouterr().err


def test_dumped_rollouts_are_not_taken_for_a_log(tmp_path):
    write(tmp_path / "rollouts" / "1.jsonl", [{"input": "q", "output": "a", "step": 1}])
    with pytest.raises(ReportError, match=r"1 \*\.jsonl files, but none of them is one"):
        load_runs([tmp_path])
    write(tmp_path / "srpo.jsonl", [training_line(1)])
    runs, notes = load_runs([tmp_path])
    assert len(runs) == 1
    assert notes == [f"{tmp_path}: 1 of 2 *.jsonl files are no metric logs and were left out", GUESSED]


def test_values_that_are_no_finite_numbers_count_as_not_measured(tmp_path):
    path = tmp_path / "srpo.jsonl"
    path.write_text('{"step": 1, "data": {"a": null, "b": NaN, "c": "text", "d": true, "e": 2, "f": Infinity}}\n')
    (run,), _ = load_runs([tmp_path])
    assert run.metrics == {1: {"e": 2.0}}


def test_a_validation_by_itself_is_no_training_step(tmp_path):
    lines = [{"step": 0, "data": validation(0.2)}, training_line(1)]
    counted_by_the_run(lines)
    run, notes = one_run(tmp_path, lines)
    assert "srpo/hours" in run.metrics[0]
    assert run.training_steps == [1]
    assert notes == [GUESSED]


def test_the_run_s_own_hours_do_not_depend_on_the_log_being_complete(tmp_path):
    lines = [training_line(step, timing_s__step=1800.0) for step in range(1, 7)]
    counted_by_the_run(lines)
    run, notes = one_run(tmp_path, lines[3:])
    assert run.total_hours == pytest.approx(3.0)
    assert notes == ["srpo: 3 of 6 steps are not in the log, so their validations are missing", GUESSED]


# --- by the recorded configuration -----------------------------------------------------------------------------------


def recorded(path, lines, **settings):
    write(path, lines)
    record(path, **settings)
    return path


def test_runs_are_grouped_by_their_configuration_and_not_by_their_names(tmp_path):
    """One name, one folder each: two seeds of SRPO, another learning rate, and GRPO."""
    lines = [training_line(1), training_line(2)]
    for name, settings in {
        "a": {"seed": 1},
        "b": {"seed": 2},
        "c": {"seed": 1, "lr": 1e-3},
        "d": {"seed": 1, "routing": "none"},
    }.items():
        recorded(tmp_path / name / "srpo.jsonl", lines, **settings)
    runs, notes = load_runs([tmp_path])
    assert notes == []
    groups = group_runs(runs)
    found = {group.label: (len(group.runs), group.seeds) for group in groups}
    assert found == {
        "SRPO, learning rate 0.0005": (2, ["1", "2"]),
        "SRPO, learning rate 0.001": (1, ["1"]),
        "GRPO": (1, ["1"]),
    }
    assert {group.task for group in groups} == {"Chemistry, Qwen3-8B"}


def test_attempts_of_one_run_are_joined_wherever_their_logs_are(tmp_path):
    """The second goes on from step 2, begun later, under a name that sorts first; the later one's steps count."""
    first = [training_line(step, response_length__mean=100.0) for step in range(1, 5)]
    second = [{"step": 2, "data": validation(0.5)}]
    second += [training_line(step, response_length__mean=200.0) for step in (3, 4, 5)]
    one = recorded(tmp_path / "z" / "srpo.jsonl", first, started="2026-01-01T00:00:00+00:00")
    other = recorded(tmp_path / "a" / "attempt.jsonl", second, started="2026-01-02T00:00:00+00:00")
    for step in (1, 4):
        token_sample(one, step)
    token_sample(other, 5)
    (run,), notes = load_runs([tmp_path])
    assert run.series("response_length/mean")[1].tolist() == [100.0, 100.0, 200.0, 200.0, 200.0]
    assert sorted(run.samples) == [1, 5]  # step 4 was made again
    assert any("2 files read as attempts of one run" in note for note in notes)


def test_an_attempt_that_ended_before_its_record_was_written_is_one_all_the_same(tmp_path):
    recorded(tmp_path / "srpo.jsonl", [training_line(1), training_line(2)])
    write(tmp_path / "attempt-1" / "srpo.jsonl", [{"step": 0, "data": validation(0.1)}])
    (run,), _ = load_runs([tmp_path])
    assert run.training_steps == [1, 2]


def test_a_run_begun_anew_is_what_the_last_attempt_did(tmp_path):
    recorded(tmp_path / "1.jsonl", [training_line(step) for step in range(1, 6)], started="2026-01-01")
    recorded(tmp_path / "2.jsonl", [training_line(1), training_line(2)], started="2026-01-02")
    (run,), _ = load_runs([tmp_path])
    assert run.training_steps == [1, 2]


def test_a_damaged_record_is_noted_and_the_log_is_read_all_the_same(tmp_path):
    path = write(tmp_path / "srpo.jsonl", [training_line(1)])
    path.with_suffix(".run.json").write_text('{"config": {"srpo"')
    (run,), notes = load_runs([tmp_path])
    assert run.identity.method == "SRPO"
    assert any("srpo.run.json: not read as the record of a run" in note for note in notes)


def test_names_of_runs_without_a_record_lose_stamp_and_seed(tmp_path):
    write(tmp_path / "srpo-20261124-143950" / "metrics.jsonl", [training_line(1)])
    write(tmp_path / "grpo-seed3" / "metrics.jsonl", [training_line(1)])
    runs, _ = load_runs(sorted(tmp_path.iterdir()))
    assert [(run.identity.method, run.identity.seed) for run in runs] == [("GRPO", "3"), ("SRPO", "")]


def compact(path, *, seed, method="srpo", part="A"):
    metrics = {"srpo/frac_correct": 0.5, "timing_s/step": 2.0, "val-core/mini/sums4/acc/mean@1": math.nan}
    steps = {0: {"val-core/mini/sums4/acc/mean@1": 0.2}, 1: metrics, 2: metrics}
    header = {"commit": "abc", "versions": {"verl": "0.9.1"}}
    logs.write(path, plan.Cell(part, "sums4", method, 5e-4, seed, 2), header, steps)
    return path


def test_compact_logs_are_read_and_seeds_that_chose_are_not_those_that_are_compared(tmp_path):
    for seed in (0, 1):
        compact(tmp_path / f"sums4-srpo-seed{seed}.jsonl", seed=seed)
    compact(tmp_path / "sums4-srpo-seed100.jsonl", seed=100, part="grid")
    last = compact(tmp_path / "sums4-handover-seed0.jsonl", seed=0, method="handover")
    blind = compact(tmp_path / "sums4-handover_blind-seed0.jsonl", seed=0, method="handover_blind")
    runs, notes = load_runs([tmp_path])
    assert notes == []
    labels = {group.label: len(group.runs) for group in group_runs(runs)}
    assert labels == {
        "SRPO": 2,
        "SRPO, part grid": 1,
        "hand-over": 1,
        "hand-over, teacher without sibling": 1,
    }
    blind.unlink()
    assert runs[0].metrics == {
        0: {"val-core/mini/sums4/acc/mean@1": 0.2},
        1: {"srpo/frac_correct": 0.5, "timing_s/step": 2.0},
        2: {"srpo/frac_correct": 0.5, "timing_s/step": 2.0},
    }
    assert load_runs([last])[0][0].provenance == {"commit": "abc", "versions": {"verl": "0.9.1"}}


def test_a_damaged_compact_log_is_an_error_with_its_line(tmp_path):
    path = compact(tmp_path / "a.jsonl", seed=0)
    path.write_text(path.read_text().replace("[0.5,0.5]", "[0.5]"))
    with pytest.raises(ReportError, match=r"a\.jsonl:\d: not a line of a compact log"):
        load_runs([path])
