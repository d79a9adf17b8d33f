"""Worker side of the token sample: what the loss of the marked rows was computed from, token by token."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tensordict import TensorDict

from srpo_verl.verl_ext.fields import DIVERGENCE, SDPO_ROW, TEACHER_ENTROPY, TOKEN_SAMPLE, WEIGHTS

Recorded = dict[str, list[float]]
"""A row's values by name, each as long as the response."""


class TokenRecorder:
    """Collects the rows that carry a number in TOKEN_SAMPLE. It reads what the loss has and changes nothing.

    Of a row that is seen in several epochs the first counts: there the policy is the one that wrote the response.
    """

    def __init__(self) -> None:
        self._rows: dict[int, Recorded] = {}

    @torch.no_grad()
    def add(
        self,
        data: TensorDict,
        dense: Mapping[str, torch.Tensor],
        log_probs_BT: torch.Tensor,
        model_output: Mapping[str, torch.Tensor],
    ) -> None:
        """Take the marked rows of one micro-batch; nothing where it carries no marks.

        Args:
            data: the micro-batch.
            dense: its padded fields of shape (B, T).
            log_probs_BT: the policy's.
            model_output: what the engine returned.
        """
        if TOKEN_SAMPLE not in data:
            return
        numbers, distilled = data[TOKEN_SAMPLE].tolist(), data[SDPO_ROW].tolist()
        lengths = data["responses"].offsets().diff().tolist()
        entropies = data[TEACHER_ENTROPY].unbind() if TEACHER_ENTROPY in data else None
        for row, number in enumerate(numbers):
            if number < 0 or number in self._rows:
                continue
            values = {
                "counts": dense["response_mask"][row],
                "advantage": dense["advantages"][row],
                "log_prob": log_probs_BT[row],
            }
            if distilled[row] and entropies is not None and DIVERGENCE in model_output:
                values["teacher_entropy"] = entropies[row]
                values["weight"] = dense[WEIGHTS][row]
                values["divergence"] = model_output[DIVERGENCE][row]
            self._rows[number] = {name: value[: lengths[row]].float().tolist() for name, value in values.items()}

    def take(self) -> dict[int, Recorded]:
        """The rows so far, by their numbers; they are forgotten here."""
        rows, self._rows = self._rows, {}
        return rows
