"""Errors against float64 of what every device computes, in odd shapes; and that the comparison can fail."""

import pytest
import torch

from scripts import kernel_errors
from scripts.bench.float64 import Exact
from scripts.kernel_errors import DTYPES, QUANTITIES, WAYS, errors, limit, sum_as_cuda


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_errors_stay_below_the_limits(name):
    found = errors(DTYPES[name], seeds=1)
    for which in QUANTITIES:
        for way in WAYS:
            mean, largest = found[way][which]
            assert 0 < mean <= largest <= limit(which, DTYPES[name])
        # Another arithmetic, not a worse one. Entropies and gradient are as exact as the softmax, whose sum is of 32
        # terms in a row where the CPU's passes add up in pairs.
        assert found["accelerator"][which][0] < 1.5 * found["CPU"][which][0]
        if "entropy" not in which and which != "gradient":
            assert found["accelerator, CPU's softmax"][which][0] < 1.25 * found["CPU"][which][0]


@pytest.mark.parametrize("size", [5, 1024, 1025, 4096])
def test_every_term_is_in_the_sum_once(size):
    terms = torch.arange(2 * size, dtype=torch.float64).view(2, size)
    torch.testing.assert_close(sum_as_cuda(terms), terms.sum(1, keepdim=True), rtol=0, atol=0)


def test_an_error_is_seen(monkeypatch):
    exact = kernel_errors.exact

    def shifted(*given, **options):
        return Exact(*(values + 1e-3 for values in exact(*given, **options)))

    monkeypatch.setattr(kernel_errors, "exact", shifted)
    monkeypatch.setattr(kernel_errors, "SHAPES", [(3, 47, 5)])
    monkeypatch.setattr(kernel_errors, "DTYPES", {"float32": torch.float32})
    assert kernel_errors.main(["--seeds", "1"]) == 0
    assert kernel_errors.main(["--seeds", "1", "--check"]) == 1
