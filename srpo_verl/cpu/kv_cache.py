"""The key-value cache of a batch that is decoded: a new token is written behind the others, and nothing else moves.

transformers' layer copies all of its keys and values for every token, and again whenever a row leaves the batch; for a
small model that takes as long as its arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):
    """A layer of full attention with room for more tokens; `keys` and `values` are views of what is filled."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, prefilled: tuple[torch.Tensor, torch.Tensor], rows: torch.Tensor) -> None:
        """
        Args:
            prefilled: keys and values of the prompts.
            rows: the prompt of every row of the batch.
        """
        super().__init__()
        keys, _ = prefilled
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self._rooms = [_room(tensor, len(rows)) for tensor in prefilled]
        filled = keys.shape[-2]
        for room, tensor in zip(self._rooms, prefilled, strict=True):
            room[:, :, :filled] = tensor[rows]
        self._show(len(rows), filled)

    def _show(self, rows: int, filled: int) -> None:
        self.keys, self.values = (room[:rows, :, :filled] for room in self._rooms)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new tokens; where there is no room left, there is twice as much from now on."""
        rows, filled = len(self.keys), self.keys.shape[-2]
        end = filled + key_states.shape[-2]
        if end > self._rooms[0].shape[-2]:
            old = self.keys, self.values
            self._rooms = [_room(tensor, rows) for tensor in old]
            for room, tensor in zip(self._rooms, old, strict=True):
                room[:, :, :filled] = tensor
        for room, states in zip(self._rooms, (key_states, value_states), strict=True):
            room[:rows, :, filled:end] = states
        self._show(rows, end)
        return self.keys, self.values

    def move(self, sources: Sequence[int], targets: Sequence[int], rows: int) -> None:
        """Copy some rows to the places of others, and go on with the first `rows`."""
        filled = self.keys.shape[-2]
        if sources:
            for room in self._rooms:
                room[targets, :, :filled] = room[sources, :, :filled]
        self._show(rows, filled)


def _room(filled: torch.Tensor, rows: int) -> torch.Tensor:
    """Empty memory of so many rows, for twice the tokens."""
    _, heads, tokens, size = filled.shape
    return filled.new_empty(rows, heads, 2 * tokens, size)


def spread(cache: DynamicCache, rows: torch.Tensor) -> None:
    """Give every row of the batch what its prompt left in the cache."""
    layers: list[Any] = cache.layers
    for index, layer in enumerate(layers):
        is_full = type(layer) is DynamicLayer  # and none of its subclasses
        if is_full:
            layers[index] = RoomyLayer((layer.keys, layer.values), rows)
        else:
            layer.batch_select_indices(rows)


def close_gaps(cache: DynamicCache, going: Sequence[int]) -> list[int]:
    """Keep the rows `going`, ascending; the last of them take the places of those that left.

    Returns:
        Which of the old rows is at each place now.
    """
    stays = set(going)
    order = list(range(len(going)))
    gaps = [place for place in order if place not in stays]
    movers = [row for row in going if row >= len(going)]
    for gap, mover in zip(gaps, movers, strict=True):
        order[gap] = mover
    layers: list[Any] = cache.layers
    for layer in layers:
        if isinstance(layer, RoomyLayer):
            layer.move(movers, gaps, len(going))
        else:
            layer.batch_select_indices(torch.tensor(order))
    return order
