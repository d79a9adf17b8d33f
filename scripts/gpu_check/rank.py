"""One rank of an update: ``python -m scripts.gpu_check.rank SPEC``, with SPEC as `update.run_case` writes it."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict

from scripts.outside_ray import columns_of_rows, compose_worker, update_flags
from srpo_verl import cpu

STEPS = 2
PROMPT, REPROMPT, RESPONSE, VOCABULARY = 8, 24, 24, 256
TOP_K = 20


def make_config(device: str, model: str, overrides: list[str]) -> Any:
    """The worker's part of the configuration that a user would get; a step that moves the weights visibly."""
    actor = "actor_rollout_ref.actor"
    given = [
        *(["platform=cpu"] if device == "cpu" else []),
        f"actor_rollout_ref.model.path={model}",
        f"{actor}.optim.lr=1e-2",
        f"{actor}.optim.lr_warmup_steps=0",
        # Adam's first step is the sign of a gradient; with this it is a smooth function of it.
        f"+{actor}.optim.override_optimizer_config.eps=1e-3",
        f"{actor}.ppo_max_token_len_per_gpu=256",
        f"srpo.distillation.top_k={TOP_K}",
        "srpo.teacher.ema_rate=0.3",
        *overrides,
    ]
    return compose_worker("srpo", given).actor_rollout_ref


class Rollouts:
    """The same random rollouts whatever the ranks; half of the rows failed and are distilled.

    `rank` and `world_size` are data-parallel: the ranks of a Ulysses group hold the same rows.
    """

    def __init__(self, total: int, rank: int, world_size: int):
        generator = torch.Generator().manual_seed(0)
        self.total, self.mine = total, list(range(rank, total, world_size))

        def ids(length: int) -> torch.Tensor:
            return torch.randint(VOCABULARY, (total, length), generator=generator)

        self.prompts, self.responses, self.reprompts = ids(PROMPT), ids(RESPONSE), ids(REPROMPT)
        self.advantages = torch.randn(total, generator=generator)
        self.noise = 0.3 * torch.randn(total, RESPONSE, generator=generator)
        # With an even number of ranks every other rank has all of them, and the teacher's work has to be shared.
        self.is_sdpo = torch.arange(total) % 2 == 0

    def batch(self, **flags: Any) -> TensorDict:
        from verl.utils import tensordict_utils as tu

        from srpo_verl.verl_ext import fields
        from srpo_verl.verl_ext.nested import filler, jagged

        prompts, responses = self.prompts[self.mine], self.responses[self.mine]
        teacher = torch.cat([self.reprompts, self.responses], dim=1)
        columns = columns_of_rows(prompts, responses, torch.ones_like(responses)) | {
            "advantages": jagged([self.advantages[row].expand(RESPONSE).clone() for row in self.mine]),
            fields.SDPO_ROW: self.is_sdpo[self.mine],
            fields.SDPO_SHARE: self.is_sdpo[self.mine].float(),
            fields.GRPO_SHARE: (~self.is_sdpo[self.mine]).float(),
            fields.TEACHER_INPUT_IDS: jagged(
                [teacher[row] if self.is_sdpo[row] else filler(torch.int64) for row in self.mine]
            ),
        }
        return tu.get_tensordict(columns, non_tensor_dict={"temperature": 1.0, fields.DISTILL: True, **flags})


def update(worker: Any, rollouts: Rollouts) -> dict[str, float]:
    """One step as the trainer makes it: old log-probs with the support, then teacher pass, update and EMA."""
    from verl.utils import tensordict_utils as tu
    from verl.workers.utils.padding import response_from_nested

    from srpo_verl.verl_ext import fields
    from srpo_verl.verl_ext.nested import jagged
    from srpo_verl.verl_ext.worker import TEACHER_TIME

    # Of the ranks of a Ulysses group one answers.
    sampled = rollouts.batch(calculate_entropy=True, compute_loss=False, **{fields.WANT_SUPPORT: True})
    answer = [worker.compute_log_prob(sampled)]
    if worker.actor.engine.use_ulysses_sp:
        torch.distributed.broadcast_object_list(answer, group=worker.actor.engine.ulysses_parallel_group, group_src=0)
    old = answer[0]
    batch = rollouts.batch(**update_flags(rollouts.total))
    fresh = response_from_nested(old["log_probs"], batch["response_mask"]).unbind()
    noisy = [value + rollouts.noise[row].to(value) for value, row in zip(fresh, rollouts.mine, strict=True)]
    batch["old_log_probs"] = jagged(noisy)
    batch[fields.SUPPORT] = old[fields.SUPPORT]
    updated = worker.update_actor(batch)
    metrics = tu.get(updated, "metrics") if updated is not None else {}
    return {
        key: float(torch.tensor(value, dtype=torch.float64).mean())
        for key, value in metrics.items()
        if (key.startswith("srpo/") and key != TEACHER_TIME) or key == "grad_norm"
    }


def weights(engine: Any) -> dict[str, torch.Tensor]:
    """Whole weights under the names of Hugging Face."""
    return {name: value.detach().float().cpu().clone() for name, value in engine.get_per_tensor_param()[0]}


def main() -> None:
    spec = json.loads(sys.argv[1])
    on_gpu = spec["device"] == "cuda"
    if not on_gpu:
        torch.set_num_threads(1)
        cpu.activate()
    from srpo_verl.verl_ext.worker import SrpoWorker

    torch.manual_seed(0)
    config = make_config(spec["device"], spec["model"], spec["overrides"])
    slices = config.actor.ulysses_sequence_parallel_size
    worker = SrpoWorker(config=config, role="actor")
    worker.init_model()
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    rollouts = Rollouts(spec["rows"], rank // slices, world_size // slices)
    metrics = [update(worker, rollouts)]
    started = time.perf_counter()
    metrics += [update(worker, rollouts) for _ in range(STEPS - 1)]
    if on_gpu:
        torch.cuda.synchronize()
    memory = {
        "seconds": (time.perf_counter() - started) / (STEPS - 1),
        "peak": torch.cuda.max_memory_allocated() if on_gpu else 0,
        "held": torch.cuda.memory_allocated() if on_gpu else 0,
    }
    assert worker.teacher_weights is not None
    with worker.teacher_weights.scoring() as engine:
        teacher = weights(engine)
    result = {"metrics": metrics, "student": weights(worker.actor.engine), "teacher": teacher, **memory}
    if rank == 0:
        torch.save(result, Path(spec["answer"]))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
