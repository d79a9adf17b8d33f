"""Counts what a GPU would do for a piece of PyTorch code, without one: the code runs on meta tensors.

What is assumed:

* A launch is one call of a torch operation that reads or writes elements; views and empty tensors are free. What
  torch computes with several kernels counts as these: `logsumexp` (amax, difference, exponential, sum, log), `nonzero`
  (3), `topk` (2: select and sort), `sort` (2), a functional `scatter` (a copy and a write).
* A kernel reads every input once and writes every output once; broadcast inputs count as large as they are. Of
  `gather`, `index`, `scatter` and their like, only the entries concerned and the indices count. torch's softmax passes
  over a row three times where it does not fit into shared memory: the further two are counted apart, as `reread`.
* Memory is that of all storages alive at once, without the allocator's rounding and without workspaces of kernels.
* A host synchronisation is every number that the host reads (`item`, `int`, `bool`), every copy to the CPU, and the
  count inside `nonzero`.

Meta tensors hold no numbers. Small tensors therefore have a shadow on the CPU that every operation is repeated on, as
long as all its inputs have one: masks, lengths and indices are known. A number that is not known, since it comes from
the logits, reads as 0 or False; the code under the meter asks the host nothing but "is anything wrong?" of those.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nested._internal.nested_tensor import NestedTensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

SHADOW_ELEMENTS = 2**22
"""Larger tensors have no shadow."""
SHARED_MEMORY_BYTES = 48 * 1024
"""Rows up to this size are read once by torch's softmax."""

FREE = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "detach", "lift_fresh", "alias"}
SEVERAL = {"nonzero": 3, "topk": 2, "sort": 2}
PICKS = {"gather", "index_select", "index", "embedding", "take_along_dim"}
"""Read as much as they return, and indices."""
PUTS = {"scatter", "scatter_add", "index_put", "_index_put_impl", "index_copy", "index_fill"}
"""Write as much as they are given, at indices."""
MAKERS = {"new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like"}
OVERWRITES = {"copy_", "fill_", "zero_"}


def size_of(*tensors: torch.Tensor) -> int:
    """Bytes of the elements that are there; of a broadcast tensor, before it."""

    def elements(tensor: torch.Tensor) -> int:
        axes = zip(tensor.shape, tensor.stride(), strict=True)
        return math.prod(size if stride else min(size, 1) for size, stride in axes)

    return sum(elements(tensor) * tensor.itemsize for tensor in tensors)


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _meta(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    return [tensor for tensor in tensors if tensor.device.type == "meta"]


@dataclass
class Count:
    """What was counted."""

    launches: int = 0
    read: int = 0
    written: int = 0
    reread: int = 0
    syncs: int = 0
    peak: int = 0
    kernels: list[tuple[str, int]] = field(default_factory=list)
    """Name and bytes of every launch."""

    @property
    def bytes(self) -> int:
        return self.read + self.written

    def __add__(self, other: Count) -> Count:
        """Calls one after the other: the peak is the larger one's, and so is the number of synchronisations."""
        return Count(
            self.launches + other.launches,
            self.read + other.read,
            self.written + other.written,
            self.reread + other.reread,
            max(self.syncs, other.syncs),
            max(self.peak, other.peak),
            self.kernels + other.kernels,
        )

    def seconds(self, launch: float, bandwidth: float) -> float:
        """A launch takes its own time or that of its bytes, whichever is longer."""
        return sum(max(launch, moved / bandwidth) for _, moved in self.kernels)


class Meter(TorchDispatchMode):
    """Inside the context, operations on meta tensors are counted; `count` has the result."""

    def __init__(self) -> None:
        super().__init__()
        self.count = Count()
        self._shadows: dict[int, tuple[StorageWeakRef, torch.Tensor]] = {}
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def known(self, tensor: torch.Tensor) -> torch.Tensor:
        """A meta tensor with the values of a tensor on the CPU; not counted."""
        meta = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        self._forget(meta)
        self._remember(meta, tensor)
        return meta

    def logits(self, num_tokens: int, vocab: int, dtype: torch.dtype) -> torch.Tensor:
        """Logits of whose numbers nothing is known; not counted."""
        return torch.empty(num_tokens, vocab, dtype=dtype, device="meta")

    def values(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The known values; None: not known."""
        if tensor.device.type == "cpu":
            return tensor
        storage = tensor.untyped_storage()
        reference, base = self._shadows.get(storage._cdata, (None, None))
        if reference is None or base is None or reference.expired():
            return None
        flat = base.view(tensor.dtype)
        return flat.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    def _remember(self, meta: torch.Tensor, real: torch.Tensor) -> None:
        storage = meta.untyped_storage()
        if storage._cdata not in self._shadows or self._shadows[storage._cdata][0].expired():
            base = torch.zeros(storage.nbytes(), dtype=torch.uint8)
            self._shadows[storage._cdata] = StorageWeakRef(storage), base
            values = self.values(meta)
            if values is not None and meta.numel():
                values.copy_(real)

    def _forget(self, meta: torch.Tensor) -> None:
        self._shadows.pop(meta.untyped_storage()._cdata, None)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(issubclass(kind, NestedTensor) for kind in types):
            return NotImplemented  # it calls again with what it holds
        with self:  # an operation made of others
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        name = func._schema.name.split("::")[1]
        inputs = _tensors((args, kwargs))
        if name == "logsumexp":
            with self:
                return _logsumexp(*args)
        on_device = _meta(inputs)
        target = kwargs.get("device")
        if not on_device and (target is None or torch.device(target).type != "meta"):
            return func(*args, **kwargs)
        known = [self.values(tensor) for tensor in on_device]
        if name in ("_local_scalar_dense", "item"):
            self._launch(name, 0, 0)
            self.count.syncs += 1
            return known[0].item() if known[0] is not None else on_device[0].new_zeros((), device="cpu").item()
        for tensor in on_device:
            self._allocate(tensor, nbytes=0)  # what was there before does not count
        if name == "nonzero" or (name == "repeat_interleave" and kwargs.get("output_size") is None):
            if known[0] is None:
                raise RuntimeError(f"{name}: the size of the result depends on numbers that the meter does not know")
            self.count.syncs += 1
            out: Any = self.known(func(*known))
            self._count(name, func, inputs, [out], args, kwargs)
            return out
        if name == "_to_copy" and target is not None and torch.device(target).type == "cpu":
            return func(self._to_host(on_device[0]), **{**kwargs, "device": torch.device("cpu")})
        if name == "copy_" and args[0].device.type == "cpu":
            return func(args[0], self._to_host(args[1]))
        out = func(*args, **kwargs)
        outputs = _tensors(out)
        self._shadow(func, name, args, kwargs, on_device, known, outputs)
        self._count(name, func, inputs, outputs, args, kwargs)
        return out

    def _shadow(self, func, name, args, kwargs, on_device, known, outputs) -> None:
        if func.is_view or name in ("detach", "lift_fresh", "_unsafe_view", "alias"):
            return
        small = all(tensor.numel() <= SHADOW_ELEMENTS for tensor in outputs)
        if not small or any(values is None for values in known):
            for tensor in _meta([*_written(func, args, kwargs), *outputs]):
                self._forget(tensor)
            return
        real_args, real_kwargs = tree_map_only(torch.Tensor, self.values, (args, kwargs))
        if "device" in real_kwargs:
            real_kwargs = {**real_kwargs, "device": torch.device("cpu")}
        for meta, values in zip(outputs, _tensors(func(*real_args, **real_kwargs)), strict=True):
            self._remember(meta, values)

    def _to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        self.count.syncs += 1
        self._launch("copy to host", size_of(tensor), 0)
        values = self.values(tensor)
        return torch.zeros(tensor.shape, dtype=tensor.dtype) if values is None else values

    def fused(self, function: Callable[..., None]) -> Callable[..., None]:
        """The function as one kernel, as a compiler makes it: every argument is read or written once."""

        def call(*args: Any) -> None:
            tensors = _tensors(args)
            with _disable_current_modes(), _Accesses() as accesses:
                function(*args)
            read = [t for t in tensors if id(t) in accesses.read]
            written = [t for t in tensors if id(t) in accesses.written]
            for tensor in written:
                self._forget(tensor)
            self._launch(function.__name__, size_of(*read), size_of(*written))

        return call

    def _launch(self, name: str, read: int, written: int, times: int = 1) -> None:
        self.count.launches += times
        self.count.read += read
        self.count.written += written
        self.count.kernels += [(name, read + written)] + [(name, 0)] * (times - 1)

    def _count(self, name, func, inputs, outputs, args, kwargs) -> None:
        for tensor in outputs:
            self._allocate(tensor)
        if func.is_view or name in FREE or name == "_unsafe_view" or not outputs:
            return
        written = _written(func, args, kwargs)
        plain = name.rstrip("_") if name.rstrip("_") in PUTS else name
        if plain in PUTS:
            index = size_of(*(t for t in inputs[1:] if t.dtype in (torch.int64, torch.bool, torch.int32)))
            values = [t for t in inputs[1:] if t.is_floating_point() or t.dtype == inputs[0].dtype]
            entries = _put_entries(plain, args, inputs) * inputs[0].element_size()
            given = size_of(values[-1]) if values else 0
            if not written:  # functional: a copy first
                self._launch("copy", size_of(inputs[0]), size_of(inputs[0]))
            self._launch(name, index + given + (entries if plain == "scatter_add" else 0), entries)
            return
        if name in PICKS:
            out = size_of(outputs[0])
            self._launch(name, out + size_of(*inputs[1:]), out)
            return
        positional = tree_leaves(args)
        out_only = [t for t in written if not any(t is o for o in positional)]
        unique = {id(t): t for t in inputs if not any(t is o for o in out_only)}
        if name in OVERWRITES:
            unique = {id(t): t for t in inputs[1:]}
        if name in MAKERS:
            unique = {}
        read = [t for t in unique.values() if t.device.type == "meta" or name != "copy_"]
        targets = {id(t): t for t in [*written, *outputs]}
        self._launch(name, size_of(*read), size_of(*targets.values()), SEVERAL.get(name, 1))
        if name in ("softmax", "log_softmax", "_softmax", "_log_softmax"):
            row = inputs[0].shape[-1] * inputs[0].element_size()
            self.count.reread += 2 * size_of(inputs[0]) if row > SHARED_MEMORY_BYTES else 0

    def _allocate(self, tensor: torch.Tensor, nbytes: int | None = None) -> None:
        if tensor.device.type != "meta":
            return
        storage = tensor.untyped_storage()
        entry = self._alive.get(storage._cdata)
        if entry is None or entry[0].expired():
            self._alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes() if nbytes is None else nbytes
            self._alive = {key: value for key, value in self._alive.items() if not value[0].expired()}
            self.count.peak = max(self.count.peak, sum(nbytes for _, nbytes in self._alive.values()))


class _Accesses(TorchDispatchMode):
    """Which tensors are read and which are written, by id."""

    def __init__(self) -> None:
        super().__init__()
        self.read: set[int] = set()
        self.written: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        written = {id(t) for t in _written(func, args, kwargs or {})}
        self.written |= written
        self.read |= {id(t) for t in _tensors((args, kwargs))} - written
        return func(*args, **(kwargs or {}))


def _written(func: Any, args: Any, kwargs: Any) -> list[torch.Tensor]:
    found = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found += _tensors(args[position] if position < len(args) else kwargs.get(argument.name))
    return found


def _put_entries(name: str, args: Any, inputs: list[torch.Tensor]) -> int:
    """Entries that an operation with indices writes."""
    if name in ("scatter", "scatter_add"):
        return args[2].numel()
    target = args[0]
    if name in ("index_copy", "index_fill"):
        return args[2].numel() * (target.numel() // max(1, target.shape[args[1]]))
    indices = [index for index in args[1] if index is not None]
    picked = torch.broadcast_shapes(*(index.shape for index in indices))
    return math.prod(picked) * math.prod(target.shape[len(args[1]) :])


def _logsumexp(x: torch.Tensor, dim: Any, keepdim: bool = False) -> torch.Tensor:
    """As ATen computes it."""
    largest = torch.amax(x, dim, keepdim=True)
    largest = largest.masked_fill(largest.abs() == float("inf"), 0.0)
    total = torch.sum((x - largest).exp_(), dim, keepdim=keepdim)
    return total.log_().add_(largest if keepdim else largest.squeeze(dim))
