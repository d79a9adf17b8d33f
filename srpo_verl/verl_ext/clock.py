"""veRL's synchronous trainer with a clock: training time, accuracy within budgets, the last step that fits."""

from __future__ import annotations

import time
from copy import deepcopy
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from srpo_verl import checkpoints
from srpo_verl.budget import HOURS, SECONDS_PER_HOUR, TrainingRecord, mean_accuracy
from srpo_verl.config.schema import SrpoConfig
from srpo_verl.console import MARK
from srpo_verl.progress import Progress


class TimedTrainer(PPOTrainerSync):
    """Trains as veRL does, counts the time of the steps and keeps the budgets (srpo_verl/budget.py)."""

    srpo: SrpoConfig
    """Set before this class's `__init__`; its `budget` is read here."""

    record: TrainingRecord | None
    """None after a resumption from a checkpoint that does not say how long its run had trained."""

    total_training_steps: int
    """veRL's: its loop asks before every step whether this is the one."""

    def __init__(self, config: DictConfig):
        self.record = TrainingRecord()
        self.progress = Progress()
        self._saved_in: str | None = None
        super().__init__(config)

    def say(self, line: str) -> None:
        """Show a line on the console of whoever started the run."""
        print(f"{MARK}{line}", flush=True)

    def _save_beside(self, folder: str) -> None:
        """Write what a subclass keeps in a checkpoint's folder, before veRL names that checkpoint the latest."""

    def _load_beside(self, folder: str) -> None:
        """Read what `_save_beside` wrote."""

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()
        if self.global_steps == 0:
            return
        folder = str(checkpoints.resumed_from(self.config.trainer, self.global_steps))
        self._load_beside(folder)
        try:
            self.record = TrainingRecord.load(folder)
        except (FileNotFoundError, ValueError) as error:
            if self.srpo.budget.hours or self.srpo.budget.stop_at_hours is not None:
                raise
            # Counting from 0 would log a time that is too short.
            self.record = None
            self.say(f"{HOURS} is not logged: {error}")

    def _checkpoint_folder(self) -> str:
        return str(checkpoints.folder_of(Path(self.config.trainer.default_local_dir), self.global_steps))

    def on_train_begin(self) -> None:
        super().on_train_begin()
        self._set_last_step(self.global_steps - 1)
        self.progress.begin(self.global_steps)
        self.say(self.progress.phase(f"training, step {self.global_steps} to {self.total_training_steps}"))

    def on_step_begin(self) -> None:
        super().on_step_begin()
        self._step_started, self._seconds_saving, self._saved_in = time.perf_counter(), 0.0, None

    def on_step_end(self) -> None:
        """The last thing inside veRL's `timing_s/step`: the weights have reached the rollout engine."""
        super().on_step_end()
        if self.record is not None:
            self.record.add_step(self._step_seconds())
        # The step that has just ended cannot be made the last one any more: veRL has decided about its checkpoint.
        if self.global_steps < self.total_training_steps:
            self._set_last_step(self.global_steps, at_least=self.global_steps + 1)

    def _step_seconds(self) -> float:
        """What the present step has taken so far, without its checkpoint."""
        return time.perf_counter() - self._step_started - self._seconds_saving

    def _set_last_step(self, done: int, at_least: int = 0) -> None:
        """Let veRL's own loop end, with its last validation and checkpoint, at the last step that fits.

        Args:
            done: steps done so far.
            at_least: a last step before this one is not possible.
        """
        stop_at_hours = self.srpo.budget.stop_at_hours
        if stop_at_hours is None or self.record is None:
            return
        fitting = self.record.steps_that_fit(stop_at_hours)
        # veRL asks before a step whether it is the last one, so it is enough to know one step ahead. By then the
        # expectation rests on the latest steps.
        if fitting is None or fitting > 1:
            return
        last = max(done + fitting, at_least)
        if last < self.total_training_steps:
            self.total_training_steps = last
            self.say(
                f"after {self.record.hours:.4g} h of training, step {last} is the last one, "
                f"by srpo.budget.stop_at_hours={stop_at_hours:g}"
            )

    def _save_checkpoint(self) -> None:
        started = time.perf_counter()
        self._save_beside(self._checkpoint_folder())
        if self.record is not None:
            # Before veRL names this checkpoint the latest one, so that none without a record can be resumed from.
            so_far = deepcopy(self.record)
            so_far.add_step(self._step_seconds())
            self._saved_in = self._checkpoint_folder()
            so_far.save(self._saved_in)
        super()._save_checkpoint()
        self._seconds_saving = time.perf_counter() - started

    def _validate(self) -> dict[str, float]:
        if self.progress.first_step is None:
            self.say(self.progress.phase("validation before training"))
        metrics = super()._validate()
        if self.record is not None and metrics:
            accuracy = mean_accuracy(metrics)
            if accuracy is not None:
                self.record.add_validation(self.global_steps, accuracy)
            metrics.update(self.record.metrics(self.srpo.budget.hours))
        return metrics

    def _compute_metrics(self, batch: KVBatchMeta, metrics: dict, *args: Any, **kwargs: Any) -> None:
        """The end of a step, after its validation."""
        super()._compute_metrics(batch, metrics, *args, **kwargs)
        if self.record is not None:
            metrics[HOURS] = self.record.hours
            if self._saved_in is not None:
                # veRL saves before it syncs the weights and before it validates; now the record is complete.
                self.record.save(self._saved_in)
        self.say(self.progress.step(self.global_steps, self.total_training_steps, metrics, self._seconds_left()))

    def _seconds_left(self) -> float | None:
        """Of the budget that ends the run; None without one."""
        stop_at_hours = self.srpo.budget.stop_at_hours
        if stop_at_hours is None or self.record is None:
            return None
        return max(0.0, stop_at_hours * SECONDS_PER_HOUR - self.record.seconds)
