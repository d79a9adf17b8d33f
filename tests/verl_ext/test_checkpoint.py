"""Resuming on another number of ranks than the checkpoint was saved with."""

import pytest
import torch.distributed as dist
from verl.workers.engine_workers import ActorRolloutRefWorker

from srpo_verl.verl_ext.checkpoint import check_ranks
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
    assert f"python -m srpo_verl.export {tmp_path / 'global_step_20'} --out DIR" in message
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
