"""LoRA through `python -m verl.trainer.main_ppo`: adapters are trained, averaged, saved, and sent merged."""

import pytest
import torch

from tests.e2e.test_training import METRICS, inputs, train  # noqa: F401 (inputs is a fixture)
from tests.support import TINY_SRPO

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="the CPU platform is not active here"),
]


def test_two_steps_with_lora(inputs, tmp_path):  # noqa: F811
    run = train(
        inputs,
        tmp_path,
        *TINY_SRPO,
        "actor_rollout_ref.model.lora_rank=4",
        "actor_rollout_ref.model.lora.merge=true",
        "trainer.save_freq=2",
        f"trainer.default_local_dir={tmp_path}/checkpoints",
        "actor_rollout_ref.actor.optim.lr=1.0e-2",
        "actor_rollout_ref.actor.optim.lr_warmup_steps=0",
    )
    for step in (1, 2):
        assert [name for name in METRICS if name not in run.metrics[step]] == []
        assert run.metrics[step]["srpo/frac_sdpo"] > 0
        assert run.metrics[step]["srpo/teacher_distance"] > 0
        # veRL sends merged weights in bf16.
        assert run.metrics[step]["training/rollout_probs_diff_max"] < 2e-3
    folder = tmp_path / "checkpoints" / "global_step_2"
    saved = torch.load(folder / "srpo_teacher" / "adapters_world_size_1_rank_0.pt")
    actor = torch.load(folder / "actor" / "model_world_size_1_rank_0.pt", weights_only=False)
    assert saved["kind"] == "ema"
    assert set(saved["average"]) == {name for name in actor if "lora_" in name}
    for name, average in saved["average"].items():
        assert average.dtype == torch.float32
        assert not torch.equal(average, actor[name].to_local()), f"{name}: the teacher is the student"
