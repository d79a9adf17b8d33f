"""A run that was stopped and went on ends with the weights of one that was not, whatever it is made of."""

import pytest
import torch

from scripts.endurance.run import Started, arguments_of, difference
from srpo_verl.stopping import RESUMABLE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="the CPU platform is not active here"),
]
ACTOR, MODEL = "actor_rollout_ref.actor", "actor_rollout_ref.model"
VARIANTS = {
    "two ranks of FSDP2, several optimizer steps, memory": [
        "trainer.n_gpus_per_node=2",
        f"{ACTOR}.ppo_mini_batch_size=2",
        "srpo.demonstration.sources=[sibling,memory]",
    ],
    "two ranks of FSDP1, everything offloaded": [
        "trainer.n_gpus_per_node=2",
        f"{ACTOR}.strategy=fsdp",
        f"{ACTOR}.fsdp_config.param_offload=true",
        f"{ACTOR}.fsdp_config.optimizer_offload=true",
        "srpo.teacher.cpu_offload=true",
    ],
    "LoRA": [
        f"{MODEL}.lora_rank=4",
        f"{MODEL}.lora_alpha=8",
        f"{MODEL}.lora.merge=true",
        # Else veRL draws the first adapters without a seed, and no two runs are the same.
        f"{ACTOR}.fsdp_config.full_determinism=true",
    ],
}


def tail(folder):
    return (folder / "stdout.log").read_text()[-3000:]


@pytest.mark.parametrize("variant", VARIANTS)
def test_exactly(variant, tmp_path):
    arguments = [*arguments_of(tmp_path / "inputs"), *VARIANTS[variant]]
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert Started(arguments, whole).wait() == 0, tail(whole)
    run, log = Started(arguments, folder), folder / "srpo.jsonl"
    run.wait_until(lambda: log.exists() and '"step":3' in log.read_text())
    run.terminate()
    assert run.wait() == RESUMABLE, tail(folder)
    assert Started(arguments, folder).wait() == 0, tail(folder)
    assert difference(folder, whole) < 1e-6
