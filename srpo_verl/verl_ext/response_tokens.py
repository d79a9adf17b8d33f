"""Where the logits that predict a micro-batch's response tokens are, and where values per token go."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.utils.ulysses import (
    gather_outputs_and_unpad,
    get_ulysses_sequence_parallel_group,
    get_ulysses_sequence_parallel_rank,
)

from srpo_verl.verl_ext.nested import like, response_logit_index


class ResponseTokens:
    """The N response tokens of a micro-batch, row after row, of which M are this rank's to compute.

    M = N, except under Ulysses sequence parallelism: there a rank's logits are a slice of the packed sequence. All
    ranks of such a group hold the same micro-batch and have to make the same calls.
    """

    positions: torch.Tensor | None
    """Rows of the flattened logits that predict the M tokens; None: all rows, in order."""

    def __init__(self, batch: TensorDict, model_length: int):
        """
        Args:
            batch: with jagged `input_ids` (prompt + response) and `responses`.
            model_length: positions per row of the model's input: of this rank's slice of the packed sequence (the
                padding of the last slice included), or of each padded row.
        """
        self.inputs, self.responses = batch["input_ids"], batch["responses"]
        self.num_columns = model_length
        self.packed = tu.get_non_tensor_data(data=batch, key="use_remove_padding", default=True)
        every_row = torch.arange(len(self.responses), device=self.inputs.device)
        self.packed_index_N = response_logit_index(batch, every_row, None)
        self.parallel = self.packed and get_ulysses_sequence_parallel_group() is not None
        if self.parallel:
            first = get_ulysses_sequence_parallel_rank() * model_length
            self.mine_N = (self.packed_index_N >= first) & (self.packed_index_N < first + model_length)
            self.slots_M = self.packed_index_N[self.mine_N] - first
            self.positions = self.slots_M
        elif self.packed:
            self.positions = self.packed_index_N
        else:
            self.positions = response_logit_index(batch, every_row, model_length)

    def select_logits(self) -> torch.Tensor:
        """Columns of the input whose logits are needed; from now on the logits are those of these columns only."""
        assert self.positions is not None, "the logits are selected already"
        if len(self.positions) == 0:  # no token of this rank's slice is wanted, but the projection must not be empty
            return self.positions.new_zeros(1)
        if self.packed:
            columns_M, self.positions = self.positions, None
            return columns_M
        columns_M = self.positions % self.num_columns
        first, last = (int(end) for end in torch.aminmax(columns_M))
        kept = last - first + 1
        self.positions = self.positions // self.num_columns * kept + columns_M - first
        return torch.arange(first, last + 1, device=columns_M.device)

    def local(self, values_N: torch.Tensor) -> torch.Tensor:
        """What belongs to this rank's tokens: (N, ...) -> (M, ...)."""
        return values_N[self.mine_N] if self.parallel else values_N

    def of_rows(self, rows: torch.Tensor) -> torch.Tensor | slice:
        """Of the tokens of the given rows, row after row, those that are this rank's."""
        if not self.parallel:
            return slice(None)
        return torch.cat([self.mine_N.split(self.responses.offsets().diff().tolist())[row] for row in rows.tolist()])

    def positions_of(self, wanted_N: torch.Tensor) -> torch.Tensor:
        """`positions` of some of the tokens, given as a mask."""
        wanted_M = self.local(wanted_N)
        return wanted_M.nonzero().flatten() if self.positions is None else self.positions[wanted_M]

    def gather(self, values_M: torch.Tensor, wanted_N: torch.Tensor | None = None) -> torch.Tensor:
        """The values of all N tokens (or of the wanted ones), (M, ...) -> (N, ...), differentiable.

        The gradient that reaches values_M is that of this rank's loss times the size of the group, as for veRL's own
        log-probs: FSDP averages it over all ranks, and the loss is scaled for the data-parallel ones only.
        """
        if not self.parallel:
            return values_M
        slots_M, index_N = self.slots_M, self.packed_index_N
        if wanted_N is not None:
            slots_M, index_N = slots_M[self.local(wanted_N)], index_N[wanted_N]
        slots = values_M.new_zeros(self.num_columns, *values_M.shape[1:]).index_put((slots_M,), values_M)
        return gather_outputs_and_unpad(slots, gather_dim=0)[index_N]

    def sequences(self, values_M: torch.Tensor) -> torch.Tensor:
        """Values per token in veRL's layout: jagged over whole sequences, at the place that predicts the token."""
        values_N = self.gather(values_M)
        slots = values_N.new_zeros(len(self.inputs.values())).index_put((self.packed_index_N,), values_N)
        return like(slots, self.inputs)

    def padded(self, values_M: torch.Tensor) -> torch.Tensor:
        """Values per token as a dense (B, T), 0 behind the end of a row."""
        values_N, lengths = self.gather(values_M), self.responses.offsets().diff()
        row_N = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
        column_N = torch.arange(len(row_N), device=lengths.device) - self.responses.offsets()[:-1][row_N]
        dense_BT = values_N.new_zeros(len(lengths), int(lengths.max()))
        return dense_BT.index_put((row_N, column_N), values_N)
