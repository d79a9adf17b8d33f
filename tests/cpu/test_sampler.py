"""The token sampler: exact log-probabilities, independence of the batch, limits, truncation."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from srpo_verl.cpu import sampler
from srpo_verl.cpu.sampler import Request, SamplingParams
from tests.support import tiny_model

NO_EOS: frozenset[int] = frozenset()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tiny_model(tmp_path_factory.mktemp("model"))
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def request(prompt, seed=0, **params):
    return Request(prompt_ids=tuple(prompt), params=SamplingParams(**{"max_tokens": 8, **params}), seed=seed)


def generate(model, requests, eos=NO_EOS):
    return sampler.generate(model, requests, eos_token_ids=eos, pad_token_id=0)


PROMPTS = [[5, 6, 7], [9] * 11, [20, 30, 40, 50, 60], [8]]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_log_probs_equal_those_of_a_plain_forward(model, temperature):
    requests = [request(prompt, seed, temperature=temperature) for seed, prompt in enumerate(PROMPTS)]
    for prompt, completion in zip(PROMPTS, generate(model, requests), strict=True):
        ids = torch.tensor([prompt + completion.token_ids])
        with torch.no_grad():
            expected = (model(ids).logits[0] / temperature).log_softmax(-1)
        steps = range(len(prompt) - 1, ids.shape[1] - 1)
        plain = [float(expected[step, ids[0, step + 1]]) for step in steps]
        assert completion.log_probs == pytest.approx(plain, abs=1e-5)


def test_a_request_samples_the_same_in_any_batch(model):
    requests = [request(prompt, seed, max_tokens=4 + seed * 5) for seed, prompt in enumerate(PROMPTS * 3)]
    together = generate(model, requests)
    alone = [generate(model, [one])[0] for one in requests]
    reverse = generate(model, requests[::-1])[::-1]
    assert [c.token_ids for c in together] == [c.token_ids for c in alone] == [c.token_ids for c in reverse]
    for one, other in zip(together, alone, strict=True):
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-5)


def sampled_plainly(model, request, eos):
    """One request, one token at a time: a forward over the whole sequence, sorted lists, a running sum."""
    generator = torch.Generator().manual_seed(request.seed)
    numbers = torch.rand(request.params.max_tokens, generator=generator, dtype=torch.float64).tolist()
    ids, params = list(request.prompt_ids), request.params
    for number in numbers:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1].double()
        probs = (logits / (params.temperature or 1.0)).softmax(-1).tolist()
        ranked = sorted(range(len(probs)), key=lambda token: -probs[token])
        if params.temperature == 0:
            ranked = ranked[:1]
        if params.top_k > 0:
            ranked = ranked[: params.top_k]
        total, kept = sum(probs[token] for token in ranked), []
        for token in ranked:
            if sum(probs[other] for other in kept) < params.top_p * total:
                kept.append(token)
        target, passed = number * sum(probs[token] for token in kept), 0.0
        for token in sorted(kept):
            passed += probs[token]
            if passed > target:
                break
        ids.append(token)
        if token in eos:
            break
    return ids[len(request.prompt_ids) :]


def test_a_mixed_batch_samples_what_plain_sampling_does(model):
    variants = [
        {},
        {"temperature": 0.0},
        {"temperature": 0.6},
        {"top_p": 0.8},
        {"top_k": 5},
        {"temperature": 1.4, "top_k": 20, "top_p": 0.9},
    ]
    requests = [
        request(PROMPTS[row % len(PROMPTS)], row, max_tokens=3 + row % 12, **variants[row % len(variants)])
        for row in range(48)
    ]
    eos = frozenset({11, 57})
    completions = generate(model, requests, eos)
    assert [c.token_ids for c in completions] == [sampled_plainly(model, one, eos) for one in requests]
    assert {c.finish_reason for c in completions} == {sampler.STOP, sampler.LENGTH}


def test_seed_decides_and_nothing_else(model):
    first, again, other = generate(model, [request([5, 6], 1), request([5, 6], 1), request([5, 6], 2)])
    assert first.token_ids == again.token_ids
    assert first.token_ids != other.token_ids


def test_frequencies_follow_the_softmax():
    logits = torch.tensor([0.0, 1.0, -torch.inf, 2.0])
    draws = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()
    params = [SamplingParams(max_tokens=1)] * len(draws)
    tokens, log_probs = sampler.choose(logits.repeat(len(draws), 1), params, draws)
    counts = torch.bincount(torch.tensor(tokens), minlength=4).float()
    assert log_probs[0] == pytest.approx(float(logits.log_softmax(-1)[tokens[0]]))
    assert counts[2] == 0
    torch.testing.assert_close(counts / len(draws), logits.softmax(-1), atol=0.01, rtol=0)


def test_greedy_takes_the_largest_logit(model):
    prompt = PROMPTS[0]
    (completion,) = generate(model, [request(prompt, temperature=0.0, max_tokens=5)])
    ids = list(prompt)
    for token in completion.token_ids:
        with torch.no_grad():
            assert token == int(model(torch.tensor([ids])).logits[0, -1].argmax())
        ids.append(token)


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"),
    [
        (-1, 1.0, {0, 1, 2, 3}),
        (2, 1.0, {0, 1}),
        (-1, 0.5, {0}),
        (-1, 0.6, {0, 1}),
        (-1, 0.95, {0, 1, 2, 3}),
        (3, 0.95, {0, 1, 2}),
        (10, 1.0, {0, 1, 2, 3}),
        (1, 0.1, {0}),
    ],
)
def test_top_k_and_top_p_keep_the_most_likely(top_k, top_p, kept):
    probs = torch.tensor([0.5, 0.3, 0.12, 0.08])
    masked = sampler.keep_top(probs.log(), top_k, top_p)
    assert {index for index, value in enumerate(masked) if value > -torch.inf} == kept
    shuffled = sampler.keep_top(probs[[2, 0, 3, 1]].log(), top_k, top_p)
    torch.testing.assert_close(shuffled, masked[[2, 0, 3, 1]])


def test_top_k_one_is_greedy_but_reports_the_whole_distribution(model):
    (greedy,) = generate(model, [request([5, 6], temperature=0.0)])
    (top_one,) = generate(model, [request([5, 6], seed=3, top_k=1)])
    assert top_one.token_ids == greedy.token_ids
    assert top_one.log_probs == pytest.approx(greedy.log_probs, abs=1e-6)


def test_eos_ends_a_row_and_not_its_neighbours(model):
    free = generate(model, [request(prompt, seed, max_tokens=10) for seed, prompt in enumerate(PROMPTS)])
    eos = free[0].token_ids[3]
    stopped = generate(
        model, [request(prompt, seed, max_tokens=10) for seed, prompt in enumerate(PROMPTS)], frozenset({eos})
    )
    for unstopped, completion in zip(free, stopped, strict=True):
        if eos in unstopped.token_ids:
            end = unstopped.token_ids.index(eos) + 1
            assert completion.finish_reason == sampler.STOP
        else:
            end = 10
            assert completion.finish_reason == sampler.LENGTH
        assert completion.token_ids == unstopped.token_ids[:end]
        assert len(completion.log_probs) == end
    (ignoring,) = generate(model, [request(PROMPTS[0], 0, max_tokens=10, ignore_eos=True)], frozenset({eos}))
    assert ignoring.token_ids == free[0].token_ids


def test_max_tokens_truncates_row_by_row(model):
    limits = [1, 7, 3, 2]
    completions = generate(
        model, [request(prompt, max_tokens=limit) for prompt, limit in zip(PROMPTS, limits, strict=True)]
    )
    assert [len(completion.token_ids) for completion in completions] == limits
    assert {completion.finish_reason for completion in completions} == {sampler.LENGTH}


def test_streams_differ_in_every_part_of_their_name():
    base = (42, 3, (1, 2, 3), 0)
    seeds = {
        sampler.stream_seed(*name)
        for name in [base, (43, *base[1:]), (42, 4, *base[2:]), (42, 3, (1, 23), 0), (42, 3, (1, 2, 3), 1)]
    }
    assert len(seeds) == 5
    assert sampler.stream_seed(*base) == sampler.stream_seed(42, 3, [1, 2, 3], 0)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_errors_name_what_is_wrong(model):
    with pytest.raises(ValueError, match="no tokens"):
        generate(model, [request([])])
    for bad in ({"max_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_k": -2}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            SamplingParams(**{"max_tokens": 1, **bad})
    with pytest.raises(ValueError, match="repetition_penalty"):
        sampler.parse_sampling_params({"repetition_penalty": 1.1}, max_tokens=1, ignore_eos=False)
    with pytest.raises(ValueError, match="min_p"):
        sampler.parse_sampling_params({"min_p": 0.1}, max_tokens=1, ignore_eos=False)


def test_non_finite_logits_are_an_error(model):
    broken = type("Broken", (), {"config": model.config})()

    def forward(**kwargs):
        output = model(**kwargs)
        output.logits[:] = float("nan")
        return output

    broken.__class__.__call__ = lambda self, **kwargs: forward(**kwargs)
    with pytest.raises(FloatingPointError):
        generate(broken, [request([5])])


def test_sampling_params_of_agent_loops():
    params = sampler.parse_sampling_params(
        {"temperature": 0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0, "max_new_tokens": 5},
        max_tokens=9,
        ignore_eos=True,
    )
    assert params == SamplingParams(max_tokens=5, temperature=0.0, ignore_eos=True)
    assert sampler.parse_sampling_params({"max_tokens": 50}, max_tokens=9, ignore_eos=False).max_tokens == 9
