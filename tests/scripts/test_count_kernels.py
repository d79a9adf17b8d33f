"""The meter against operations whose counts are known, and the limits on what the engine's calls cost on a GPU."""

import re
from pathlib import Path

import pytest
import torch

from scripts import count_kernels
from scripts.bench.engine_calls import Case
from scripts.bench.meter import Meter

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"


def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


def counted(call):
    with Meter() as meter:
        call()
    return meter.count


@pytest.mark.parametrize(
    ("call", "launches", "read", "written"),
    [
        (lambda x, h, row: x + 1.0, 1, 800, 800),
        (lambda x, h, row: x.view(20, 10)[3:].transpose(0, 1), 0, 0, 0),
        (lambda x, h, row: x.mul_(row), 1, 800 + 40, 800),
        (lambda x, h, row: torch.sub(h, row, out=x), 1, 400 + 40, 800),
        (lambda x, h, row: torch.special.entr(x, out=x), 1, 800, 800),
        (lambda x, h, row: x.copy_(h), 1, 400, 800),
        (lambda x, h, row: x[:2].zero_(), 1, 0, 160),
        (lambda x, h, row: x.sum(), 1, 800, 4),
        (lambda x, h, row: x.gather(1, torch.zeros(10, 3, dtype=torch.int64, device="meta")), 2, 360, 360),
        (lambda x, h, row: row.expand(10, 20) + 0.0, 1, 40, 800),
        (lambda x, h, row: torch.logsumexp(h, -1), 9, None, None),
    ],
)
def test_known_operations(call, launches, read, written):
    x, h, row = meta(10, 20), meta(10, 20, dtype=torch.bfloat16), meta(10, 1)
    count = counted(lambda: call(x, h, row))
    assert count.launches == launches
    if read is not None:
        assert (count.read, count.written) == (read, written)


def test_memory_is_that_of_what_is_alive_at_once():
    def call():
        for _ in range(3):
            a = meta(100)
            b = a * 2.0
            del a, b

    assert counted(call).peak == 800
    x = meta(1000)
    assert counted(lambda: x.mul_(2.0)).peak == 0  # it was there before


def test_numbers_the_host_knows_and_does_not_know():
    unknown = meta(3)
    with Meter() as meter:
        mask = meter.known(torch.tensor([True, False, True]))
        assert mask.nonzero().flatten().tolist() == [0, 2]
        assert int(mask.sum()) == 2
        assert not bool(unknown.isnan().any())
        with pytest.raises(RuntimeError, match="nonzero"):
            unknown.nonzero()
    assert meter.count.syncs == 4


def test_a_launch_takes_its_own_time_or_that_of_its_bytes():
    x = meta(1000)
    assert counted(lambda: (x + 1.0, x[:1] + 1.0)).seconds(1e-6, 8e9) == pytest.approx(1e-6 + 1e-6)
    assert counted(lambda: x + 1.0).seconds(1e-6, 8e8) == pytest.approx(1e-5)


@pytest.fixture(scope="module")
def lines():
    case = Case(8192, 151_936, 100, 0.4, torch.bfloat16)
    grpo = Case(8192, 151_936, 100, 0.0, torch.bfloat16)
    return [
        *count_kernels.engine(case),
        *count_kernels.engine(grpo),
        *count_kernels.engine(case, compile_kernels=True),
        count_kernels.eager(case, autocast=True),
    ]


@pytest.mark.parametrize("name", count_kernels.LIMITS)
def test_limits(lines, name):
    verdicts = {found: (limit, value) for found, limit, value in count_kernels.judge(lines, 8192 * 151_936)}
    limit, value = verdicts[name]
    assert value <= limit
    # The limits mean something: nothing is far below them for having been left out.
    assert value > 0.3 * limit


def test_page_states_the_limits():
    page = PAGE.read_text()
    for name, limit in count_kernels.LIMITS.items():
        assert re.search(rf"^\| {re.escape(name)} \| {limit:g} \|", page, re.MULTILINE), name
