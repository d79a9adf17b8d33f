"""The meter against operations whose counts are known, and the limits on what the engine's calls cost on a GPU."""

import re
from pathlib import Path

import pytest
import torch
from torch._inductor import compile_fx, metrics
from torch._inductor.utils import fresh_cache

from scripts import count_kernels
from scripts.bench.engine_calls import Case
from scripts.bench.gpu_meter import Meter
from srpo_verl.algos import compiled_passes

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


COLUMNS = {
    compiled_passes._sums: 3,
    compiled_passes._sums_and_entropy: 3,
    compiled_passes._gradient: 2,
    compiled_passes._entropy_gradient: 4,
    compiled_passes._gradient_in_place: 2,
    compiled_passes._entropy_gradient_in_place: 4,
}
"""Every function that is compiled, and how many values per row it takes or leaves."""
ELSEWHERE = (compiled_passes._gradient, compiled_passes._entropy_gradient)


@pytest.mark.slow
@pytest.mark.parametrize("function", COLUMNS, ids=lambda function: function.__name__)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_compiler_makes_one_kernel_that_moves_what_is_counted(function, dtype, monkeypatch):
    """Inductor's own account of its code, on the CPU: as many kernels and bytes as the meter takes for granted."""
    rows, vocab = 16, 2**14

    def arguments(device):
        logits = torch.zeros(1 + (function in ELSEWHERE), rows, vocab, dtype=dtype, device=device)
        return [*logits, 0.7, *torch.zeros(COLUMNS[function], rows, 1, device=device)]

    # It counts only if somebody wants to read it.
    monkeypatch.setattr(compile_fx.inductor_metrics_log, "isEnabledFor", lambda level: True)
    torch._dynamo.reset()
    metrics.reset()
    with fresh_cache():
        torch.compile(function, dynamic=True, fullgraph=True)(*arguments("cpu"))
    assert len(metrics.nodes_num_elem) == 1  # what is left after fusion are the kernels
    meter, given = Meter(), arguments("meta")
    with meter:
        meter.fused(function)(*given)
    one_pass = rows * vocab * dtype.itemsize
    # It counts a tensor that is overwritten as read, too. The engine's gradients are written in place.
    overwritten = one_pass if function in ELSEWHERE else 0
    assert metrics.num_bytes_accessed - overwritten == pytest.approx(meter.count.bytes, rel=2e-3)
    # Every logit is read once, and written at most once.
    assert meter.count.bytes / one_pass == pytest.approx(1 if "sums" in function.__name__ else 2, rel=2e-3)
