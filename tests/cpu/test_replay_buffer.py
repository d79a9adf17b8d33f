"""The replay buffer: same batches as veRL's, in a reproducible order, sooner."""

import inspect
import time
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from verl.trainer.ppo.v1 import replay_buffer as verl_replay_buffer
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.utils.import_utils import load_extern_object

from srpo_verl.cpu import in_flight
from srpo_verl.cpu.replay_buffer import POLL_INTERVAL_S, FastReplayBuffer

# What PPOTrainer._build_replay_buffer passes to a custom sampler.
KWARGS = {
    "trainer_config": OmegaConf.create({}),
    "max_off_policy_threshold": 8,
    "max_off_policy_strategy": "drop",
    "sampler_kwargs": OmegaConf.create({}),
    "refill_fn": None,
}


class FakeQueue:
    """TransferQueue's metadata: prompts in the order of submission, trajectories in that of arrival."""

    def __init__(self, polls):
        self.polls = iter(polls)
        self.cleared = []

    def kv_list(self):
        return {"train": next(self.polls)}

    def kv_clear(self, partition_id, keys):
        self.cleared += keys


def prompt(status, step=1):
    return {"is_prompt": True, "status": status, "global_steps": step}


def test_waits_for_enough_groups_and_orders_them(monkeypatch):
    running = {"zz": prompt("running"), "aa": prompt("finished"), "mm": prompt("running")}
    done = {
        "zz": prompt("finished"),
        "aa": prompt("failure"),
        "mm": prompt("finished"),
        "old": prompt("finished", step=0),
        "mm_0_0": {"n": 1},
        "zz_10_0": {"n": 2},
        "zz_2_1": {"n": 3},
        "zz_2_0": {"n": 4},
        "old_0_0": {"n": 5},
        "aa_1_0": {"n": 6},
    }
    queue = FakeQueue([running, done])
    monkeypatch.setattr(verl_replay_buffer, "tq", queue)
    waits = []
    # Not time.sleep itself: threads that other tests have started sleep too.
    monkeypatch.setattr(verl_replay_buffer, "time", SimpleNamespace(time=time.time, sleep=waits.append))
    batch, metrics = FastReplayBuffer(trainer_mode="sync", **KWARGS).sample(1, "train", 3)
    assert waits == [POLL_INTERVAL_S]
    assert batch.keys == ["old_0_0", "zz_2_0", "zz_2_1", "zz_10_0", "aa_1_0"]
    assert [tag["n"] for tag in batch.tags] == [5, 4, 3, 2, 6]
    assert sorted(queue.cleared) == ["aa", "old", "zz"]
    assert metrics == {}


def test_what_was_handed_out_is_waited_for(monkeypatch):
    """Not one look into TransferQueue before all is there; an error of a worker ends the run instead of waiting."""
    order = []
    queue = FakeQueue([{"aa": prompt("finished"), "aa_0_0": {}}])
    kv_list = queue.kv_list
    monkeypatch.setattr(queue, "kv_list", lambda: order.append("look") or kv_list())
    monkeypatch.setattr(verl_replay_buffer, "tq", queue)
    monkeypatch.setattr(in_flight.ray, "get", lambda batches: order.append(batches))
    in_flight.add(["first", "second"])
    buffer = FastReplayBuffer(trainer_mode="sync", **KWARGS)
    buffer.sample(1, "train", 1)
    assert order == [["first", "second"], "look"]

    def fail(batches):
        raise RuntimeError("the worker died")

    in_flight.add(["third"])
    monkeypatch.setattr(in_flight.ray, "get", fail)
    with pytest.raises(RuntimeError, match="the worker died"):
        buffer.sample(1, "train", 1)
    assert in_flight._batches == []


def test_prompts_that_replace_failed_ones_are_waited_for_too(monkeypatch):
    running = {"aa": prompt("finished"), "aa_0_0": {}, "bb": prompt("running")}
    queue = FakeQueue([running, {**running, "bb": prompt("finished"), "bb_0_0": {}}])
    monkeypatch.setattr(verl_replay_buffer, "tq", queue)
    monkeypatch.setattr(verl_replay_buffer, "time", SimpleNamespace(time=time.time, sleep=lambda seconds: None))
    waits = []
    monkeypatch.setattr(in_flight.ray, "get", waits.append)
    buffer = FastReplayBuffer(trainer_mode="sync", **KWARGS)
    in_flight.add(["batch"])
    monkeypatch.setattr(buffer, "_evict_terminal_groups", evicts := Evicts(buffer._evict_terminal_groups))
    batch, _ = buffer.sample(1, "train", 2)
    assert batch.keys == ["aa_0_0", "bb_0_0"]
    assert waits[:2] == [["batch"], ["replacement"]]
    assert evicts.calls == 2


class Evicts:
    """Hands out a replacement when it is first called, as the sampling loop does for failed groups."""

    def __init__(self, original):
        self.original, self.calls = original, 0

    def __call__(self, *args):
        self.calls += 1
        if self.calls == 1:
            in_flight.add(["replacement"])
        return self.original(*args)


def test_asynchronous_modes_are_refused():
    with pytest.raises(ValueError, match="colocate_async"):
        FastReplayBuffer(trainer_mode="colocate_async", **KWARGS)


def test_trainer_builds_it_from_the_configuration():
    cls = load_extern_object("pkg://srpo_verl.cpu.replay_buffer", "FastReplayBuffer")
    assert cls is FastReplayBuffer
    source = inspect.getsource(PPOTrainer._build_replay_buffer)
    assert all(f"{key}=" in source for key in [*KWARGS, "trainer_mode"])


def test_the_built_in_one_still_polls_slowly():
    default = inspect.signature(verl_replay_buffer.ReplayBuffer).parameters["poll_interval"].default
    assert default == 2.0
    assert "poll_interval" not in inspect.getsource(PPOTrainer._build_replay_buffer)
