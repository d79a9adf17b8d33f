"""What the trainer lets its workers fetch from TransferQueue."""

from types import SimpleNamespace

import pytest
import torch
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from srpo_verl.verl_ext import trainer as trainer_module
from srpo_verl.verl_ext.trainer import SrpoTrainer

SCHEMA = {
    "input_ids": {"dtype": torch.int64},
    "old_log_probs": {"dtype": torch.float32},
    "srpo_sdpo": {"dtype": torch.bool},
    # TransferQueue says is_non_tensor of the first rows of a field only; it forgets it when they are cleared.
    "raw_prompt": {"dtype": None, "is_non_tensor": None},
    "extra_fields": {"dtype": None, "is_non_tensor": True},
    "multi_modal_inputs": {"dtype": None, "is_non_tensor": True},
}
TENSORS = ["input_ids", "old_log_probs", "srpo_sdpo"]


@pytest.fixture
def trainer(monkeypatch):
    client = SimpleNamespace(kv_retrieve_meta=lambda keys, partition_id: SimpleNamespace(field_schema=SCHEMA))
    monkeypatch.setattr(trainer_module.tq, "get_client", lambda: client)
    trainer = object.__new__(SrpoTrainer)
    trainer.processor, trainer._distill, trainer.timing_raw = None, True, {}
    trainer.srpo = SimpleNamespace(distils=True, distillation=SimpleNamespace(top_k=None))
    return trainer


def batch(fields):
    return KVBatchMeta(keys=["a_0_0", "a_1_0"], tags=[{}, {}], partition_id="train", fields=fields)


@pytest.mark.parametrize("method", ["_compute_old_log_prob", "_compute_ref_log_prob", "_update_actor"])
def test_workers_get_tensors_only(trainer, monkeypatch, method):
    given = []
    monkeypatch.setattr(PPOTrainerSync, method, lambda self, batch, metrics: given.append(list(batch.fields)) or batch)
    getattr(trainer, method)(batch(list(SCHEMA)), {})
    assert given == [TENSORS]


def test_a_processors_inputs_are_kept(trainer):
    trainer.processor = object()
    assert trainer._for_workers(batch(list(SCHEMA))).fields == [*TENSORS, "multi_modal_inputs"]


def test_a_batch_that_names_no_fields_is_left_alone(trainer):
    assert trainer._for_workers(batch(None)).fields is None
