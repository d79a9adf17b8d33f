"""Records the size of every tensor an operation creates."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class RecordSizes(TorchDispatchMode):
    """Inside the context, `largest(dtype)` is the number of elements of the largest new storage of that dtype."""

    def __init__(self):
        super().__init__()
        self.sizes = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        known = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in known:
                size = tensor.untyped_storage().nbytes() // tensor.element_size()
                self.sizes[tensor.dtype] = max(self.sizes.get(tensor.dtype, 0), size)
        return out

    def largest(self, dtype):
        return self.sizes.get(dtype, 0)
