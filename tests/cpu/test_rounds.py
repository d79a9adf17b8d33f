"""Rounds of generation: complete, in the order of the sessions, shared out over the servers, and never stuck."""

import asyncio
from types import SimpleNamespace

from verl.workers.rollout.replica import TokenOutput

from srpo_verl.cpu import rounds
from srpo_verl.cpu.rounds import SESSION, RoundClient, Rounds


class Server:
    """Answers a prompt with its last token, one higher; refuses prompts that end in 13."""

    def __init__(self, error=None):
        self.calls, self.error = [], error
        self.generate_batch = SimpleNamespace(remote=self._generate_batch)

    async def _generate_batch(self, prompts, sampling_params):
        self.calls.append([prompt[-1] for prompt in prompts])
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return [
            ValueError("thirteen") if prompt[-1] == 13 else TokenOutput(token_ids=[prompt[-1] + 1])
            for prompt in prompts
        ]


async def session(batch, number, *, turns=1, delay=0.0, first=None):
    """A session that starts with `first` and appends one token per turn."""
    tokens = [number if first is None else first]
    try:
        for _ in range(turns):
            await asyncio.sleep(delay)
            tokens += (await batch.ask(number, list(tokens), {})).token_ids
    finally:
        batch.leave()
    return tokens


def play(servers, *sessions):
    async def together():
        batch = Rounds(servers, len(sessions))
        return await asyncio.wait_for(
            asyncio.gather(
                *[session(batch, number, **kwargs) for number, kwargs in enumerate(sessions)], return_exceptions=True
            ),
            timeout=20,
        )

    return asyncio.run(together())


def test_a_round_is_one_call_in_the_order_of_the_sessions():
    server = Server()
    results = play([server], {"delay": 0.03}, {"delay": 0.0}, {"delay": 0.015})
    assert server.calls == [[0, 1, 2]]
    assert results == [[0, 1], [1, 2], [2, 3]]


def test_sessions_of_several_turns_go_on_while_others_have_ended():
    server = Server()
    results = play([server], {"turns": 3, "delay": 0.01}, {"turns": 1}, {"turns": 2, "delay": 0.02})
    assert server.calls == [[0, 1, 2], [1, 3], [2]]
    assert results[0] == [0, 1, 2, 3]


def test_servers_get_contiguous_shares():
    servers = [Server(), Server()]
    play(servers, *[{}] * 5)
    assert [server.calls for server in servers] == [[[0, 1]], [[2, 3, 4]]]
    play(servers, {})
    assert [server.calls[1:] for server in servers] == [[], [[0]]]


def test_an_error_reaches_the_session_it_belongs_to():
    server = Server()
    results = play([server], {"turns": 2}, {"first": 13, "turns": 2}, {"turns": 2})
    assert isinstance(results[1], ValueError)
    assert results[0] == [0, 1, 2]
    assert server.calls == [[0, 13, 2], [1, 3]]


def test_an_error_of_the_call_reaches_all_its_sessions():
    broken = Server(RuntimeError("the actor died"))
    results = play([broken, Server()], {}, {}, {}, {})
    assert [type(result) for result in results] == [RuntimeError, RuntimeError, list, list]


def test_a_session_that_fails_before_it_asks_holds_nobody_up():
    async def together():
        server = Server()
        batch = Rounds([server], 3)
        waiting = [asyncio.create_task(session(batch, number)) for number in (0, 2)]
        await asyncio.sleep(0.01)
        assert server.calls == []
        batch.leave()
        await asyncio.wait_for(asyncio.gather(*waiting), 5)
        return server.calls

    assert asyncio.run(together()) == [[0, 2]]


def test_a_slow_session_is_waited_for_only_so_long(monkeypatch):
    monkeypatch.setattr(rounds, "PATIENCE_S", 0.05)
    server = Server()
    results = play([server], {}, {"delay": 0.3}, {})
    assert server.calls == [[0, 2], [1]]
    assert results == [[0, 1], [1, 2], [2, 3]]


def test_a_cancelled_session_leaves_the_others_their_answers():
    async def together():
        server = Server()
        batch = Rounds([server], 2)
        gone, stays = (asyncio.create_task(session(batch, number)) for number in (0, 1))
        while not server.calls:
            await asyncio.sleep(0)
        gone.cancel()
        return await asyncio.wait_for(stays, 5)

    assert asyncio.run(together()) == [1, 2]


def test_the_client_asks_in_rounds_inside_a_session_only():
    alone = []

    class Handle:
        async def generate(self, **kwargs):
            alone.append(kwargs["prompt_ids"])
            return TokenOutput(token_ids=[0])

    async def acquire(request_id, **extra):
        single = Handle()
        return "id", SimpleNamespace(generate=SimpleNamespace(remote=single.generate))

    config = SimpleNamespace(actor_rollout_ref=SimpleNamespace(rollout=SimpleNamespace(name="hf")))
    client = RoundClient(SimpleNamespace(config=config, _load_balancer=None), ["hf_server_0_0"])
    client._acquire_server, client._release_server = acquire, lambda *args, **kwargs: None
    server = Server()

    async def run():
        outside = await client.generate("r", prompt_ids=[1], sampling_params={})
        batch = Rounds([server], 1)
        SESSION.set((batch, 0))
        inside = await client.generate("r", prompt_ids=[2], sampling_params={}, image_data=None, priority=3)
        with_image = await client.generate("r", prompt_ids=[3], sampling_params={}, image_data=["picture"])
        return outside, inside, with_image

    outside, inside, with_image = asyncio.run(run())
    assert alone == [[1], [3]]
    assert server.calls == [[2]]
    assert inside.extra_fields.keys() == outside.extra_fields.keys() == with_image.extra_fields.keys()


def test_servers_are_looked_up_once(monkeypatch):
    asked = []
    monkeypatch.setattr(rounds.ray, "get_actor", lambda name: asked.append(name) or name)
    client = RoundClient(SimpleNamespace(config=None, _load_balancer=None), ["a", "b"])
    assert client.servers() == client.servers() == ["a", "b"]
    assert asked == ["a", "b"]
