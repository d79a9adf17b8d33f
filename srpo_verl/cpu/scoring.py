"""Scoring the sessions of a batch with one call to a reward worker."""

import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch.nn.utils.rnn import pad_sequence
from verl import DataProto
from verl.experimental.agent_loop import AgentLoopOutput


class RewardRequests:
    """What `RewardLoopWorker.compute_score_batch` is given: indexed like a batch, one session per row.

    Row i is the batch veRL would have sent to the reward worker for session i alone. It is made where it is read,
    because tensors of a few tokens are costly to send one by one.
    """

    def __init__(self, sessions: Sequence[tuple[Sequence[AgentLoopOutput], dict[str, Any]]]) -> None:
        """Text only.

        Args:
            sessions: of each, its outputs and what is known of its prompt (the dataset's fields, uid, session_id).
        """
        # One by one: a reward function may change what it is given, and sessions of one prompt share objects.
        self._pickled = [
            pickle.dumps(
                (
                    [
                        (output.prompt_ids, output.response_ids, output.num_turns, output.extra_fields)
                        for output in outputs
                    ],
                    known,
                )
            )
            for outputs, known in sessions
        ]

    def __len__(self) -> int:
        """Number of sessions."""
        return len(self._pickled)

    def __getitem__(self, rows: slice) -> DataProto:
        """The data of one session, a row per output."""
        (pickled,) = self._pickled[rows]
        outputs, known = pickle.loads(pickled)
        return session_data(outputs, known)


def session_data(
    outputs: Sequence[tuple[list[int], list[int], int, dict[str, Any]]], known: dict[str, Any]
) -> DataProto:
    """One session as reward managers read it.

    Args:
        outputs: of each, prompt ids, response ids, number of turns and extra fields.
        known: fields of the prompt.
    """
    prompts = [torch.tensor(prompt, dtype=torch.int64) for prompt, *_ in outputs]
    responses = [torch.tensor(response, dtype=torch.int64) for _, response, *_ in outputs]
    input_ids = [torch.cat(pair) for pair in zip(prompts, responses, strict=True)]
    columns = {
        "prompts": prompts,
        "responses": responses,
        "attention_mask": [torch.ones_like(ids) for ids in input_ids],
        "input_ids": input_ids,
        "position_ids": [torch.arange(len(ids)) for ids in input_ids],
    }
    batch = TensorDict(
        {name: pad_sequence(rows, batch_first=True) for name, rows in columns.items()}, batch_size=len(outputs)
    )
    return DataProto(
        batch=batch,
        non_tensor_batch={
            **{name: np.array([value] * len(outputs)) for name, value in known.items()},
            "__num_turns__": np.array([num_turns for *_, num_turns, _ in outputs]),
            "tool_extra_fields": np.array([extra_fields for *_, extra_fields in outputs], dtype=object),
            "prompt_len": np.array([len(prompt) for prompt, *_ in outputs]),
            "response_len": np.array([len(response) for _, response, *_ in outputs]),
        },
    )
