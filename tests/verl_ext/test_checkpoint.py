"""Resuming on another number of ranks than the checkpoint was saved with."""

import os
import random

import numpy as np
import pytest
import torch
import torch.distributed as dist
from verl.workers.engine_workers import ActorRolloutRefWorker

from srpo_verl import checkpoints
from srpo_verl.safe_loading import UntrustedFile, only_tensors
from srpo_verl.verl_ext.checkpoint import check_ranks, check_shards
from srpo_verl.verl_ext.worker import SrpoWorker


def shards(folder, ranks, kind="model"):
    folder.mkdir(parents=True)
    for rank in range(ranks):
        (folder / f"{kind}_world_size_{ranks}_rank_{rank}.pt").touch()
    (folder / "fsdp_config.json").touch()


@pytest.mark.parametrize("kind", ["model", "adapters"])
def test_the_message_says_what_there_is_and_what_to_do(tmp_path, kind):
    folder = tmp_path / "global_step_20" / "actor"
    shards(folder, 4, kind)
    with pytest.raises(ValueError, match="saved by 4 ranks, and this run has 8") as raised:
        check_ranks(f"{folder}/", 8)
    message = str(raised.value)
    assert message.startswith(str(folder))
    assert "resume with 4 ranks" in message
    assert f"python -m srpo_verl export {tmp_path / 'global_step_20'} --out DIR" in message
    check_ranks(str(folder), 4)


def test_nothing_is_said_of_what_is_not_there(tmp_path):
    check_ranks(str(tmp_path / "actor"), 2)  # on another file system, or missing: veRL's to say
    (tmp_path / "actor").mkdir()
    check_ranks(str(tmp_path / "actor"), 2)


@pytest.mark.parametrize("other", ["actor", "srpo_teacher"])
def test_the_worker_asks_before_it_loads_anything(tmp_path, monkeypatch, other):
    for folder in ("actor", "srpo_teacher"):
        shards(tmp_path / folder, 2 if folder == other else 1)
    monkeypatch.setattr(dist, "get_world_size", lambda: 1)
    monkeypatch.setattr(ActorRolloutRefWorker, "load_checkpoint", lambda *args: pytest.fail("loaded"))
    worker = object.__new__(SrpoWorker)
    worker.teacher_weights = None
    with pytest.raises(ValueError, match=f"{other}: saved by 2 ranks, and this run has 1"):
        worker.load_checkpoint(str(tmp_path / "actor"))


def test_a_damaged_file_is_named_with_another_checkpoint(tmp_path):
    actor = tmp_path / "global_step_20" / "actor"
    actor.mkdir(parents=True)
    for kind in ("model", "optim"):
        for rank in range(2):
            torch.save({"x": torch.zeros(100)}, actor / f"{kind}_world_size_2_rank_{rank}.pt")
    for rank in range(2):
        check_shards(str(actor), rank, 2)
    check_shards(str(tmp_path / "nowhere"), 0, 2)
    path = actor / "optim_world_size_2_rank_1.pt"
    saved = path.read_bytes()
    middle = saved.index(bytes(400))  # the tensor's own bytes: torch.load would take them for weights
    for damaged in (saved[:-200], saved[:middle] + b"\1" + saved[middle + 1 :]):
        path.write_bytes(damaged)
        check_shards(str(actor), 0, 2)
        with pytest.raises(ValueError, match=rf"{path} is half-written or damaged; no other checkpoint"):
            check_shards(str(actor), 1, 2)
    path.unlink()
    checkpoints.mark(tmp_path, 10, None)
    with pytest.raises(ValueError, match=r"is missing; resume from another one: .*/global_step_10$"):
        check_shards(str(actor), 1, 2)


class RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_what_a_checkpoint_holds_is_read_and_what_it_would_run_is_not(tmp_path):
    rng = {"cpu": torch.get_rng_state(), "numpy": np.random.get_state(), "random": random.getstate()}
    torch.save({"lr_scheduler": {"last_epoch": 3}, "rng": rng}, tmp_path / "extra.pt")
    torch.save({"weights": torch.zeros(2), "other": RunsCode(tmp_path / "ran")}, tmp_path / "foreign.pt")
    with only_tensors():
        read = torch.load(tmp_path / "extra.pt", weights_only=False)  # as veRL does
    np.testing.assert_array_equal(read["rng"]["numpy"][1], rng["numpy"][1])
    assert read["rng"]["random"] == rng["random"]
    with pytest.raises(UntrustedFile, match="could run code"), only_tensors():
        torch.load(tmp_path / "foreign.pt", weights_only=False)
    assert not (tmp_path / "ran").exists()
    with only_tensors(trusted=True):
        torch.load(tmp_path / "foreign.pt", weights_only=False)
    assert (tmp_path / "ran").exists()
