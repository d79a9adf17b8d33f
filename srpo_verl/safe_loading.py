"""Reading files of torch without running what is in them."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.distributed.tensor import DTensor  # noqa: F401  (makes sharded tensors known to torch's safe loader)

VARIABLE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""torch's variable that overrules a `weights_only=False` in veRL's code."""

RANDOM_STATE = [np.random.get_state()[1].__reduce__()[0], np.ndarray, np.dtype, type(np.dtype(np.uint32))]  # type: ignore[index]
"""What numpy's random state, which veRL saves with every checkpoint, is made of: numbers, no code."""


class UntrustedFile(ValueError):
    """A file would run code where it is read."""


@contextmanager
def only_tensors(trusted: bool = False) -> Iterator[None]:
    """torch.load takes tensors, numbers and texts, whatever its caller asks for.

    Args:
        trusted: let it run what the file says instead, as stock veRL does.

    Raises:
        UntrustedFile: a file holds something else, and nothing of it was run.
    """
    if trusted:
        yield
        return
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "1"
    try:
        with torch.serialization.safe_globals(RANDOM_STATE):
            yield
    except pickle.UnpicklingError as error:
        lines = str(error).splitlines()
        what = next((line.strip() for line in lines if "GLOBAL" in line), lines[0])
        raise UntrustedFile(
            f"weights only: a file holds more than tensors, and reading it could run code: {what}. Where you trust "
            "who wrote it, a run resumes from it with srpo.checkpoints.trust_pickles=true"
        ) from error
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before
