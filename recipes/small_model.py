"""The stock veRL command that trains a model of half a million parameters on the CPU; only sizes and paths are set."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from srpo_verl.launch.cells import ENTRY

PROMPTS, ROLLOUTS = 16, 8
"""Per training step; the rollouts of a prompt are the configurations' own 8."""


@dataclass(frozen=True)
class Sizes:
    """Limits of a task, in tokens."""

    prompt: int
    response: int
    teacher_prompt: int | None
    """None: the method has no teacher."""


def training_command(
    method: str,
    *,
    sizes: Sizes,
    model: Path,
    train: Path,
    validation: Sequence[Path],
    reward: Path,
    run: Path,
    steps: int,
    seed: int,
    prompts: int = PROMPTS,
    learning_rate: float = 5e-4,
    distils: bool = True,
    test_every: int = 10,
    extra: Sequence[str] = (),
) -> list[str]:
    """Command line of one run.

    Args:
        method: name of a configuration.
        reward: file with `compute_score`.
        run: folder of everything the run writes.
        seed: of data order and rollouts.
        prompts: of a training step.
        distils: whether the method compares distributions, which takes a support.
        extra: further overrides, which win.
    """
    overrides = [
        "platform=cpu",
        f"data.train_files={train}",
        f"data.val_files=[{','.join(map(str, validation))}]",
        f"data.seed={seed}",
        f"data.train_batch_size={prompts}",
        f"data.max_prompt_length={sizes.prompt}",
        f"data.max_response_length={sizes.response}",
        f"actor_rollout_ref.model.path={model}",
        "actor_rollout_ref.model.enable_gradient_checkpointing=false",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={prompts}",
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=4096",
        f"actor_rollout_ref.actor.optim.lr={learning_rate:g}",
        "actor_rollout_ref.actor.optim.lr_warmup_steps=5",
        f"actor_rollout_ref.rollout.seed={seed}",
        f"actor_rollout_ref.rollout.max_num_seqs={prompts * ROLLOUTS}",
        "actor_rollout_ref.rollout.val_kwargs.n=1",
        "actor_rollout_ref.rollout.val_kwargs.temperature=1.0",
        "actor_rollout_ref.rollout.val_kwargs.top_p=1.0",
        f"reward.custom_reward_function.path={reward}",
        f"trainer.experiment_name={method}",
        f"trainer.total_training_steps={steps}",
        "trainer.total_epochs=100",
        f"trainer.test_freq={test_every}",
        f"trainer.save_freq={steps}",
        "trainer.logger=[file]",
        f"trainer.default_local_dir={run}/checkpoints",
    ]
    # A few tens of tokens in the vocabulary: sizes, not choices.
    if sizes.teacher_prompt is not None:
        overrides.append(f"srpo.demonstration.max_prompt_tokens={sizes.teacher_prompt}")
    if distils:
        overrides.append("srpo.distillation.top_k=null")
    return [sys.executable, *ENTRY[1:], method, *overrides, f"hydra.run.dir={run}/hydra", *extra]
