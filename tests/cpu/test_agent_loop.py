"""The worker of whole batches leaves in TransferQueue what veRL's worker leaves there, session by session. No Ray."""

import asyncio
import inspect
import pickle
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from tensordict import TensorDict
from verl.experimental.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, _agent_loop_registry
from verl.experimental.reward_loop.reward_loop import RewardLoopWorker
from verl.trainer.ppo.v1 import agent_loop_tq
from verl.utils import tensordict_utils as tu
from verl.workers.rollout.llm_server import LLMServerClient

from srpo_verl.cpu import agent_loop, in_flight
from srpo_verl.cpu.agent_loop import SeededAgentLoopManager, _BatchWorker, session_seed
from srpo_verl.cpu.rollout import HFServer
from tests.support import REWARD_FILE, tiny_model

VERL_WORKER = _BatchWorker.__mro__[1]
TWO_TURNS, FRAGILE = "two_turns", "fragile"


class TwoTurns(AgentLoopBase):
    """Answers, is told a digit that depends on the answer, and answers again."""

    async def run(self, sampling_params, **kwargs):
        prompt = await self.ct_build_initial_tokens(list(kwargs["raw_prompt"]))
        first = await self.server_manager.generate(
            "a", prompt_ids=prompt, sampling_params={**sampling_params, "max_tokens": 2 + kwargs["session_id"]}
        )
        await asyncio.sleep(0.002 * (sum(first.token_ids) % 3))  # sessions come back from their tool out of order
        told = [5 + sum(first.token_ids) % 10]
        second = await self.server_manager.generate(
            "a", prompt_ids=prompt + first.token_ids + told, sampling_params={**sampling_params, "max_tokens": 4}
        )
        return AgentLoopOutput(
            prompt_ids=prompt,
            response_ids=first.token_ids + told + second.token_ids,
            response_mask=[1] * len(first.token_ids) + [0] + [1] * len(second.token_ids),
            response_logprobs=[*first.log_probs, 0.0, *second.log_probs],
            num_turns=4,
            metrics={},
            extra_fields=dict(first.extra_fields),
        )


class Fragile(TwoTurns):
    """Fails in one session, and in another asks for what the server refuses; elsewhere returns two outputs."""

    async def run(self, sampling_params, **kwargs):
        if kwargs["index"] == 1 and kwargs["session_id"] == 1:
            raise RuntimeError("the tool broke")
        if kwargs["index"] == 2 and kwargs["session_id"] == 0:
            await self.server_manager.generate("a", prompt_ids=[7] * 999, sampling_params=sampling_params)
        first = await super().run(sampling_params, **kwargs)
        return [first, await super().run(sampling_params, **kwargs)]


class Calls:
    """An actor's handle on a plain object: `handle.method.remote(...)`, awaitable; what it is given is copied."""

    def __init__(self, target):
        self.target, self.names = target, []

    def __getattr__(self, name):
        async def call(*args, **kwargs):
            self.names.append(name)
            args, kwargs = pickle.loads(pickle.dumps((args, kwargs)))
            return await getattr(self.target, name)(*args, **kwargs)

        return SimpleNamespace(remote=call)


class Rewards(RewardLoopWorker):
    """veRL's reward worker, which also remembers what each session was scored by."""

    def __init__(self, config):
        super().__init__(config)
        self.seen = {}

    async def compute_score(self, data):
        row = data.non_tensor_batch
        self.seen[row["uid"][0], int(row["session_id"][0])] = pickle.loads(pickle.dumps(data))
        return await super().compute_score(data)


class Client(LLMServerClient):
    """veRL's client without a load balancer."""

    def __init__(self, config, server):
        super().__init__(config)
        self.server = server

    async def _acquire_server(self, request_id, **extra):
        return "server", self.server

    def _release_server(self, server_id, request_id=None):
        pass


class Store:
    """TransferQueue's put, keeping rows as the storage does."""

    def __init__(self):
        self.rows, self.tags, self.puts = {}, {}, 0

    def init(self):
        pass

    async def async_kv_put(self, key, partition_id, tag):
        self.tags.setdefault((partition_id, key), {}).update(tag)
        self.puts += 1

    async def async_kv_batch_put(self, keys, partition_id, fields=None, tags=None):
        self.puts += 1
        for row, key in enumerate(keys):
            self.tags.setdefault((partition_id, key), {}).update(tags[row])
            if fields is not None:
                self.rows[partition_id, key] = {name: plain(column[row]) for name, column in fields.items()}


def plain(value):
    value = getattr(value, "data", value) if not isinstance(value, torch.Tensor) else value
    return value.tolist() if isinstance(value, torch.Tensor) else value


class Reference(VERL_WORKER):
    """veRL's worker with a seed for every session: what ours is compared with."""

    async def _run_agent_loop(self, sampling_params, trajectory, **kwargs):
        seed = session_seed(
            validate=trajectory["validate"], index=trajectory["sample_index"], session_id=kwargs["session_id"]
        )
        return await super()._run_agent_loop({**sampling_params, "seed": seed}, trajectory, **kwargs)


@pytest.fixture(scope="module")
def config(tmp_path_factory, request):
    model = tiny_model(tmp_path_factory.mktemp("model"))
    with initialize_config_dir(str(request.path.parent), version_base=None):
        return compose(
            "stock_grpo",
            overrides=[
                f"actor_rollout_ref.model.path={model}",
                "actor_rollout_ref.rollout.load_format=auto",
                "actor_rollout_ref.rollout.n=3",
                "actor_rollout_ref.rollout.val_kwargs.n=2",
                "actor_rollout_ref.rollout.max_num_seqs=5",
                f"reward.custom_reward_function.path={REWARD_FILE}",
            ],
        )


@pytest.fixture(autouse=True)
def loops(monkeypatch):
    for name, cls in ((TWO_TURNS, TwoTurns), (FRAGILE, Fragile)):
        monkeypatch.setitem(_agent_loop_registry, name, {"_target_": f"{cls.__module__}.{cls.__qualname__}"})


def batch_of(num_prompts, agent, validate):
    rows = {
        "raw_prompt": [[{"role": "user", "content": f"{row} + {row} ="}] for row in range(num_prompts)],
        "uid": [f"uid{row}" for row in range(num_prompts)],
        "index": list(range(num_prompts)),
        "agent_name": [agent] * num_prompts,
        "data_source": ["toy"] * num_prompts,
        "reward_model": [{"ground_truth": str(2 * row)} for row in range(num_prompts)],
        "extra_info": [{"index": row} for row in range(num_prompts)],
    }
    columns = {}
    for name, values in rows.items():
        columns[name] = np.empty(num_prompts, dtype=object)
        columns[name][:] = values
    batch: TensorDict = tu.get_tensordict(columns)
    tu.assign_non_tensor_data(batch, "global_steps", 4)
    if validate:
        tu.assign_non_tensor_data(batch, "validate", True)
    return batch


async def settled(worker):
    while worker.background_tasks:
        await asyncio.gather(*worker.background_tasks)


def run(cls, config, monkeypatch, *, agent="single_turn_agent", validate=False, num_prompts=4, servers=1):
    store, rewards = Store(), Rewards(config)
    for module in (agent_loop_tq, agent_loop):
        monkeypatch.setattr(module, "tq", store)
    handles = [Calls(HFServer(config.actor_rollout_ref.rollout, config.actor_rollout_ref.model, 0))]
    handles += [Calls(HFServer(config.actor_rollout_ref.rollout, config.actor_rollout_ref.model, 1))] * (servers - 1)

    async def sample():
        rewards.loop = rewards.reward_manager.loop = asyncio.get_running_loop()
        for handle in handles:
            handle.target.global_steps = 3
        worker = cls(config, Client(config, handles[0]), None, [Calls(rewards)])
        worker.llm_client._servers = handles
        await worker.generate_sequences(batch_of(num_prompts, agent, validate))
        await settled(worker)

    asyncio.run(sample())
    return SimpleNamespace(store=store, rewards=rewards, servers=handles)


def assert_same_rows(ours, reference):
    assert ours.store.tags == reference.store.tags
    assert ours.store.rows.keys() == reference.store.rows.keys()
    for key, row in ours.store.rows.items():
        expected = reference.store.rows[key]
        assert row.keys() == expected.keys()
        for name, value in row.items():
            if name == "rollout_log_probs":
                # Rows share their forward with others: the same up to rounding of the padding (see test_sampler).
                assert value == pytest.approx(expected[name], abs=1e-5), (key, name)
            elif name != "metrics":  # durations
                assert value == expected[name], (key, name)


def assert_same_requests_for_scores(ours, reference):
    assert ours.rewards.seen.keys() == reference.rewards.seen.keys()
    for session, data in ours.rewards.seen.items():
        expected = reference.rewards.seen[session]
        assert set(data.batch.keys()) == set(expected.batch.keys())
        assert all(torch.equal(data.batch[name], expected.batch[name]) for name in list(data.batch.keys()))
        assert data.non_tensor_batch.keys() == expected.non_tensor_batch.keys()
        for name, column in data.non_tensor_batch.items():
            assert column.dtype == expected.non_tensor_batch[name].dtype, name
            assert column.tolist() == expected.non_tensor_batch[name].tolist(), name


@pytest.mark.parametrize("agent", ["single_turn_agent", TWO_TURNS])
@pytest.mark.parametrize(
    ("validate", "temperature"), [(False, 1.0), (True, 0), (True, 1.0)], ids=["training", "greedy", "sampled"]
)
def test_a_batch_is_stored_as_by_verls_worker(config, monkeypatch, agent, validate, temperature):
    monkeypatch.setitem(config.actor_rollout_ref.rollout.val_kwargs, "temperature", temperature)
    ours = run(_BatchWorker, config, monkeypatch, agent=agent, validate=validate)
    reference = run(Reference, config, monkeypatch, agent=agent, validate=validate)
    assert len(ours.store.rows) == 4 * (2 if validate else 3)
    assert_same_rows(ours, reference)
    assert_same_requests_for_scores(ours, reference)
    responses = {tuple(row["responses"]) for row in ours.store.rows.values()}
    assert len(responses) == (4 if validate and temperature == 0 and agent != TWO_TURNS else len(responses)) > 1
    # One call per turn, one for the rewards, one put of rows and one of statuses.
    assert ours.servers[0].names == ["generate_batch"] * (2 if agent == TWO_TURNS else 1)
    assert ours.store.puts == 2
    assert reference.store.puts == len(reference.store.rows) + 2 * 4


def test_a_failed_session_fails_its_group_and_no_other(config, monkeypatch):
    ours = run(_BatchWorker, config, monkeypatch, agent=FRAGILE)
    reference = run(Reference, config, monkeypatch, agent=FRAGILE)
    assert_same_rows(ours, reference)
    assert_same_requests_for_scores(ours, reference)
    statuses = [ours.store.tags["train", f"uid{row}"]["status"] for row in range(4)]
    assert statuses == ["finished", "failure", "failure", "finished"]
    assert {key for _, key in ours.store.rows} >= {"uid0_2_0", "uid0_2_1", "uid1_0_1"}


def test_a_session_that_cannot_be_scored_fails_its_group_and_no_other(config, monkeypatch):
    def break_one(cls):
        async def compute_score(self, data):
            if data.non_tensor_batch["uid"][0] == "uid2" and data.non_tensor_batch["session_id"][0] == 1:
                raise ValueError("no digit")
            return await RewardLoopWorker.compute_score(self, data)

        monkeypatch.setattr(Rewards, "compute_score", compute_score)
        return run(cls, config, monkeypatch)

    ours, reference = break_one(_BatchWorker), break_one(Reference)
    assert_same_rows(ours, reference)
    assert [ours.store.tags["train", f"uid{row}"]["status"] for row in range(4)].count("failure") == 1


@pytest.mark.parametrize("agent", ["single_turn_agent", TWO_TURNS])
def test_the_same_batch_gives_the_same_bits(config, monkeypatch, agent):
    first, second = (run(_BatchWorker, config, monkeypatch, agent=agent) for _ in range(2))
    two_servers = run(_BatchWorker, config, monkeypatch, agent=agent, servers=2)
    for key, row in first.store.rows.items():
        assert row["rollout_log_probs"] == second.store.rows[key]["rollout_log_probs"]
        assert row["responses"] == two_servers.store.rows[key]["responses"]
    assert [len(set(server.names)) for server in two_servers.servers] == [1, 1]


def test_rows_may_ask_for_their_own_number_of_sessions_and_for_greedy_ones(config, monkeypatch):
    original = batch_of

    def with_settings(*args):
        batch = original(*args)
        tu.assign_non_tensor_stack(batch, "__rollout_n__", [1, 2, 3, 1])
        tu.assign_non_tensor_stack(batch, "__do_sample__", [True, False, True, True])
        return batch

    monkeypatch.setitem(globals(), "batch_of", with_settings)
    ours, reference = run(_BatchWorker, config, monkeypatch), run(Reference, config, monkeypatch)
    assert_same_rows(ours, reference)
    assert len(ours.store.rows) == 7
    greedy = [ours.store.rows["train", f"uid1_{session}_0"]["responses"] for session in range(2)]
    assert greedy[0] == greedy[1]


def test_seeds_name_sessions():
    sessions = [(validate, index, session) for validate in (True, False) for index in range(5) for session in range(5)]
    seeds = [session_seed(validate=v, index=i, session_id=s) for v, i, s in sessions]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_manager_notes_what_it_hands_out(monkeypatch):
    handed_out = []
    monkeypatch.setattr(in_flight, "_batches", handed_out)
    workers = [SimpleNamespace(generate_sequences=SimpleNamespace(remote=lambda share: len(share))) for _ in range(2)]
    manager = object.__new__(SeededAgentLoopManager)
    manager.agent_loop_workers = workers
    manager.generate_sequences(TensorDict({"a": torch.zeros(5)}, batch_size=5))
    assert handed_out == [3, 2]


def test_verl_still_works_as_the_worker_assumes():
    cls = agent_loop_tq.AgentLoopWorkerTQ.__ray_metadata__.modified_class.__ray_actor_class__
    assert VERL_WORKER is cls
    assert "asyncio.create_task(\n                self._run_prompt(" in inspect.getsource(cls.generate_sequences)
    assert _agent_loop_registry["single_turn_agent"] == agent_loop.SINGLE_TURN
    assert "agent_loop_workers_class" in inspect.getsource(agent_loop_tq.AgentLoopManagerTQ.__init__)
    # One instance serves all sessions, so the loop must not keep anything of a session on itself.
    assert not re.search(r"self\.\w+ *[-+]?=[^=]", inspect.getsource(agent_loop.SingleTurnAgentLoop.run))
