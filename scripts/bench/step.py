"""The shipped worker and stock veRL's on the same rollouts, outside Ray: what a rank of the step benchmark runs."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from srpo_verl import cpu

GROUP = 5
"""Rows per rank come in multiples of this, so that shares of 0.2 and 0.4 are whole numbers of rows."""
PROMPT = 64
TEMPLATE = 16
"""Tokens the teacher's template adds around the question and the demonstration."""
EVERY = "teacher on every row"
EVERY_SHARE = 0.4
"""Distilled rows of that variant, whose teacher scores the others as well."""


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
    """Save a random Qwen3 with tied embeddings, and the tokenizer of the quickstart (which nothing here reads)."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from recipes.quickstart.tokenizer import build_tokenizer

    torch.manual_seed(0)
    config = Qwen3Config(
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
    Qwen3ForCausalLM(config).save_pretrained(directory)
    build_tokenizer().save_pretrained(directory)
    return directory


def compose(name: str, model: Path, sizes: Sizes) -> Any:
    """What a user gets from `--config-name NAME platform=cpu`: gradient checkpointing, padded rows, fp32."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from omegaconf import OmegaConf, open_dict

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
    ]
    if name != "grpo":
        overrides.append(f"srpo.distillation.top_k={sizes.top_k}")
    with initialize_config_module(config_module="srpo_verl.config", version_base=None):
        config = hydra_compose(name, overrides)
    with open_dict(config):
        config.actor_rollout_ref.srpo = OmegaConf.to_container(config.srpo)
    OmegaConf.resolve(config)
    return config.actor_rollout_ref


def make_workers(model: Path, sizes: Sizes, names: tuple[str, ...]) -> dict[str, Any]:
    """`stock`: veRL's own worker; `grpo`, `srpo`: the plugin's with that configuration."""
    cpu.activate()
    from verl.workers.engine_workers import ActorRolloutRefWorker

    from srpo_verl.verl_ext.worker import SrpoWorker

    workers = {}
    for name in names:
        kind = ActorRolloutRefWorker if name == "stock" else SrpoWorker
        workers[name] = kind(config=compose("grpo" if name == "stock" else name, model, sizes), role="actor")
        workers[name].init_model()
    return workers


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
        self.support = torch.stack(
            [
                torch.randperm(sizes.vocabulary, generator=generator)[: sizes.top_k]
                for _ in range(sizes.rows * sizes.response)
            ]
        ).view(sizes.rows, -1)

    def batch(
        self, distilled: int | None, world_size: int = 1, *, distill: bool = False, prompts: torch.Tensor | None = None
    ) -> Any:
        """For an update; the first `distilled` rows go to SDPO. None: without the fields of the plugin.

        `distill` says that some rank has distilled rows, though this one may have none.
        """
        from verl.utils import tensordict_utils as tu

        from srpo_verl.verl_ext import fields
        from srpo_verl.verl_ext.nested import filler, jagged

        sizes = self.sizes
        prompts = self.prompts if prompts is None else prompts
        every = torch.cat([prompts, self.responses], dim=1)
        ones = torch.ones_like(self.responses)
        columns = {
            "prompts": jagged(list(prompts)),
            "responses": jagged(list(self.responses)),
            "response_mask": jagged(list(ones)),
            "loss_mask": jagged(list(ones)),
            "input_ids": jagged(list(every)),
            "position_ids": jagged([torch.arange(every.shape[1])] * sizes.rows),
            "advantages": jagged(list(self.advantages[:, None].expand(-1, sizes.response).contiguous())),
            "old_log_probs": jagged(list(torch.full(self.responses.shape, -math.log(sizes.vocabulary)))),
        }
        if distilled is not None:
            is_sdpo = torch.arange(sizes.rows) < distilled
            teacher = torch.cat([self.reprompts, self.responses], dim=1)
            columns |= {
                fields.SDPO_ROW: is_sdpo,
                fields.SDPO_SHARE: is_sdpo.float(),
                fields.GRPO_SHARE: (~is_sdpo).float(),
                fields.TEACHER_INPUT_IDS: jagged(
                    [teacher[row] if is_sdpo[row] else filler(torch.int64) for row in range(sizes.rows)]
                ),
                fields.SUPPORT: jagged(
                    [
                        self.support[row].to(torch.int32) if is_sdpo[row] else filler(torch.int32)
                        for row in range(sizes.rows)
                    ]
                ),
            }
        total = sizes.rows * world_size
        return tu.get_tensordict(
            columns,
            non_tensor_dict={
                "temperature": 1.0,
                "calculate_entropy": False,
                "compute_loss": True,
                "global_batch_size": total,
                "mini_batch_size": total,
                "epochs": 1,
                "seed": 0,
                "dataloader_kwargs": {"shuffle": False},
                fields.DISTILL: bool(distilled) or distill,
            },
        )


@contextmanager
def teacher_on_every_row(worker: Any, rollouts: Rollouts) -> Iterator[None]:
    """The teacher also scores the rows that are not distilled, for nothing: what the shipped worker leaves out."""
    from srpo_verl.verl_ext import fields
    from srpo_verl.verl_ext.nested import jagged

    shipped = worker._score

    def score(data: Any) -> int:
        rest = data.clone(recurse=False)
        rest[fields.SDPO_ROW] = ~data[fields.SDPO_ROW]
        rest[fields.TEACHER_INPUT_IDS] = jagged(list(torch.cat([rollouts.reprompts, rollouts.responses], dim=1)))
        rest[fields.SUPPORT] = jagged([row.to(torch.int32) for row in rollouts.support])
        return shipped(rest) + shipped(data)

    worker._score = score
    try:
        yield
    finally:
        del worker._score


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """Wall-clock time of a call that all ranks start together."""
    torch.distributed.barrier()
    started = time.perf_counter()
    result = call()
    torch.distributed.barrier()
    return time.perf_counter() - started, result


def one_rank(model: Path, sizes: Sizes, shares: list[float], repeats: int, report: Callable[[str], None]) -> dict:
    """Seconds per update of every variant, interleaved: {variant: [one per repeat]}."""
    from verl.utils import tensordict_utils as tu

    workers = make_workers(model, sizes, ("stock", "grpo", "srpo"))
    rollouts = Rollouts(sizes, rank=0)

    def update(name: str, distilled: int | None) -> float:
        batch = rollouts.batch(distilled)
        return seconds(lambda: workers[name].update_actor(batch))[0]

    def forward() -> float:
        batch = rollouts.batch(0, prompts=rollouts.reprompts)
        tu.assign_non_tensor(batch, compute_loss=False)
        return seconds(lambda: workers["grpo"].compute_log_prob(batch))[0]

    def every_row() -> float:
        with teacher_on_every_row(workers["srpo"], rollouts):
            return update("srpo", round(EVERY_SHARE * sizes.rows))

    variants: dict[str, Callable[[], float]] = {
        "stock grpo": lambda: update("stock", None),
        "grpo": lambda: update("grpo", 0),
        "forward of all teacher tokens": forward,
        EVERY: every_row,
    }
    for share in shares:
        variants[f"srpo {share:g}"] = lambda share=share: update("srpo", round(share * sizes.rows))  # type: ignore[misc]
    times: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(repeats + 1):
        # Every second round in reverse: nobody always follows the same neighbour, and what it leaves in the caches.
        for name in list(variants)[:: 1 if repeat % 2 == 0 else -1]:
            elapsed = variants[name]()
            if repeat:  # the first round warms up
                times[name].append(elapsed)
        report(f"response {sizes.response}: round {repeat} of {repeats}")
    return times


def two_ranks(model: Path, sizes: Sizes, share: float, repeats: int, rank: int, report: Callable[[str], None]) -> dict:
    """Seconds of the teacher phase (slowest rank) with the failures spread evenly, and with all on rank 0."""
    from verl.utils import tensordict_utils as tu

    from srpo_verl.verl_ext.worker import TEACHER_TIME

    worker = make_workers(model, sizes, ("srpo",))["srpo"]
    rollouts = Rollouts(sizes, rank)
    each = round(share * sizes.rows)
    times: dict[str, list[float]] = {"balanced": [], "all on one rank": []}
    for repeat in range(repeats + 1):
        for name, distilled in (("balanced", each), ("all on one rank", 2 * each if rank == 0 else 0)):
            batch = rollouts.batch(distilled, 2, distill=True)
            _, output = seconds(lambda batch=batch: worker.update_actor(batch))  # type: ignore[misc]
            if repeat and output is not None:
                times[name].append(float(tu.get(output, "metrics")[TEACHER_TIME][0]))
        report(f"two ranks: round {repeat} of {repeats}")
    return times


def rank_environment(rank: int, world_size: int, port: int, threads: int) -> None:
    """What torchrun would set."""
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK="0",
        LOCAL_WORLD_SIZE="1",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(threads)
