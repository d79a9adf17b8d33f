"""Scoring the distilled rows of one training step with the self-teacher, before any update (docs/architecture.md)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id

from srpo_verl.verl_ext.engine import SrpoEngine
from srpo_verl.verl_ext.fields import (
    SCORE,
    SDPO_ROW,
    SUPPORT,
    TEACHER_ENTROPY,
    TEACHER_INPUT_IDS,
    TEACHER_LOG_PROBS,
)
from srpo_verl.verl_ext.nested import filler, jagged
from srpo_verl.verl_ext.teacher.balance import Scores, Sequence, share


def score_rows(
    engine: SrpoEngine,
    data: TensorDict,
    *,
    max_tokens: int | None,
    micro_batch_size: int | None,
    temperature: float,
    use_remove_padding: bool,
    after_forward: Callable[[], None],
    row_field: str = SDPO_ROW,
) -> int:
    """Add TEACHER_LOG_PROBS and TEACHER_ENTROPY to `data`; return the number of teacher tokens computed here.

    Forward only, the rows of `row_field` only, shared out evenly over the ranks whoever holds the rows. Every rank has
    to call it: a sharded forward is a collective, so ranks with less to do run forwards on two tokens whose result is
    dropped.

    Args:
        engine: of the teacher, or of the student when the teacher is the student.
        data: this rank's rows of the training step, on the CPU.
        max_tokens: token budget of a micro-batch (a longer row is one by itself); None: go by rows.
        micro_batch_size: rows per micro-batch, where max_tokens is None.
        temperature: divides the teacher's logits, as it does the student's.
        use_remove_padding: whether the engine's model takes packed inputs.
        row_field: name of the bool field of the rows that are scored; the distilled ones by default.
        after_forward: run after every forward (re-sharding; see `reshard`).
    """
    group = engine.get_data_parallel_group()
    held = _sequences(data, row_field)
    work = share(held, group)
    # Sequences of similar length share a micro-batch, so that little padding is computed where inputs are not packed.
    order = sorted(range(len(work.sequences)), key=lambda index: len(work.sequences[index].input_ids))
    lengths = [len(work.sequences[index].input_ids) for index in order]
    groups = _pack(lengths, max_tokens, micro_batch_size)
    count = torch.tensor([len(groups)], device=get_device_id())
    dist.all_reduce(count, op=dist.ReduceOp.MAX, group=group)

    scores: list[Scores | None] = [None] * len(work.sequences)
    with engine.eval_mode(), torch.no_grad():
        for index in range(int(count)):
            members = [order[i] for i in groups[index]] if index < len(groups) else []
            batch = _teacher_batch([work.sequences[i] for i in members], temperature, use_remove_padding)
            _, result = engine.forward_step(batch, loss_function=None, forward_only=True)
            if members:
                fields = result["model_output"][TEACHER_LOG_PROBS], result["model_output"][TEACHER_ENTROPY]
                for i, log_probs, entropy in zip(members, *(field.unbind() for field in fields), strict=True):
                    scores[i] = Scores(log_probs.cpu(), entropy.cpu())
            after_forward()

    log_probs = [filler(torch.float32) for _ in range(len(data))]
    entropies = [torch.zeros(int(n)) for n in data["responses"].offsets().diff()]
    for sequence, score in zip(held, work.send_back([score for score in scores if score is not None]), strict=True):
        log_probs[sequence.row], entropies[sequence.row] = score.log_probs, score.entropy
    data[TEACHER_LOG_PROBS] = jagged(log_probs)
    data[TEACHER_ENTROPY] = jagged(entropies)
    return sum(lengths)


def _sequences(data: TensorDict, row_field: str) -> list[Sequence]:
    """The rows of the batch that are scored."""
    input_ids, responses = data[TEACHER_INPUT_IDS].unbind(), data["responses"].offsets().diff().tolist()
    support = data[SUPPORT].unbind() if SUPPORT in data else None
    return [
        Sequence(row, input_ids[row], responses[row], None if support is None else support[row])
        for row in data[row_field].nonzero().flatten().tolist()
    ]


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


def _teacher_batch(sequences: list[Sequence], temperature: float, use_remove_padding: bool) -> TensorDict:
    """A forward-only micro-batch of teacher sequences; two tokens of padding where this rank has nothing to score."""
    if sequences:
        input_ids = [sequence.input_ids for sequence in sequences]
        responses = [sequence.input_ids[-sequence.response :] for sequence in sequences]
    else:
        input_ids, responses = [torch.zeros(2, dtype=torch.int64)], [filler(torch.int64)]
    support = [sequence.support for sequence in sequences if sequence.support is not None]
    return tu.get_tensordict(
        {
            "input_ids": jagged(input_ids),
            "position_ids": jagged([torch.arange(len(ids)) for ids in input_ids]),
            "responses": jagged(responses),
            **({SUPPORT: jagged(support)} if support else {}),
        },
        non_tensor_dict={
            SCORE: bool(sequences),
            "temperature": temperature,
            "use_remove_padding": use_remove_padding,
            "use_fused_kernels": False,
            "calculate_entropy": False,
        },
    )
