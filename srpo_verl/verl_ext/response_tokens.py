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

from srpo_verl.verl_ext.fields import SDPO_ROW
from srpo_verl.verl_ext.nested import host_lengths, like, response_logit_index


class ResponseTokens:
    """The N response tokens of a micro-batch, row after row, of which M are this rank's to compute.

    M = N, except under Ulysses sequence parallelism: there a rank's logits are a slice of the packed sequence. All
    ranks of such a group hold the same micro-batch and have to make the same calls. Lengths and places are on the
    host, which looks at the device once per micro-batch.
    """

    positions: torch.Tensor | None
    """Rows of the flattened logits that predict the M tokens, on the host; None: all rows, in order."""
    columns: torch.Tensor | None
    """Columns of the input whose logits are computed, on the device; None: all."""

    def __init__(self, batch: TensorDict, model_length: int, *, selects: bool):
        """
        Args:
            batch: with jagged `input_ids` (prompt + response) and `responses`; SDPO_ROW, where rows are distilled.
            model_length: positions per row of the model's input: of this rank's slice of the packed sequence (the
                padding of the last slice included), or of each padded row.
            selects: whether the model computes the logits of some columns alone.
        """
        self.inputs, self.responses, self.device = batch["input_ids"], batch["responses"], batch["input_ids"].device
        self.num_columns = model_length
        self.packed = tu.get_non_tensor_data(data=batch, key="use_remove_padding", default=True)
        sizes = [self.inputs.offsets().diff(), self.responses.offsets().diff()]
        flags = [batch[SDPO_ROW]] if SDPO_ROW in batch else []
        self.input_lengths, self.lengths, *distilled = host_lengths(*sizes, *flags)
        every_row = list(range(len(self.lengths)))
        self.distilled_rows = [row for row in every_row if distilled and distilled[0][row]]
        self.packed_index_N = response_logit_index(self.input_lengths, self.lengths, every_row, None)
        self.parallel = self.packed and get_ulysses_sequence_parallel_group() is not None
        if self.parallel:
            first = get_ulysses_sequence_parallel_rank() * model_length
            self.mine_N = (self.packed_index_N >= first) & (self.packed_index_N < first + model_length)
            self.slots_M = self.packed_index_N[self.mine_N] - first
            self.positions = self.slots_M
        elif self.packed:
            self.positions = self.packed_index_N
        else:
            self.positions = response_logit_index(self.input_lengths, self.lengths, every_row, model_length)
        self.columns = self._select() if selects else None

    @property
    def is_distilled_N(self) -> torch.Tensor:
        """Whether a token's row is distilled: bool, on the host."""
        distilled = set(self.distilled_rows)
        flags = torch.tensor([row in distilled for row in range(len(self.lengths))])
        return flags.repeat_interleave(torch.tensor(self.lengths))

    def _select(self) -> torch.Tensor:
        """The columns that are needed; `positions` then are rows of their logits."""
        assert self.positions is not None
        if len(self.positions) == 0:  # no token of this rank's slice is wanted, but the projection must not be empty
            return torch.zeros(1, dtype=torch.int64, device=self.device)
        if self.packed:
            columns_M, self.positions = self.positions, None
            return self._put(columns_M)
        columns_M = self.positions % self.num_columns
        first, last = (int(end) for end in torch.aminmax(columns_M))
        kept = last - first + 1
        self.positions = self.positions // self.num_columns * kept + columns_M - first
        return torch.arange(first, last + 1, device=self.device)

    def _put(self, host: torch.Tensor) -> torch.Tensor:
        return host.to(self.device, non_blocking=True)

    def local(self, values_N: torch.Tensor) -> torch.Tensor:
        """What belongs to this rank's tokens: (N, ...) -> (M, ...), on the device or on the host."""
        return values_N[self.mine_N.to(values_N.device)] if self.parallel else values_N

    def local_of_distilled(self, values_S: torch.Tensor) -> torch.Tensor:
        """What belongs to this rank's tokens, of values of the distilled ones."""
        return values_S[self.mine_N[self.is_distilled_N].to(values_S.device)] if self.parallel else values_S

    def positions_of(self, wanted_N: torch.Tensor) -> torch.Tensor:
        """`positions` of some of the tokens, given as a mask on the host."""
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
        slots = values_M.new_zeros(self.num_columns, *values_M.shape[1:])
        slots = slots.index_put((self._put(slots_M),), values_M)
        return gather_outputs_and_unpad(slots, gather_dim=0)[self._put(index_N)]

    def sequences(self, values_M: torch.Tensor) -> torch.Tensor:
        """Values per token in veRL's layout: jagged over whole sequences, at the place that predicts the token."""
        values_N = self.gather(values_M)
        slots = values_N.new_zeros(sum(self.input_lengths)).index_put((self._put(self.packed_index_N),), values_N)
        return like(slots, self.inputs, self.input_lengths)

    def padded(self, values_M: torch.Tensor) -> torch.Tensor:
        """Values per token as a dense (B, T), 0 behind the end of a row."""
        values_N, longest = self.gather(values_M), max(self.lengths)
        places = [torch.arange(length) + row * longest for row, length in enumerate(self.lengths)]
        dense = values_N.new_zeros(len(self.lengths) * longest).index_put((self._put(torch.cat(places)),), values_N)
        return dense.view(len(self.lengths), longest)
