"""Runs the shipped worker on one fixed batch, outside Ray: same rollouts in, whatever the ranks and micro-batches.

One process per rank; every case of a world size runs in the same processes, because importing veRL takes longer than
a case. The batch has all three kinds of rows: correct, failed with a sibling, failed without; ragged lengths, a
response of one token, and spans of masked tokens (tool outputs) in the middle and at the end of responses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from scripts.outside_ray import columns_of_rows, compose_worker, run_ranks, update_flags
from srpo_verl.algos import device

STEPS = 2
VERL_METRICS = ("grad_norm", "kl_loss", "actor/ppo_kl", "actor/pg_clipfrac", "actor/pg_clipfrac_lower")
TEMPERATURE = 0.9
TOP_K = 20
LEARNING_RATE = 1e-2
ADAM_EPS = 1e-3
EMA_RATE = 0.3

#                 A: two correct, two failed   B: all failed   C: one of each
REWARDS = [1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
GROUPS = ["A", "A", "A", "A", "B", "B", "C", "C"]
PROMPT_LENGTHS = [5, 5, 5, 5, 7, 7, 3, 3]
RESPONSE_LENGTHS = [6, 9, 4, 1, 7, 3, 8, 5]
REPROMPT_LENGTHS = [13, 14, 15, 12, 9, 10, 16, 17]
# (row, position); rows 1 and 7 are distilled in an SRPO run. One of them ends in a masked token.
MASKED_TOKENS = [(1, 3), (1, 4), (1, 5), (6, 2), (6, 3), (7, 1), (7, 4)]
VOCABULARY = 97


@dataclass
class Case:
    """A configuration of the worker: Hydra overrides, and which rows each rank holds."""

    name: str
    overrides: list[str] = field(default_factory=list)
    rows_of_rank: list[list[int]] | None = None
    # Rows per optimizer step, over all ranks.
    mini_batch_size: int = 8
    # Save after the first step, and go on with a new worker that loads it.
    resume: bool = False
    # (row, position) of response tokens that rollout correction has rejected.
    rejected: list[tuple[int, int]] = field(default_factory=list)
    # (row, position) -> another id for this response token.
    tokens: dict[tuple[int, int], int] = field(default_factory=dict)
    rewards: list[float] = field(default_factory=lambda: list(REWARDS))
    # In the last step one of the teacher's logits is NaN, on the first rank alone.
    spoilt: bool = False
    # The first step's token sample: rows, in the order of their numbers.
    sampled: list[int] = field(default_factory=list)
    # A name of PASSES: by which passes over the logits it is computed.
    passes: str = "cpu"


PASSES = {"cpu": device.CPU, "accelerator": device.ACCELERATOR, "compiled": device.COMPILED}
"""All that `device.passes_for` chooses from; the tensors stay on the CPU."""
COMPILE = "srpo.kernels.compile=true"


def batch_tensors(
    tokens: dict[tuple[int, int], int] | None = None, shown: bool = True
) -> dict[str, list[torch.Tensor]]:
    """The fixed rollouts, as lists over rows of one-dimensional tensors; `tokens` as in Case.

    Where nothing is `shown` to it, the teacher's prompt is the student's.
    """
    generator = torch.Generator().manual_seed(11)

    def ids(length: int) -> torch.Tensor:
        return torch.randint(3, VOCABULARY, (length,), generator=generator)

    prompts = [ids(length) for length in PROMPT_LENGTHS]
    responses = [ids(length) for length in RESPONSE_LENGTHS]
    for (row, position), token in (tokens or {}).items():
        responses[row][position] = token
    reprompts = [ids(length) for length in REPROMPT_LENGTHS]
    masks = [torch.ones(length, dtype=torch.int64) for length in RESPONSE_LENGTHS]
    for row, position in MASKED_TOKENS:
        masks[row][position] = 0
    return {
        "prompts": prompts,
        "responses": responses,
        "response_mask": masks,
        "teacher": [torch.cat(pair) for pair in zip(reprompts if shown else prompts, responses, strict=True)],
        # What is added to the fresh log-probs to make ratios other than 1, some of them truncated.
        "log_ratio_noise": [torch.randn(length, generator=generator) * 0.5 for length in RESPONSE_LENGTHS],
        "rollout_is_weights": [0.5 + 1.5 * torch.rand(length, generator=generator) for length in RESPONSE_LENGTHS],
    }


def compose(overrides: list[str], model: Path) -> Any:
    """The configuration a user would get from `--config-name srpo platform=cpu` and the overrides."""
    settings = [
        "platform=cpu",
        f"actor_rollout_ref.model.path={model}",
        "actor_rollout_ref.model.enable_gradient_checkpointing=false",
        f"actor_rollout_ref.actor.optim.lr={LEARNING_RATE}",
        "actor_rollout_ref.actor.optim.lr_warmup_steps=0",
        f"+actor_rollout_ref.actor.optim.override_optimizer_config.eps={ADAM_EPS}",
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=64",
        f"srpo.distillation.top_k={TOP_K}",
        "data.max_prompt_length=64",
        "srpo.demonstration.max_prompt_tokens=128",
    ]
    return compose_worker("srpo", [*settings, *overrides])


def _worker(config: Any) -> Any:
    """The shipped worker: an actor, and veRL's reference beside it where a KL wants one (LoRA: the base is in it)."""
    from srpo_verl.verl_ext.worker import SrpoWorker

    reference = config.actor_rollout_ref.actor.use_kl_loss and not config.actor_rollout_ref.model.lora_rank
    # veRL takes keys out of its part of the configuration.
    worker = SrpoWorker(config=deepcopy(config.actor_rollout_ref), role="actor_rollout_ref" if reference else "actor")
    if reference:
        worker.role = "actor_ref"  # no rollout engine here
    worker.init_model()
    return worker


def _run_case(case: Case, model: Path, out: Path, rank: int, world_size: int) -> dict[str, Any]:
    from tensordict import TensorDict
    from verl.utils import tensordict_utils as tu
    from verl.workers.utils.padding import response_from_nested

    from srpo_verl.config.schema import parse
    from srpo_verl.functional import Routing, group_advantages, route_samples
    from srpo_verl.verl_ext import fields
    from srpo_verl.verl_ext.nested import filler, jagged

    config = compose([*case.overrides, *([COMPILE] if case.passes == "compiled" else [])], model)
    worker = _worker(config)

    rewards, srpo = torch.tensor(case.rewards), parse(config.srpo)
    every = batch_tensors(case.tokens, srpo.demonstration.show)

    def routing_of(step: int) -> Routing:
        return route_samples(
            rewards,
            GROUPS,
            routing=srpo.routing,
            step=step,
            coefficient=srpo.schedule.coefficient(step),
            skip_certain_prompts=srpo.weighting.pass_rate,
            mix_lambda=srpo.mix_lambda,
            negative_advantage=srpo.negative_advantage,
        )

    rows_of_rank = case.rows_of_rank or [list(range(r, len(REWARDS), world_size)) for r in range(world_size)]
    rows = rows_of_rank[rank]

    def column(name: str) -> torch.Tensor:
        return jagged([every[name][row] for row in rows])

    # veRL takes rejected tokens out of one mask and not of the other.
    kept = jagged([every["response_mask"][row].clone() for row in rows])
    for row, position in case.rejected:
        if row in rows:
            kept[rows.index(row)][position] = 0

    def fresh_batch(routing: Routing, **flags: Any) -> TensorDict:
        # What SrpoTrainer does to the estimator's advantages.
        own = group_advantages(rewards, GROUPS)
        advantages = torch.where(routing.advantage_B.isnan(), own, routing.advantage_B)
        # The rows whose teacher is asked, as Router says: all that have one, or the distilled ones.
        credit = srpo.credit_share(step + 1) if srpo.gives_credit else 0.0
        asks_B = routing.teacher_B & routing.grpo_B & (credit > 0) if srpo.gives_credit else routing.sdpo_B
        given = ([every[name][row] for row in rows] for name in ("prompts", "responses", "response_mask"))
        columns = columns_of_rows(*given) | {
            "response_mask": kept,
            "rollout_is_weights": column("rollout_is_weights"),
            "advantages": jagged([advantages[row] * every["response_mask"][row] for row in rows]),
            fields.SDPO_ROW: routing.sdpo_B[rows],
            fields.SDPO_SHARE: routing.sdpo_share_B[rows],
            fields.GRPO_SHARE: routing.grpo_share_B[rows],
            fields.TEACHER_INPUT_IDS: jagged(
                [every["teacher"][row] if asks_B[row] else filler(torch.int64) for row in rows]
            ),
        }
        if case.sampled:
            numbers = [case.sampled.index(row) if row in case.sampled else -1 for row in rows]
            columns[fields.TOKEN_SAMPLE] = torch.tensor(numbers)
        if srpo.gives_credit:
            columns[fields.CREDIT_SHARE] = credit * asks_B[rows].float()
        if srpo.weighting.pass_rate:
            columns[fields.PASS_RATE] = routing.pass_rate_B[rows].float()
            columns[fields.GROUP] = torch.tensor([sorted(set(GROUPS)).index(GROUPS[row]) for row in rows])
        return tu.get_tensordict(columns, non_tensor_dict={"temperature": TEMPERATURE, **flags})

    metrics: list[dict[str, float]] = []
    saved: dict[str, dict[str, torch.Tensor]] = {}
    scores: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    sample: dict[int, dict[str, list[float]]] = {}
    for step in range(STEPS):
        if case.resume and step == 1:
            worker.save_checkpoint(str(out / case.name / "actor"), None, step)
            saved = _weights(worker)
            worker = _worker(config)
            worker.load_checkpoint(str(out / case.name / "actor"))
        routing = routing_of(step + 1)
        distill = bool(routing.sdpo_B.any()) or srpo.gives_credit
        has_support = distill and srpo.distils and config.srpo.distillation.top_k is not None
        flags = {fields.WANT_SUPPORT: has_support}
        log_prob_batch = fresh_batch(routing, calculate_entropy=True, compute_loss=False, **flags)
        # Under sequence parallelism the ranks hold the same rows, and one of them answers.
        answer = [worker.compute_log_prob(log_prob_batch)]
        if worker.actor.engine.use_ulysses_sp:
            torch.distributed.broadcast_object_list(
                answer, group=worker.actor.engine.ulysses_parallel_group, group_src=0
            )
        output = answer[0]
        batch = fresh_batch(
            routing,
            **update_flags(case.mini_batch_size),
            **{fields.DISTILL: distill},
        )
        fresh = response_from_nested(output["log_probs"], batch["response_mask"]).unbind()
        batch["old_log_probs"] = jagged(
            [lp + every["log_ratio_noise"][row] for lp, row in zip(fresh, rows, strict=True)]
        )
        if config.actor_rollout_ref.actor.use_kl_loss:
            lora = bool(config.actor_rollout_ref.model.lora_rank)
            compute = worker.compute_log_prob if lora else worker.compute_ref_log_prob
            flags = {"no_lora_adapter": True} if lora else {}
            reference = compute(fresh_batch(routing, calculate_entropy=False, compute_loss=False, **flags))
            batch["ref_log_prob"] = response_from_nested(reference["log_probs"], batch["response_mask"])
        if has_support:
            batch[fields.SUPPORT] = output[fields.SUPPORT]
        if case.spoilt and step == STEPS - 1:
            saved = _weights(worker)
        with _spoilt_teacher() if case.spoilt and step == STEPS - 1 and rank == 0 else nullcontext():
            updated = worker.update_actor(batch)
        if step == 0 and fields.TEACHER_LOG_PROBS in batch:
            columns = batch[fields.TEACHER_LOG_PROBS].unbind(), batch[fields.TEACHER_ENTROPY].unbind()
            scores = dict(zip(rows, zip(*columns, strict=True), strict=True))
        sample = sample or worker.take_token_sample()
        result = tu.get(updated, "metrics") if updated is not None else {}
        metrics.append(
            {
                key: float(torch.tensor(value, dtype=torch.float64).mean())
                for key, value in result.items()
                if key.startswith("srpo/") or key in VERL_METRICS
            }
        )

    result = {"metrics": metrics, **_weights(worker), "saved": saved, "scores": scores, "sample": sample}
    if config.actor_rollout_ref.model.lora_rank:
        result["sent"] = _sent(worker.actor.engine)
        if worker.teacher_weights:
            result["shards"] = _around_a_failing_teacher_pass(worker, batch)
    return result


@contextmanager
def _spoilt_teacher() -> Iterator[None]:
    """The last of the scored tokens has a NaN among its logits."""
    from srpo_verl.verl_ext import engine

    original = engine.score_teacher

    def spoilt(logits: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        logits, positions = logits.clone(), kwargs.get("positions_N")
        logits[-1 if positions is None else int(positions[-1]), 3] = torch.nan
        return original(logits, *args, **kwargs)

    engine.score_teacher = spoilt
    try:
        yield
    finally:
        engine.score_teacher = original


def _weights(worker: Any) -> dict[str, dict[str, torch.Tensor]]:
    """The student's weights and the teacher's, empty where there is none; of LoRA runs the adapters."""
    teacher = {}
    if worker.teacher_weights:
        with worker.teacher_weights.scoring() as engine:
            teacher = _full(engine)
    return {"student": _full(worker.actor.engine), "teacher": teacher}


def _around_a_failing_teacher_pass(worker: Any, batch: Any) -> tuple[dict[str, torch.Tensor], ...]:
    """This rank's part of the student before a teacher pass, at its start, and after it failed in the middle."""
    from torch.distributed.tensor import DTensor

    module = worker.actor.engine.module

    def mine() -> dict[str, torch.Tensor]:
        named = {name: p.to_local() if isinstance(p, DTensor) else p.data for name, p in module.named_parameters()}
        return {name: shard.detach().cpu().clone() for name, shard in named.items()}

    during: dict[str, torch.Tensor] = {}

    def fail(*args: Any) -> None:
        raise ZeroDivisionError("in the last layer")

    original = worker.actor.engine.eval_mode

    def eval_mode(**kwargs: Any) -> Any:
        during.update(mine())
        return original(**kwargs)

    before = mine()
    layers = [unit for unit in module.modules() if type(unit).__name__.endswith("Qwen3DecoderLayer")]
    handle = layers[-1].register_forward_pre_hook(fail)
    worker.actor.engine.eval_mode = eval_mode
    try:
        worker._score(batch)
    except ZeroDivisionError:
        handle.remove()
        return before, during, mine()
    raise AssertionError("the teacher pass did not reach the last layer of the student's engine")


def _sent(engine: Any) -> dict[str, torch.Tensor]:
    """What veRL's worker sends to a rollout engine that has the base model already."""
    weights, _ = engine.get_per_tensor_param(base_sync_done=True)
    return {name: value.detach().float().clone() for name, value in weights}


def _full(engine: Any) -> dict[str, torch.Tensor]:
    """All weights of an engine, or its adapters under peft's names where it has some."""
    from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
    from torch.distributed.tensor import DTensor

    if not engine.model_config.lora_rank:
        return _sent(engine)
    adapters = {}
    with FSDP.summon_full_params(engine.module, writeback=False):
        for name, value in engine.module.named_parameters():
            if "lora_" in name:
                name = name.replace("_fsdp_wrapped_module.", "").replace(".default", "")
                value = value.full_tensor() if isinstance(value, DTensor) else value
                adapters[name] = value.detach().float().clone()
    return adapters


def _run_cases(rank: int, world_size: int, cases: list[Case], model: Path, out: Path) -> None:
    for case in cases:
        torch.manual_seed(0)
        passes = PASSES[case.passes]
        with (
            mock.patch.object(device, "CPU", device.CPU if case.passes == "compiled" else passes),
            mock.patch.object(type(passes), "sweep", autospec=True, side_effect=type(passes).sweep) as sweep,
        ):
            result = _run_case(case, model, out, rank, world_size)
        assert sweep.called, f"{case.name} was not computed by the passes named {case.passes}"
        if rank == 0:
            torch.save(result, out / f"{case.name}.pt")


def fixed(size: int) -> list[str]:
    """Overrides for micro-batches of so many rows."""
    return [
        "actor_rollout_ref.actor.use_dynamic_bsz=false",
        f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={size}",
        f"actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu={size}",
    ]


def run_cases(
    cases: list[Case], world_size: int, model: Path, out: Path, timeout: float = 400, passes: str = "cpu"
) -> dict[str, dict]:
    """Run every case on `world_size` ranks; return their results by name. A rank that hangs fails the test.

    `passes` are those of the cases that ask for none.
    """
    cases = [replace(case, passes=case.passes if case.passes != "cpu" else passes) for case in cases]
    run_ranks(_run_cases, (world_size, cases, model, out), world_size=world_size, timeout=timeout)
    return {case.name: torch.load(out / f"{case.name}.pt") for case in cases}
