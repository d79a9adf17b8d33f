"""What keeps a run of veRL's synchronous trainer from being lost: its guards, and its stop with a checkpoint."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, open_dict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils.debug import marked_timer

from srpo_verl import checkpoints
from srpo_verl.attempts import keep_log, log_path, write_there
from srpo_verl.budget import mean_accuracy
from srpo_verl.config.guard_settings import guard_settings
from srpo_verl.config.schema import SrpoConfig
from srpo_verl.errors import RunStopped
from srpo_verl.guards import Watch
from srpo_verl.safe_loading import only_tensors
from srpo_verl.stall import StallWatch, leave_word, take_word
from srpo_verl.stopping import RESUMABLE, STOPPED, stop_file
from srpo_verl.whole_file import write_whole

FILE_NAME = "srpo_guards.json"
"""In global_step_N: what the guards have seen, so that a resumed run is compared with its own first steps."""

NONFINITE_STEPS = "srpo/nonfinite_steps"
MUST_BE_FINITE = ("actor/grad_norm", "srpo/loss", "actor/pg_loss")


class GuardedTrainer(PPOTrainerSync):
    """Looks at every step's metrics; saves, or ends the run, where a guard or a person asks for it.

    A checkpoint out of turn is written at the end of a step, where veRL writes its own: between the update and the
    transfer of the weights, while the rollout engine's memory is free. A guard sees a step's metrics after that, so
    what it asks for is done in the next step.
    """

    srpo: SrpoConfig
    total_training_steps: int
    """veRL's: its loop ends after this one."""

    def __init__(self, config: DictConfig):
        self.watch = Watch(guard_settings(self.srpo))
        self._nonfinite_steps = 0
        self._save_asked = False
        self._stop_asked: RunStopped | None = None
        self._stopped: RunStopped | None = None
        self._saved_step = -1
        minutes = self.srpo.guards.stall_minutes
        self._stall = StallWatch(None if minutes is None else 60 * minutes, self._end_stalled)
        self._root = Path(config.trainer.default_local_dir).absolute()
        # With async_save the checkpoint is not there yet when veRL comes back.
        self._keeps = not config.actor_rollout_ref.actor.get("checkpoint", {}).get("async_save", False)
        self._keep_last = config.trainer.max_actor_ckpt_to_keep
        if self._keeps:
            with open_dict(config):
                # veRL would remove the best one, and parts of the others (checkpoints.py).
                config.trainer.max_actor_ckpt_to_keep = None
        super().__init__(config)

    def fit(self, agent_loop_manager: Any) -> None:
        settings = self.config.trainer
        if "file" in settings.logger:
            log = log_path(settings.project_name, settings.experiment_name)
            write_there(log)
            kept = keep_log(log)
            if kept is not None:
                print(f"srpo_verl: the log of the earlier attempt is now {kept}", flush=True)
        take_word(self._root)
        self._stall.start()
        try:
            super().fit(agent_loop_manager)
        finally:
            self._stall.stop()
        stop_file(self._root).unlink(missing_ok=True)
        if self._stopped is not None:
            raise self._stopped

    def on_step_begin(self) -> None:
        super().on_step_begin()
        self._stall.progress("sampling")

    def on_sample_end(self) -> None:
        super().on_sample_end()
        self._stall.progress("the update")

    def on_validate_begin(self) -> None:
        super().on_validate_begin()
        self._stall.progress("validation")

    def _end_stalled(self, phase: str, seconds: float) -> None:
        """Of a thread beside the one that waits: there is nothing to raise into."""
        latest = checkpoints.read_step(self._root / checkpoints.LATEST)
        leave_word(
            self._root,
            f"nothing has happened for {seconds / 60:.3g} minutes, in step {self.global_steps}, {phase}: a rollout "
            "engine, a reward function or a rank hangs, see the threads and Ray's logs above; srpo.guards."
            f"stall_minutes={self.srpo.guards.stall_minutes:g} ends the run, whose last checkpoint is "
            + (f"that of step {latest}" if latest is not None else "none"),
        )
        os._exit(1)

    def on_step_end(self) -> None:
        self._stall.progress("a checkpoint, or the transfer of weights")
        if stop_file(self._root).exists():
            self._stop_asked = RunStopped(
                f"was stopped after step {self.global_steps}, as asked: the same command goes on from there", RESUMABLE
            )
        # The last step ends the run in any case.
        stops = self._stop_asked is not None and self.global_steps < self.total_training_steps
        if (stops or self._save_asked) and self._saved_step != self.global_steps:
            with marked_timer("save_checkpoint", self.timing_raw, color="green"):
                self._save_checkpoint()
        self._save_asked = False
        if stops:
            self._stopped, self.total_training_steps = self._stop_asked, self.global_steps
        super().on_step_end()

    def _save_checkpoint(self) -> None:
        if self._keeps:
            checkpoints.begin(self._root, self.global_steps)
        self._save_guards()
        super()._save_checkpoint()
        if self._keeps:
            checkpoints.mark(self._root, self.global_steps, None)
        self._saved_step = self.global_steps

    def _load_checkpoint(self) -> None:
        for line in checkpoints.repair(self._root):
            print(f"srpo_verl: {self._root}: {line}", flush=True)
        with only_tensors(self.srpo.checkpoints.trust_pickles):
            super()._load_checkpoint()
        if self.global_steps > 0:
            self._load_guards(checkpoints.resumed_from(self.config.trainer, self.global_steps))

    def _validate(self) -> dict[str, float]:
        """Also of a checkpoint that a run resumes from, and that was killed before it was validated."""
        metrics = super()._validate()
        if (checkpoints.folder_of(self._root, self.global_steps) / checkpoints.MARK).is_file():
            checkpoints.mark(self._root, self.global_steps, mean_accuracy(metrics))
        return metrics

    def _compute_metrics(self, batch: KVBatchMeta, metrics: dict, *args: Any, **kwargs: Any) -> None:
        """The end of a step, after its validation and before veRL logs it."""
        super()._compute_metrics(batch, metrics, *args, **kwargs)
        values = [metrics[name] for name in MUST_BE_FINITE if name in metrics]
        self._nonfinite_steps += not all(math.isfinite(value) for value in values)
        metrics[NONFINITE_STEPS] = self._nonfinite_steps
        for alarm in self.watch.observe(self.global_steps, metrics):
            print(f"srpo_verl: guard {alarm}", flush=True)
            self._save_asked |= alarm.level == "checkpoint"
            if alarm.level == "stop":
                self._stop_asked = RunStopped(f"was stopped by srpo.guards.{alarm.guard}: {alarm}", STOPPED)
        active = self.watch.active(self.global_steps)
        metrics.update({f"srpo/guard_{name}": float(holds) for name, holds in active.items()})
        if self._saved_step == self.global_steps:
            # veRL saves before it validates; now the step is complete.
            self._save_guards()
            if self._keeps:
                self._rotate()

    def _rotate(self) -> None:
        settings = self.srpo.checkpoints
        max_bytes = None if settings.max_disk_gib is None else settings.max_disk_gib * checkpoints.GIB
        removed = checkpoints.rotate(self._root, self._keep_last, settings.keep_best, max_bytes)
        if removed:
            print(f"srpo_verl: removed the checkpoints of steps {', '.join(map(str, removed))}", flush=True)

    def _save_guards(self) -> None:
        values = {**self.watch.to_dict(), "nonfinite_steps": self._nonfinite_steps}
        path = checkpoints.folder_of(self._root, self.global_steps) / FILE_NAME
        write_whole(path, json.dumps(values) + "\n")

    def _load_guards(self, folder: Path) -> None:
        """Without the file, or with one that is not ours, the first steps after the resumption are the reference."""
        path = folder / FILE_NAME
        try:
            values = json.loads(path.read_text())
            self.watch.restore(values)
            self._nonfinite_steps = int(values["nonfinite_steps"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            print(f"srpo_verl: guards compare with the steps from here on: {path}: {error}", flush=True)
