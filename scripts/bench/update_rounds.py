"""The shipped worker and stock veRL's on the same rollouts, in turn: what a rank of `scripts.bench_step` runs."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recipes.quickstart.tokenizer import build_tokenizer
from scripts.outside_ray import columns_of_rows, compose_worker, update_flags
from scripts.random_model import save_random_qwen3

GROUP = 5
"""Rows per rank come in multiples of this, so that shares of 0.2 and 0.4 are whole numbers of rows."""
PROMPT = 64
TEMPLATE = 16
"""Tokens the teacher's template adds around the question and the demonstration."""

STOCK, GRPO, FORWARD = "stock grpo", "grpo", "forward of all teacher tokens"
BALANCED, ONE_SIDED = "balanced", "all on one rank"


@dataclass(frozen=True)
class Sizes:
    """What is measured; one rank's rows all have the same lengths."""

    rows: int
    response: int
    micro_batch: int
    top_k: int
    vocabulary: int

    @property
    def teacher_prompt(self) -> int:
        """The question, a demonstration as long as a response, and the template."""
        return PROMPT + self.response + TEMPLATE


def make_model(directory: Path, vocabulary: int, hidden: int, layers: int) -> Path:
    """Save a random Qwen3 with tied embeddings, and the tokenizer of the quickstart, which nothing here reads."""
    return save_random_qwen3(
        directory,
        build_tokenizer(),
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        head_dim=64,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )


def make_worker(name: str, model: Path, sizes: Sizes) -> Any:
    """`stock`: veRL's own worker; `grpo`, `srpo`: the plugin's with that configuration.

    As with `platform=cpu`, but for gradient checkpointing and padded rows.
    """
    from verl.workers.engine_workers import ActorRolloutRefWorker

    from srpo_verl.verl_ext.worker import SrpoWorker

    actor = "actor_rollout_ref.actor"
    overrides = [
        "platform=cpu",
        f"actor_rollout_ref.model.path={model}",
        "actor_rollout_ref.model.use_remove_padding=false",
        "actor_rollout_ref.model.enable_gradient_checkpointing=true",
        f"{actor}.use_dynamic_bsz=false",
        f"{actor}.ppo_micro_batch_size_per_gpu={sizes.micro_batch}",
        f"actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu={sizes.micro_batch}",
        f"{actor}.optim.lr_warmup_steps=0",
        *([f"srpo.distillation.top_k={sizes.top_k}"] if name == "srpo" else []),
    ]
    config = compose_worker("grpo" if name == "stock" else name, overrides).actor_rollout_ref
    worker = (ActorRolloutRefWorker if name == "stock" else SrpoWorker)(config=config, role="actor")
    worker.init_model()
    return worker


class Rollouts:
    """One rank's rows: random tokens, the same for every worker."""

    def __init__(self, sizes: Sizes, rank: int):
        self.sizes = sizes
        generator = torch.Generator().manual_seed(rank)

        def ids(length: int) -> torch.Tensor:
            return torch.randint(sizes.vocabulary, (sizes.rows, length), generator=generator)

        self.prompts, self.responses = ids(PROMPT), ids(sizes.response)
        self.reprompts = ids(sizes.teacher_prompt)
        self.advantages = torch.randn(sizes.rows, generator=generator)
        tokens = range(sizes.rows * sizes.response)
        supports = [torch.randperm(sizes.vocabulary, generator=generator)[: sizes.top_k] for _ in tokens]
        self.support = torch.stack(supports).view(sizes.rows, -1).to(torch.int32)
        self.teacher = torch.cat([self.reprompts, self.responses], dim=1)

    def batch(
        self, distilled: int | None, world_size: int = 1, *, distill: bool = False, prompts: torch.Tensor | None = None
    ) -> Any:
        """For an update; the first `distilled` rows go to SDPO. None: without the fields of the plugin.

        `distill` says that some rank has distilled rows, though this one may have none.
        """
        from verl.utils import tensordict_utils as tu

        from srpo_verl.verl_ext import fields
        from srpo_verl.verl_ext.nested import filler, jagged

        rows, shape = self.sizes.rows, self.responses.shape
        prompts = self.prompts if prompts is None else prompts
        columns = columns_of_rows(prompts, self.responses, torch.ones_like(self.responses)) | {
            "advantages": jagged(list(self.advantages[:, None].expand(shape).contiguous())),
            "old_log_probs": jagged(list(torch.full(shape, -math.log(self.sizes.vocabulary)))),
        }
        if distilled is not None:
            is_sdpo = torch.arange(rows) < distilled
            columns |= {
                fields.SDPO_ROW: is_sdpo,
                fields.SDPO_SHARE: is_sdpo.float(),
                fields.GRPO_SHARE: (~is_sdpo).float(),
                fields.TEACHER_INPUT_IDS: jagged(
                    [self.teacher[row] if row < distilled else filler(torch.int64) for row in range(rows)]
                ),
                fields.SUPPORT: jagged(
                    [self.support[row] if row < distilled else filler(torch.int32) for row in range(rows)]
                ),
            }
        flags = {"temperature": 1.0, "compute_loss": True, fields.DISTILL: bool(distilled) or distill}
        return tu.get_tensordict(columns, non_tensor_dict={**flags, **update_flags(rows * world_size)})


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """Wall-clock time of a call that all ranks start together."""
    torch.distributed.barrier()
    started = time.perf_counter()
    result = call()
    torch.distributed.barrier()
    return time.perf_counter() - started, result


def one_rank(rank: int, model: Path, sizes: Sizes, shares: list[float], repeats: int, answer: Path) -> None:
    """Seconds per update of every variant, interleaved: {variant: [one per repeat]}, as JSON into `answer`."""
    from verl.utils import tensordict_utils as tu

    workers = {name: make_worker(name, model, sizes) for name in ("stock", "grpo", "srpo")}
    rollouts = Rollouts(sizes, rank)

    def update(name: str, distilled: int | None) -> float:
        batch = rollouts.batch(distilled)
        return seconds(lambda: workers[name].update_actor(batch))[0]

    def forward() -> float:
        batch = rollouts.batch(0, prompts=rollouts.reprompts)
        tu.assign_non_tensor(batch, compute_loss=False)
        return seconds(lambda: workers["grpo"].compute_log_prob(batch))[0]

    variants: dict[str, Callable[[], float]] = {
        STOCK: lambda: update("stock", None),
        GRPO: lambda: update("grpo", 0),
        FORWARD: forward,
    }
    for share in shares:
        variants[f"srpo {share:g}"] = lambda share=share: update("srpo", round(share * sizes.rows))  # type: ignore[misc]
    _in_turn(variants, repeats, f"response {sizes.response}", answer)


def two_ranks(rank: int, model: Path, sizes: Sizes, share: float, repeats: int, answer: Path) -> None:
    """Seconds of the teacher phase (slowest rank) with the failures spread evenly, and with all on rank 0."""
    from verl.utils import tensordict_utils as tu

    from srpo_verl.verl_ext.worker import TEACHER_TIME

    worker, rollouts = make_worker("srpo", model, sizes), Rollouts(sizes, rank)
    each = round(share * sizes.rows)

    def teacher_phase(distilled: int) -> float:
        batch = rollouts.batch(distilled, 2, distill=True)
        _, output = seconds(lambda: worker.update_actor(batch))
        return math.nan if output is None else float(tu.get(output, "metrics")[TEACHER_TIME][0])

    variants: dict[str, Callable[[], float]] = {
        BALANCED: lambda: teacher_phase(each),
        ONE_SIDED: lambda: teacher_phase(2 * each if rank == 0 else 0),
    }
    _in_turn(variants, repeats, "two ranks", answer if rank == 0 else None)


def _in_turn(variants: dict[str, Callable[[], float]], repeats: int, title: str, answer: Path | None) -> None:
    """Rounds of all variants, every second one in reverse; the first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(repeats + 1):
        # Nobody always follows the same neighbour, and what it leaves in the caches.
        for name in list(variants)[:: 1 if repeat % 2 == 0 else -1]:
            elapsed = variants[name]()
            if repeat:
                times[name].append(elapsed)
        if answer is not None:
            print(f"{title}: round {repeat} of {repeats}", file=sys.stderr, flush=True)
    if answer is not None:
        answer.write_text(json.dumps(times))
