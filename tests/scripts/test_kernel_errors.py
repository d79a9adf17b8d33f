"""Errors against float64 of what every device computes, in odd shapes; and that the comparison can fail."""

import pytest
import torch

from scripts import kernel_errors
from scripts.bench.float64 import Exact
from scripts.kernel_errors import DTYPES, PASSES, QUANTITIES, errors, limit


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_errors_stay_below_the_limits(name):
    found = errors(DTYPES[name], seeds=1)
    for which in QUANTITIES:
        for passes in PASSES:
            mean, largest = found[passes][which]
            assert 0 < mean <= largest <= limit(which, DTYPES[name])
        # Another arithmetic, not a worse one, but for the entropy: it is as exact as the device's softmax.
        if "entropy" not in which and which != "gradient":
            assert found["accelerator"][which][0] < 1.25 * found["cpu"][which][0]


def test_an_error_is_seen(monkeypatch):
    exact = kernel_errors.exact

    def shifted(*given, **options):
        return Exact(*(values + 1e-3 for values in exact(*given, **options)))

    monkeypatch.setattr(kernel_errors, "exact", shifted)
    monkeypatch.setattr(kernel_errors, "SHAPES", [(3, 47, 5)])
    monkeypatch.setattr(kernel_errors, "DTYPES", {"float32": torch.float32})
    assert kernel_errors.main(["--seeds", "1"]) == 0
    assert kernel_errors.main(["--seeds", "1", "--check"]) == 1
