"""The rollout server: weight sync, batching, limits, reproducibility, errors. No Ray: the actor is a plain class."""

import asyncio

import pytest
import torch
from hydra import compose, initialize_config_dir
from transformers import AutoModelForCausalLM

from srpo_verl.cpu import sampler
from srpo_verl.cpu.rollout import HFServer, WeightSync, buckets
from tests.support import tiny_model


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def config(model_dir, request):
    with initialize_config_dir(str(request.path.parent), version_base=None):
        return compose(
            "stock_grpo",
            overrides=[
                f"actor_rollout_ref.model.path={model_dir}",
                "actor_rollout_ref.rollout.max_num_seqs=3",
                "actor_rollout_ref.rollout.load_format=auto",
            ],
        ).actor_rollout_ref


@pytest.fixture
def server(config):
    return HFServer(config.rollout, config.model, replica_rank=0)


def fill(server, step=0):
    """Sync the server with its own weights."""

    async def sync():
        await server.load_weights([(name, tensor.clone()) for name, tensor in server.model.state_dict().items()])
        return await server.finish_weights(step)

    return asyncio.run(sync())


def ask(server, *requests):
    async def gather():
        return await asyncio.gather(
            *[server.generate(prompt, {"logprobs": True, **params}, "id") for prompt, params in requests]
        )

    server._decoder = None  # one event loop per call, here
    server._queue = asyncio.Queue()
    return asyncio.run(gather())


def test_requests_are_decoded_in_waves(server, monkeypatch):
    waves = []
    decode = server._decode
    monkeypatch.setattr(server, "_decode", lambda requests: waves.append(len(requests)) or decode(requests))
    outputs = ask(server, *[([5, 6, index], {"seed": index}) for index in range(7)])
    assert waves == [3, 3, 1]
    assert all(len(output.token_ids) == len(output.log_probs) <= 12 for output in outputs)
    assert all(output.stop_reason == "completed" for output in outputs)


def test_a_batch_is_decoded_in_its_own_order_and_answers_each_request(server, monkeypatch):
    fill(server, 4)
    waves = []
    decode = server._decode
    monkeypatch.setattr(server, "_decode", lambda requests: waves.append(requests) or decode(requests))
    prompts = [[5, 6, index] for index in range(5)]
    prompts.insert(2, [5] * 999)
    params = [{"logprobs": True, "seed": index} for index in range(6)]
    params[4] = {"seed": 4}
    answers = asyncio.run(server.generate_batch(prompts, params))
    assert [[request.prompt_ids[-1] for request in wave] for wave in waves] == [[0, 1, 2], [3, 4]]
    assert isinstance(answers[2], ValueError)
    assert "999 tokens" in str(answers[2])
    assert answers[4].log_probs is None
    for row in (0, 1, 3, 5):
        (alone,) = ask(server, (prompts[row], {"seed": row}))
        assert answers[row].token_ids == alone.token_ids
        assert answers[row].log_probs == pytest.approx(alone.log_probs, abs=1e-5)
        assert answers[row].extra_fields == alone.extra_fields
        assert answers[row].stop_reason == alone.stop_reason
    assert asyncio.run(server.generate_batch([], [])) == []


def test_samples_depend_on_seed_step_prompt_and_identity_only(server, config):
    request = ([5, 6, 7], {"seed": 1})
    fill(server, 4)
    alone = ask(server, request)[0]
    crowd = ask(server, ([9, 9], {"seed": 1}), request, ([5, 6, 7], {"seed": 2}), ([5, 6, 7], {}))
    assert crowd[1].token_ids == alone.token_ids
    assert alone.extra_fields["global_steps"] == 4
    assert len({tuple(output.token_ids) for output in crowd}) == 4

    fresh = HFServer(config.rollout, config.model, replica_rank=1)
    fill(fresh, 4)
    assert ask(fresh, request)[0].token_ids == alone.token_ids
    fill(fresh, 5)
    assert ask(fresh, request)[0].token_ids != alone.token_ids


def test_requests_without_identity_are_told_apart_by_arrival(server):
    fill(server, 1)
    first = [output.token_ids for output in ask(server, *[([5, 6], {})] * 3)]
    assert len({tuple(tokens) for tokens in first}) == 3
    fill(server, 1)
    assert [output.token_ids for output in ask(server, *[([5, 6], {})] * 3)] == first


def test_lengths_stay_within_the_model(server):
    server.max_model_len = 20
    lengths = [len(prompt) for prompt in ([5] * 3, [5] * 15, [5] * 19)]
    server.eos_token_ids = frozenset()
    outputs = ask(server, *[([5] * length, {"seed": 0}) for length in lengths])
    assert [len(output.token_ids) for output in outputs] == [12, 5, 1]
    (short,) = ask(server, ([5] * 3, {"seed": 0, "max_tokens": 4}))
    assert len(short.token_ids) == 4
    with pytest.raises(ValueError, match="leaves no room"):
        ask(server, ([5] * 20, {}))


def test_every_eos_id_ends_a_response(server):
    generation_config, hf_config = server.model_config.generation_config, server.model_config.hf_config
    generation_config.eos_token_id = [7, 8]
    tokenizer_eos = server.model_config.tokenizer.eos_token_id
    assert server._find_eos_token_ids() == {7, 8, tokenizer_eos}
    generation_config.eos_token_id = None
    hf_config.eos_token_id = 9
    assert server._find_eos_token_ids() == {9, tokenizer_eos}


def test_a_failed_wave_fails_the_run(server, monkeypatch):
    def broken(requests):
        raise FloatingPointError("boom")

    monkeypatch.setattr(server, "_decode", broken)
    with pytest.raises(FloatingPointError, match="boom"):
        ask(server, ([5], {}), ([6], {}))
    for call in (server.sleep(), server.wake_up(), server.load_weights([])):
        with pytest.raises(RuntimeError, match="failed before") as raised:
            asyncio.run(call)
        assert isinstance(raised.value.__cause__, FloatingPointError)


def test_a_bad_request_fails_alone(server):
    with pytest.raises(ValueError, match="min_p"):
        ask(server, ([5], {"min_p": 0.5}))
    with pytest.raises(ValueError, match="text only"):
        asyncio.run(server.generate([5], {}, "id", image_data=["image"]))
    assert ask(server, ([5], {}))[0].token_ids


def test_dummy_weights_are_never_sampled(config, model_dir):
    rollout = config.rollout.copy()
    rollout.load_format = "dummy"
    server = HFServer(rollout, config.model, replica_rank=0)
    with pytest.raises(RuntimeError, match="no weights yet"):
        ask(server, ([5], {}))
    trained = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)

    async def sync():
        for bucket in buckets(trained.state_dict().items(), 3000):
            await server.load_weights(bucket)
        return await server.finish_weights(0)

    assert asyncio.run(sync()) == len(trained.state_dict())
    for name, tensor in server.model.state_dict().items():
        assert torch.equal(tensor, trained.state_dict()[name]), name
    request = sampler.Request((5, 6), sampler.SamplingParams(max_tokens=4, temperature=0.0), 0)
    (expected,) = sampler.generate(trained.eval(), [request], eos_token_ids=frozenset(), pad_token_id=0)
    assert ask(server, ([5, 6], {"temperature": 0, "max_tokens": 4, "ignore_eos": True}))[0].token_ids == (
        expected.token_ids
    )


def test_weight_sync_names_what_is_wrong(model_dir):
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    sync = WeightSync(model)
    sync.load((name, tensor) for name, tensor in weights.items() if name != "lm_head.weight")
    with pytest.raises(ValueError, match=r"1 of \d+ tensors did not arrive: \['lm_head.weight'\]"):
        sync.finish()
    with pytest.raises(ValueError, match=r"'model\.norm\.weight' was sent twice"):
        sync.load([("model.norm.weight", weights["model.norm.weight"])])
    with pytest.raises(ValueError, match=r"no tensor named 'model\.other'"):
        WeightSync(model).load([("model.other", torch.zeros(1))])
    with pytest.raises(ValueError, match="has shape"):
        WeightSync(model).load([("model.norm.weight", torch.zeros(1))])


def test_weight_sync_of_tied_embeddings(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model(tmp_path, tie_word_embeddings=True), dtype=torch.float32)
    weights = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    assert "lm_head.weight" in weights
    for dropped in ("lm_head.weight", "model.embed_tokens.weight"):
        sync = WeightSync(model)
        sync.load((name, tensor) for name, tensor in weights.items() if name != dropped)
        assert sync.finish() == len(weights) - 1
        assert torch.equal(model.get_output_embeddings().weight, weights["lm_head.weight"])
    sync = WeightSync(model)
    sync.load(weights.items())
    assert sync.finish() == len(weights)
    with pytest.raises(ValueError, match="tied"):
        WeightSync(model).load({**weights, "lm_head.weight": weights["lm_head.weight"] + 1}.items())


def test_buckets_keep_order_and_size():
    weights = [(str(index), torch.zeros(size)) for index, size in enumerate([10, 10, 100, 1, 1])]
    cut = list(buckets(weights, 80))
    assert [[name for name, _ in bucket] for bucket in cut] == [["0", "1"], ["2"], ["3", "4"]]
