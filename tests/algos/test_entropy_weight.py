"""Equation (4): values, normalisation over Omega, and two processes against one."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from srpo_verl.functional import entropy_weights

NAN = float("nan")


def random_case(dtype=torch.float64, seed=9):
    generator = torch.Generator().manual_seed(seed)
    entropy = 4 * torch.rand(6, 11, generator=generator, dtype=torch.float64)
    mask = torch.arange(11) < torch.tensor([11, 1, 4, 0, 7, 2])[:, None]  # ragged, a one-token and an empty response
    mask[0, 3:5] = False
    return entropy.to(dtype), mask


def python_weights(entropy, mask, beta):
    raw = {i: math.exp(-beta * float(entropy[i])) for i in map(tuple, mask.nonzero().tolist())}
    mean = math.fsum(raw.values()) / len(raw)
    out = torch.zeros(entropy.shape, dtype=torch.float64)
    for index, value in raw.items():
        out[index] = value / mean
    return out


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 3.0])
def test_matches_plain_python(beta):
    entropy, mask = random_case()
    weights = entropy_weights(entropy, mask, beta=beta)
    # float64; subtracting the smallest entropy first costs a rounding or two.
    torch.testing.assert_close(weights, python_weights(entropy, mask, beta), atol=1e-14, rtol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_mean_one_on_the_mask_zero_elsewhere_detached(dtype):
    entropy, mask = random_case(dtype)
    weights = entropy_weights(entropy.requires_grad_(), mask)
    assert not weights.requires_grad
    assert weights.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert float(weights[mask].double().mean()) == pytest.approx(1.0, abs=1e-7)  # weights rounded to fp32
    assert (weights[~mask] == 0).all()
    assert weights[mask].std() > 0.3  # the weighting is not silently off


@pytest.mark.parametrize("floor", [0.02, 0.3, 0.9])
def test_the_floor_by_hand(floor):
    entropy, mask = random_case()
    raw = torch.exp(-entropy[mask]).clamp(min=floor)
    weights = entropy_weights(entropy, mask, floor=floor)
    torch.testing.assert_close(weights[mask], raw / raw.mean(), atol=1e-14, rtol=1e-13)
    assert (weights[~mask] == 0).all()
    # At an entropy nothing else would survive, the floor is what is left.
    assert entropy_weights(entropy + 5000, mask, floor=floor)[mask].tolist() == pytest.approx([1.0] * int(mask.sum()))


@pytest.mark.parametrize("floor", [-0.1, 1.0, NAN])
def test_impossible_floors_raise(floor):
    with pytest.raises(ValueError, match="floor must be"):
        entropy_weights(*random_case(), floor=floor)


def test_lower_entropy_gets_more_weight():
    entropy, mask = random_case()
    order = entropy[mask].argsort()
    assert (entropy_weights(entropy, mask)[mask][order].diff() < 0).all()


def test_beta_zero_is_exactly_one():
    entropy, mask = random_case(torch.float32)
    assert torch.equal(entropy_weights(entropy, mask, beta=0.0), mask.float())


def test_no_overflow_or_underflow():
    entropy = torch.tensor([11.0, 11.5, 12.0])
    weights = entropy_weights(entropy, torch.ones(3, dtype=torch.bool), beta=1e4)
    assert weights.tolist() == [3.0, 0.0, 0.0]


def test_packed_tokens_integer_masks_and_unread_entries():
    entropy, mask = random_case()
    weights = entropy_weights(entropy, mask)
    assert torch.equal(entropy_weights(entropy[mask], torch.ones(int(mask.sum()))), weights[mask])
    assert torch.equal(entropy_weights(entropy.masked_fill(~mask, NAN), mask.long()), weights)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (2, 4)])
def test_empty_mask_gives_zeros(shape):
    assert torch.equal(entropy_weights(torch.ones(shape), torch.zeros(shape, dtype=torch.bool)), torch.zeros(shape))


@pytest.mark.parametrize("bad", [NAN, math.inf, -math.inf])
def test_non_finite_entropies_are_named(bad):
    entropy, mask = random_case()
    entropy[4, 2] = bad
    with pytest.raises(ValueError, match=rf"got {bad} at index \(4, 2\)"):
        entropy_weights(entropy, mask)


@pytest.mark.parametrize("beta", [-1.0, NAN, math.inf])
def test_impossible_beta(beta):
    with pytest.raises(ValueError, match=f"got {beta}"):
        entropy_weights(*random_case(), beta=beta)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 1\)"):
        entropy_weights(torch.ones(2, 3), torch.ones(2, 1, dtype=torch.bool))


def _two_rank_worker(rank, folder, queue):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    try:
        results = {}
        entropy, mask = random_case()
        ragged = slice(0, 2) if rank == 0 else slice(2, 6)
        for beta in (0.0, 1.0, 1e4):
            results[beta] = entropy_weights(entropy[ragged], mask[ragged], beta=beta, process_group=dist.group.WORLD)
        mine = mask if rank == 0 else torch.zeros_like(mask)
        results["one rank empty"] = entropy_weights(entropy, mine, process_group=dist.group.WORLD)
        nothing = torch.zeros_like(mask)
        results["both empty"] = entropy_weights(entropy, nothing, process_group=dist.group.WORLD)
        results["local"] = entropy_weights(entropy[ragged], mask[ragged])
        for name, broken in (("NaN on rank 1", entropy * NAN), ("shape on rank 1", entropy[:1])):
            try:
                entropy_weights(entropy if rank == 0 else broken, mask, process_group=dist.group.WORLD)
                results[name] = "no error"
            except ValueError as error:
                results[name] = str(error)
        # Still in step after the errors.
        results["after"] = entropy_weights(entropy[ragged], mask[ragged], process_group=dist.group.WORLD)
        queue.put((rank, {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in results.items()}))
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """What each of two gloo processes got, by rank."""
    context = mp.get_context("spawn")
    queue = context.Queue()
    folder = tmp_path_factory.mktemp("gloo")
    processes = [context.Process(target=_two_rank_worker, args=(rank, folder, queue)) for rank in range(2)]
    for process in processes:
        process.start()
    results = dict(queue.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    return results


def as_tensor(results, key):
    return torch.tensor(results[0][key] + results[1][key], dtype=torch.float64)


@pytest.mark.parametrize("beta", [0.0, 1.0, 1e4])
def test_two_ranks_with_ragged_halves_equal_one_process(two_ranks, beta):
    whole = entropy_weights(*random_case(), beta=beta)
    # float64; the sum over 25 tokens is taken in two parts.
    torch.testing.assert_close(as_tensor(two_ranks, beta), whole, atol=1e-13, rtol=1e-13)


def test_local_normalisation_would_differ(two_ranks):
    whole = entropy_weights(*random_case())
    assert (as_tensor(two_ranks, "local") - whole).abs().max() > 0.01


def test_a_rank_without_tokens_takes_part(two_ranks):
    entropy, mask = random_case()
    assert torch.equal(
        torch.tensor(two_ranks[0]["one rank empty"], dtype=torch.float64), entropy_weights(entropy, mask)
    )
    assert torch.tensor(two_ranks[1]["one rank empty"]).abs().sum() == 0
    assert as_tensor(two_ranks, "both empty").abs().sum() == 0


def test_an_error_on_one_rank_raises_on_all_and_leaves_them_in_step(two_ranks):
    assert "nan at index (0, 0)" in two_ranks[1]["NaN on rank 1"]
    assert "(1, 11)" in two_ranks[1]["shape on rank 1"]
    for name in ("NaN on rank 1", "shape on rank 1"):
        assert "another rank" in two_ranks[0][name]
    assert torch.equal(as_tensor(two_ranks, "after"), as_tensor(two_ranks, 1.0))
