"""Wall-clock budgets kept by a run of veRL's own trainer: its clock, its end, its checkpoint, its resumption."""

import pytest
import torch

from srpo_verl.budget import TrainingRecord, mean_accuracy
from srpo_verl.report.groups import group_runs
from srpo_verl.report.loader import load_runs
from srpo_verl.report.tables import run_frame
from tests.e2e.test_training import inputs, train
from tests.support import TINY_SRPO

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="the CPU platform is not active here"),
]

__all__ = ["inputs"]

STOP = 0.002
"""Hours: 7.2 s, a few steps of the tiny model and far from all that are asked for."""
STEPS = 40
SHORT, LONG = "srpo/best_accuracy_1e-06h", "srpo/best_accuracy_1h"
BUDGETS = ["srpo.budget.hours=[1.0e-06,1]", "trainer.test_freq=2", "trainer.save_freq=1000"]


@pytest.fixture(scope="module")
def ended(inputs, tmp_path_factory):
    cwd = tmp_path_factory.mktemp("ended")
    return train(
        inputs,
        cwd,
        *TINY_SRPO,
        *BUDGETS,
        f"srpo.budget.stop_at_hours={STOP}",
        f"trainer.default_local_dir={cwd}/checkpoints",
        "trainer.val_before_train=true",
        steps=STEPS,
    )


def test_the_run_ends_at_its_budget_with_verls_own_last_step(ended):
    last = max(ended.metrics)
    assert 2 <= last < STEPS
    output = ended.stdout.read_text(errors="replace")
    assert f"step {last} is the last one, by srpo.budget.stop_at_hours={STOP:g}" in output
    # What veRL prints at its last step, and what it does there whatever the frequencies.
    assert "Final validation metrics: {" in output
    assert mean_accuracy(ended.metrics[last]) is not None
    assert (ended.cwd / "checkpoints" / "latest_checkpointed_iteration.txt").read_text() == str(last)
    # Not before the budget: a step as long as the longest of the last ones would not have fitted any more.
    longest = max(ended.metrics[step]["timing_s/step"] for step in range(max(1, last - 4), last + 1))
    assert ended.metrics[last]["srpo/hours"] + longest / 3600 > STOP


def test_the_clock_counts_steps_without_checkpoints_and_validations(ended):
    seconds = 0.0
    for step in range(1, max(ended.metrics) + 1):
        metrics = ended.metrics[step]
        seconds += metrics["timing_s/step"] - metrics.get("timing_s/save_checkpoint", 0.0)
        # The two clocks stand a few statements apart in each step.
        assert 3600 * metrics["srpo/hours"] == pytest.approx(seconds, abs=0.005 * step)
    assert ended.metrics[0]["srpo/hours"] == 0.0


def test_the_best_accuracy_is_logged_with_every_validation_and_the_short_budget_frozen(ended):
    validated = [step for step in sorted(ended.metrics) if mean_accuracy(ended.metrics[step]) is not None]
    assert validated == sorted({0, *range(2, max(ended.metrics) + 1, 2), max(ended.metrics)})
    accuracies = [mean_accuracy(ended.metrics[step]) for step in validated]
    for index, step in enumerate(validated):
        assert ended.metrics[step][SHORT] == accuracies[0]
        assert ended.metrics[step][LONG] == max(accuracies[: index + 1])
    assert all(LONG not in ended.metrics[step] for step in set(ended.metrics) - set(validated))


def test_the_report_gives_the_run_s_own_values(ended):
    (run,), _ = load_runs([ended.cwd])
    (row,) = run_frame(group_runs([run])).to_dict("records")
    last = ended.metrics[max(ended.metrics)]
    assert row["best_acc"] == pytest.approx(100 * last[LONG])
    assert row["hours"] == last["srpo/hours"]


def test_a_resumed_run_goes_on_counting(ended, inputs, tmp_path):
    last = max(ended.metrics)
    saved = TrainingRecord.load(ended.cwd / "checkpoints" / f"global_step_{last}")
    # Completed after the checkpoint was written: with the weight transfer and the validation of its own step.
    assert saved.hours == ended.metrics[last]["srpo/hours"]
    assert saved.validations[last] == (saved.hours, mean_accuracy(ended.metrics[last]))
    resumed = train(
        inputs,
        tmp_path,
        *TINY_SRPO,
        *BUDGETS,
        "trainer.resume_mode=resume_path",
        f"trainer.resume_from_path={ended.cwd}/checkpoints/global_step_{last}",
        f"trainer.default_local_dir={tmp_path}/checkpoints",
        "trainer.test_freq=1",
        steps=last + 1,
    )
    assert sorted(resumed.metrics) == [last + 1]
    metrics = resumed.metrics[last + 1]
    assert 3600 * (metrics["srpo/hours"] - saved.hours) == pytest.approx(
        metrics["timing_s/step"] - metrics["timing_s/save_checkpoint"], abs=0.005
    )
    assert metrics[SHORT] == ended.metrics[0][SHORT]
    assert metrics[LONG] == max(ended.metrics[last][LONG], mean_accuracy(metrics))
