"""What the trainer hands to its workers: the rows, and which fields they fetch from TransferQueue."""

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
    "srpo_teacher_input_ids": {"dtype": torch.int64},
    "rm_scores": {"dtype": torch.float32},
    # TransferQueue says is_non_tensor of the first rows of a field only; it forgets it when they are cleared.
    "raw_prompt": {"dtype": None, "is_non_tensor": None},
    "extra_fields": {"dtype": None, "is_non_tensor": True},
    "multi_modal_inputs": {"dtype": None, "is_non_tensor": True},
}
TENSORS = ["input_ids", "old_log_probs", "srpo_sdpo", "srpo_teacher_input_ids"]


@pytest.fixture
def trainer(monkeypatch):
    client = SimpleNamespace(kv_retrieve_meta=lambda keys, partition_id: SimpleNamespace(field_schema=SCHEMA))
    monkeypatch.setattr(trainer_module.tq, "get_client", lambda: client)
    trainer = object.__new__(SrpoTrainer)
    trainer.processor, trainer._distill, trainer._sample, trainer.timing_raw = None, True, None, {}
    trainer.srpo = SimpleNamespace(distils=True, distillation=SimpleNamespace(top_k=None))
    return trainer


def batch(fields):
    return KVBatchMeta(keys=["a_0_0", "a_1_0"], tags=[{}, {}], partition_id="train", fields=fields)


@pytest.mark.parametrize("method", ["_compute_old_log_prob", "_compute_ref_log_prob", "_update_actor"])
def test_workers_get_the_tensors_they_read(trainer, monkeypatch, method):
    given = []
    monkeypatch.setattr(PPOTrainerSync, method, lambda self, batch, metrics: given.append(list(batch.fields)) or batch)
    getattr(trainer, method)(batch(list(SCHEMA)), {})
    assert given == [TENSORS if method == "_update_actor" else TENSORS[:-1]]


def test_a_processors_inputs_are_kept(trainer):
    trainer.processor = object()
    assert trainer._for_workers(batch(list(SCHEMA))).fields == [*TENSORS, "multi_modal_inputs"]


def test_a_batch_that_names_no_fields_is_left_alone(trainer):
    assert trainer._for_workers(batch(None)).fields is None


def test_on_one_rank_rows_and_metrics_are_those_of_verls_balancing(trainer):
    lengths = torch.randint(5, 60, (24,), generator=torch.Generator().manual_seed(0)).tolist()
    trainer.actor_rollout_wg = SimpleNamespace(_dispatch_info={"actor": [0]}, world_size=1)
    trainer.tokenizer = SimpleNamespace(eos_token_id=0)
    trainer._get_required_batch_multiple = lambda dp_size: 8

    def filled(method):
        keys = [f"a_{row}_0" for row in range(len(lengths))]
        metrics, rows = {}, KVBatchMeta(keys=keys, tags=[{"seq_len": n} for n in lengths], partition_id="train")
        return method(rows, metrics).keys, metrics

    assert filled(trainer._fill_up) == filled(super(SrpoTrainer, trainer)._balance_batch)
