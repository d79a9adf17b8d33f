"""Scoring the distilled rows of one training step with the self-teacher, before any update (docs/architecture.md)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id

from srpo_verl.verl_ext.engine import SrpoEngine
from srpo_verl.verl_ext.nested import filler, jagged
from srpo_verl.verl_ext.schema import (
    SCORE,
    SDPO_ROW,
    SUPPORT,
    TEACHER_ENTROPY,
    TEACHER_INPUT_IDS,
    TEACHER_LOG_PROBS,
)


def score_rows(
    engine: SrpoEngine,
    data: TensorDict,
    *,
    max_tokens: int | None,
    micro_batch_size: int | None,
    temperature: float,
    use_remove_padding: bool,
    after_forward: Callable[[], None],
) -> int:
    """Add TEACHER_LOG_PROBS and TEACHER_ENTROPY to `data`; return the number of teacher tokens computed here.

    Forward only, the distilled rows only. Every rank has to call it: a sharded forward is a collective, so ranks
    with less to do run forwards on two tokens whose result is dropped.

    Args:
        engine: of the teacher, or of the student when the teacher is the student.
        data: this rank's rows of the training step, on the CPU.
        max_tokens: token budget of a micro-batch (a longer row is one by itself); None: go by rows.
        micro_batch_size: rows per micro-batch, where max_tokens is None.
        temperature: divides the teacher's logits, as it does the student's.
        use_remove_padding: whether the engine's model takes packed inputs.
        after_forward: run after every forward (re-sharding; see teacher_weights.reshard).
    """
    lengths = data[TEACHER_INPUT_IDS].offsets().diff()
    rows = data[SDPO_ROW].nonzero().flatten().tolist()
    # Rows of similar length share a micro-batch, so that little padding is computed where inputs are not packed.
    rows.sort(key=lambda row: int(lengths[row]))
    groups = _pack([int(lengths[row]) for row in rows], max_tokens, micro_batch_size)
    count = torch.tensor([len(groups)], device=get_device_id())
    dist.all_reduce(count, op=dist.ReduceOp.MAX, group=engine.get_data_parallel_group())

    log_probs = [filler(torch.float32) for _ in range(len(data))]
    entropy = [torch.zeros(int(n)) for n in data["responses"].offsets().diff()]
    with engine.eval_mode(), torch.no_grad():
        for index in range(int(count)):
            members = [rows[i] for i in groups[index]] if index < len(groups) else []
            batch = _teacher_batch(data, members, temperature, use_remove_padding)
            _, result = engine.forward_step(batch, loss_function=None, forward_only=True)
            scores = result["model_output"]
            for position, row in enumerate(members):
                log_probs[row] = scores[TEACHER_LOG_PROBS].unbind()[position].cpu()
                entropy[row] = scores[TEACHER_ENTROPY].unbind()[position].cpu()
            after_forward()
    data[TEACHER_LOG_PROBS] = jagged(log_probs)
    data[TEACHER_ENTROPY] = jagged(entropy)
    return sum(int(lengths[row]) for row in rows)


def _pack(lengths: list[int], max_tokens: int | None, micro_batch_size: int | None) -> list[list[int]]:
    """Consecutive items into groups within the token budget, or of a fixed number of items."""
    groups: list[list[int]] = []
    tokens = 0
    for index, length in enumerate(lengths):
        if max_tokens is not None:
            full = tokens + length > max_tokens
        else:
            full = bool(groups) and len(groups[-1]) >= (micro_batch_size or 1)
        if not groups or full:
            groups.append([])
            tokens = 0
        groups[-1].append(index)
        tokens += length
    return groups


def _teacher_batch(data: TensorDict, rows: list[int], temperature: float, use_remove_padding: bool) -> TensorDict:
    """A forward-only micro-batch of teacher sequences; two tokens of padding where this rank has nothing to score."""
    if rows:
        every = {key: data[key].unbind() for key in (TEACHER_INPUT_IDS, "responses", SUPPORT) if key in data}
        picked = {key: [values[row] for row in rows] for key, values in every.items()}
    else:
        picked = {TEACHER_INPUT_IDS: [torch.zeros(2, dtype=torch.int64)], "responses": [filler(torch.int64)]}
    input_ids = picked.pop(TEACHER_INPUT_IDS)
    return tu.get_tensordict(
        {
            "input_ids": jagged(input_ids),
            "position_ids": jagged([torch.arange(len(ids)) for ids in input_ids]),
            **{key: jagged(values) for key, values in picked.items()},
        },
        non_tensor_dict={
            SCORE: bool(rows),
            "temperature": temperature,
            "use_remove_padding": use_remove_padding,
            "use_fused_kernels": False,
            "calculate_entropy": False,
        },
    )
