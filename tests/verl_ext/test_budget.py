"""Training time, accuracy within budgets and the last step that fits: the record, and how the trainer keeps it."""

import json
import math
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from srpo_verl.budget import (
    FILE_NAME,
    RECENT_STEPS,
    TrainingRecord,
    best_accuracy_name,
    mean_accuracy,
)
from srpo_verl.config.schema import BudgetConfig
from srpo_verl.progress import Progress
from srpo_verl.verl_ext import clock as clock_module
from srpo_verl.verl_ext.trainer import SrpoTrainer

HOUR = 3600.0


def trained(*seconds):
    record = TrainingRecord()
    for each in seconds:
        record.add_step(each)
    return record


# --- accuracy --------------------------------------------------------------------------------------------------------


def test_the_accuracy_is_the_mean_over_the_data_sources():
    metrics = {
        "val-core/sciknoweval/acc/mean@16": 0.4,
        "val-core/math/amc/reward/mean@16": 0.8,
        "val-core/sciknoweval/acc/best@16/mean": 1.0,
        "val-core/sciknoweval/acc/maj@16/mean": 0.9,
        "val-aux/sciknoweval/reward/mean@16": 0.1,
        "val-aux/num_turns/mean": 2.0,
    }
    assert mean_accuracy(metrics) == pytest.approx(0.6)


def test_what_was_not_measured_is_no_accuracy():
    assert mean_accuracy({"val-aux/num_turns/mean": 2.0}) is None
    assert mean_accuracy({"val-core/a/acc/mean@16": math.nan}) is None


def test_verl_logs_one_mean_per_data_source_under_the_name_that_is_read():
    """Through veRL's own aggregation, with n=16 and the fields of this package's verifiers."""
    rows = 32
    stub = SimpleNamespace()
    metrics = PPOTrainerSync._val_metrics_update(
        stub,
        ["sciknoweval"] * rows,
        [f"prompt{row // 16}" for row in range(rows)],
        {"reward": [0.0] * rows, "acc": [float(row < 8) for row in range(rows)], "format_ok": [1.0] * rows},
        [1] * rows,
    )
    assert metrics["val-core/sciknoweval/acc/mean@16"] == pytest.approx(0.25)
    assert mean_accuracy(metrics) == pytest.approx(0.25)


# --- budgets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hours", "name"),
    [
        (1.0, "srpo/best_accuracy_1h"),
        (10.0, "srpo/best_accuracy_10h"),
        (0.5, "srpo/best_accuracy_0.5h"),
        (0.002, "srpo/best_accuracy_0.002h"),
        (1.00000001, "srpo/best_accuracy_1.00000001h"),
    ],
)
def test_names_of_the_metrics(hours, name):
    assert best_accuracy_name(hours) == name


def test_a_budget_s_value_is_frozen_when_it_has_passed_and_still_given():
    record = trained()
    record.add_validation(0, 0.2)
    assert record.metrics([1.0, 5.0]) == {
        "srpo/hours": 0.0,
        "srpo/best_accuracy_1h": 0.2,
        "srpo/best_accuracy_5h": 0.2,
    }
    record.add_step(HOUR)  # exactly the budget: the weights existed within it
    record.add_validation(1, 0.5)
    record.add_step(1.0)
    record.add_validation(2, 0.9)
    record.add_step(HOUR)
    record.add_validation(3, 0.7)
    metrics = record.metrics([1.0, 5.0])
    assert metrics["srpo/best_accuracy_1h"] == 0.5
    assert metrics["srpo/best_accuracy_5h"] == 0.9
    assert metrics["srpo/hours"] == pytest.approx(2 + 1 / HOUR)


def test_no_value_for_a_budget_without_a_validation_in_it():
    record = trained(2 * HOUR)
    record.add_validation(1, 0.5)
    assert record.metrics([1.0, 5.0]).keys() == {"srpo/hours", "srpo/best_accuracy_5h"}
    assert record.metrics([]) == {"srpo/hours": pytest.approx(2.0)}


def test_weights_that_are_validated_again_count_by_the_later_value():
    record = trained(10.0)
    record.add_validation(1, 0.9)
    record.add_validation(1, 0.4)
    assert record.best_accuracy(1.0) == 0.4


STEPS = st.lists(
    st.tuples(st.floats(1e-3, 1e5), st.none() | st.floats(0, 1)),  # seconds, accuracy if validated
    max_size=30,
)


@settings(max_examples=200)
@given(STEPS, st.lists(st.floats(1e-6, 100), max_size=4), st.integers(0, 30))
def test_the_record_equals_a_recomputation_from_the_whole_history(steps, budgets, saved_after):
    record, history, total = TrainingRecord(), [], 0.0
    for number, (seconds, accuracy) in enumerate(steps, start=1):
        record.add_step(seconds)
        total += seconds
        if accuracy is not None:
            record.add_validation(number, accuracy)
            history.append((total / HOUR, accuracy))
        if number == saved_after:
            record = TrainingRecord.from_dict(json.loads(json.dumps(record.to_dict())))
    expected = {"srpo/hours": total / HOUR}
    for budget in budgets:
        within = [accuracy for hours, accuracy in history if hours <= budget]
        if within:
            expected[best_accuracy_name(budget)] = max(within)
    assert record.metrics(budgets) == expected


# --- the last step ---------------------------------------------------------------------------------------------------


def test_steps_that_fit_go_by_the_longest_of_the_last_ones():
    assert TrainingRecord().steps_that_fit(1.0) is None
    assert trained(60.0).steps_that_fit(1.0) == 59
    assert trained(1800.0, 600.0).steps_that_fit(1.0) == 0
    # The slow first step is forgotten.
    assert trained(1800.0, *[100.0] * RECENT_STEPS).steps_that_fit(1.0) == 13
    assert trained(HOUR).steps_that_fit(1.0) == 0
    assert trained(2 * HOUR).steps_that_fit(1.0) == 0


class Loop:
    """veRL's loop around the trainer's hooks: it asks before a step whether it is the last one."""

    def __init__(self, seconds, stop_at_hours, total_steps, record=None, first_step=1):
        trainer = SrpoTrainer.__new__(SrpoTrainer)
        trainer.srpo = SimpleNamespace(budget=BudgetConfig((), stop_at_hours))
        trainer.record = record or TrainingRecord()
        trainer.total_training_steps = total_steps
        trainer.global_steps = first_step
        self.trained, self.ended_as_last = [], False
        trainer._set_last_step(trainer.global_steps - 1)
        while trainer.global_steps <= trainer.total_training_steps:
            is_last_step = trainer.global_steps >= trainer.total_training_steps
            trainer.record.add_step(seconds[trainer.global_steps - 1])
            if trainer.global_steps < trainer.total_training_steps:
                trainer._set_last_step(trainer.global_steps, at_least=trainer.global_steps + 1)
            self.trained.append(trainer.global_steps)
            trainer.global_steps += 1
            if is_last_step:
                self.ended_as_last = True
                break
        self.record = trainer.record


def test_even_steps_fill_the_budget_and_do_not_pass_it():
    loop = Loop([100.0] * 100, stop_at_hours=1.0, total_steps=100)
    assert loop.trained == list(range(1, 37))
    assert loop.record.seconds == 3600.0
    assert loop.ended_as_last
    assert len(Loop([100.0] * 100, stop_at_hours=0.99, total_steps=100).trained) == 35


def test_without_a_limit_or_with_a_far_one_all_steps_are_trained():
    assert len(Loop([100.0] * 20, stop_at_hours=None, total_steps=20).trained) == 20
    assert len(Loop([100.0] * 20, stop_at_hours=10.0, total_steps=20).trained) == 20


@settings(max_examples=300)
@given(st.lists(st.floats(1, 200), min_size=2, max_size=60), st.floats(1e-3, 2))
def test_the_run_always_ends_with_a_last_step_and_at_most_one_step_late(seconds, stop_at_hours):
    loop = Loop(seconds, stop_at_hours, total_steps=len(seconds))
    assert loop.ended_as_last
    *before, _ = loop.trained
    # Late by at most the overrun of the last two steps: before them there was time left.
    for step in before[:-1]:
        assert sum(seconds[:step]) < stop_at_hours * HOUR
    # Not ended too early either: when the last step was chosen, two as long as the longest would not have fitted.
    if len(loop.trained) < len(seconds):
        assert sum(seconds[: len(before)]) + 2 * max(seconds) > stop_at_hours * HOUR


def test_a_run_resumed_where_its_budget_ended_trains_no_further():
    record = Loop([100.0] * 100, stop_at_hours=1.0, total_steps=100).record
    resumed = TrainingRecord.from_dict(record.to_dict())
    assert Loop([100.0] * 100, 1.0, 100, record=resumed, first_step=37).trained == []
    # With a longer budget it goes on, and with room for one step it ends with that one.
    assert Loop([100.0] * 100, 2.0, 100, record=resumed, first_step=37).trained == list(range(37, 73))
    one_left = TrainingRecord.from_dict(record.to_dict())
    assert Loop([100.0] * 100, 1.03, 100, record=one_left, first_step=37).trained == [37]


# --- saving and restoring --------------------------------------------------------------------------------------------


def test_saved_and_loaded_it_is_the_same(tmp_path):
    record = trained(1.5, 2.25)
    record.add_validation(2, 0.625)
    record.save(tmp_path / "global_step_2")
    record.save(tmp_path / "global_step_2")  # completed after the validation
    assert [path.name for path in (tmp_path / "global_step_2").iterdir()] == [FILE_NAME]
    assert TrainingRecord.load(tmp_path / "global_step_2") == record


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        "null",
        '{"seconds": "x", "recent_seconds": [], "validations": []}',
        '{"seconds": -1, "recent_seconds": [], "validations": []}',
        '{"seconds": NaN, "recent_seconds": [], "validations": []}',
        '{"seconds": 1, "recent_seconds": [], "validations": [[1, 2]]}',
        '{"seconds": 1, "recent_seconds": null, "validations": []}',
    ],
)
def test_a_damaged_record_is_refused_with_the_file_and_the_remedy(tmp_path, text):
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(ValueError, match=r"srpo_budget\.json: .*srpo\.budget\.hours=\[\]"):
        TrainingRecord.load(tmp_path)


def resumed_trainer(monkeypatch, folder, hours=(1.0,), stop_at_hours=None, step=5, **settings):
    """A trainer whose veRL part has just restored the checkpoint of `step`."""

    def restore(self):
        self.global_steps = step

    monkeypatch.setattr(clock_module.PPOTrainerSync, "_load_checkpoint", restore)
    trainer = SrpoTrainer.__new__(SrpoTrainer)
    trainer.record, trainer.progress = TrainingRecord(), Progress()
    trainer.router = SimpleNamespace(memory=None)
    trainer._root = folder
    checkpoints = SimpleNamespace(trust_pickles=False)
    trainer.srpo = SimpleNamespace(budget=BudgetConfig(hours, stop_at_hours), checkpoints=checkpoints)
    defaults = {"resume_mode": "auto", "default_local_dir": str(folder), "resume_from_path": None}
    trainer.config = OmegaConf.create({"trainer": defaults | settings})
    trainer._load_checkpoint()
    return trainer


def test_the_clock_goes_on_where_the_checkpoint_was_written(tmp_path, monkeypatch):
    trained(7.0).save(tmp_path / "global_step_5")
    assert resumed_trainer(monkeypatch, tmp_path).record.seconds == 7.0
    trained(9.0).save(tmp_path / "elsewhere" / "global_step_5")
    path = str(tmp_path / "elsewhere" / "global_step_5")
    explicit = resumed_trainer(monkeypatch, tmp_path, resume_mode="resume_path", resume_from_path=path)
    assert explicit.record.seconds == 9.0


def test_a_run_from_the_start_needs_no_record(tmp_path, monkeypatch):
    assert resumed_trainer(monkeypatch, tmp_path, step=0).record == TrainingRecord()


@pytest.mark.parametrize("budget", [{"hours": (1.0,)}, {"hours": (), "stop_at_hours": 2.0}])
def test_a_checkpoint_without_training_time_is_refused_where_budgets_need_it(tmp_path, monkeypatch, budget):
    with pytest.raises(FileNotFoundError, match=r"does not say how long.*srpo\.budget\.hours=\[\]"):
        resumed_trainer(monkeypatch, tmp_path, **budget)


def test_without_budgets_it_is_resumed_and_no_wrong_time_is_logged(tmp_path, monkeypatch, capsys):
    trainer = resumed_trainer(monkeypatch, tmp_path, hours=())
    assert trainer.record is None
    assert "srpo/hours is not logged" in capsys.readouterr().out
    monkeypatch.setattr(clock_module.PPOTrainerSync, "_validate", lambda self: {"val-core/a/acc/mean@16": 0.5})
    assert trainer._validate() == {"val-core/a/acc/mean@16": 0.5}
