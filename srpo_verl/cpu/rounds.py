"""Generation in rounds: what concurrent sessions ask of the rollout servers goes out as one call per server."""

import asyncio
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import ray
from verl.utils.rollout_trace import rollout_trace_op
from verl.workers.rollout.llm_server import LLMServerClient
from verl.workers.rollout.replica import TokenOutput

PATIENCE_S = 10.0
"""A round no longer waits for sessions that have not asked this long after the latest one did (a slow tool, say)."""


@dataclass
class _Ask:
    """What one session wants continued, and where the answer goes."""

    session: int
    prompt_ids: list[int]
    sampling_params: dict[str, Any]
    answer: asyncio.Future


class Rounds:
    """Lets the sessions of one batch go forward together.

    A round starts when every session that has not ended waits for tokens. It is answered in the order of the sessions,
    so that which of them share a forward does not depend on timing: the same run computes the same bits. Single-turn
    sessions have one round; a session of a tool-using agent takes part in one round per turn.

    Args:
        servers: the rollout servers' actors; each gets a contiguous share of a round.
        num_sessions: sessions that will run, numbered from 0. Each calls `leave` when it has ended.
    """

    def __init__(self, servers: Sequence[Any], num_sessions: int) -> None:
        self._servers = servers
        self._running = num_sessions
        self._asks: list[_Ask] = []
        self._calls: set[asyncio.Task] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def ask(self, session: int, prompt_ids: list[int], sampling_params: dict[str, Any]) -> TokenOutput:
        """Wait for the round; raises what the server raised for this request."""
        loop = asyncio.get_running_loop()
        ask = _Ask(session, prompt_ids, sampling_params, loop.create_future())
        self._asks.append(ask)
        if not self._start_if_complete():
            self._cancel_timer()
            self._timer = loop.call_later(PATIENCE_S, self._start)
        return await ask.answer

    def leave(self) -> None:
        """One session has ended, whether well or not."""
        self._running -= 1
        self._start_if_complete()

    def _start_if_complete(self) -> bool:
        complete = bool(self._asks) and len({ask.session for ask in self._asks}) >= self._running
        if complete:
            self._start()
        return complete

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start(self) -> None:
        """Send what is asked for."""
        self._cancel_timer()
        asks, self._asks = sorted(self._asks, key=lambda ask: ask.session), []
        bounds = [len(asks) * share // len(self._servers) for share in range(len(self._servers) + 1)]
        for server, first, end in zip(self._servers, bounds, bounds[1:], strict=False):
            if first < end:
                call = asyncio.get_running_loop().create_task(_call(server, asks[first:end]))
                self._calls.add(call)
                call.add_done_callback(self._calls.discard)


async def _call(server: Any, asks: list[_Ask]) -> None:
    """One call to one server; an error of the call goes to every session in it."""
    answers: Sequence[TokenOutput | Exception]
    try:
        answers = await server.generate_batch.remote(
            [ask.prompt_ids for ask in asks], [ask.sampling_params for ask in asks]
        )
    except Exception as error:
        answers = [error] * len(asks)
    for ask, answer in zip(asks, answers, strict=True):
        if ask.answer.done():  # its session was cancelled
            continue
        if isinstance(answer, Exception):
            ask.answer.set_exception(answer)
        else:
            ask.answer.set_result(answer)


SESSION: ContextVar[tuple[Rounds, int]] = ContextVar("srpo_verl_session")
"""Set while a session runs: the rounds it takes part in, and its number."""


class RoundClient(LLMServerClient):
    """What agent loops know as the server manager; inside a session it asks in rounds.

    Elsewhere it is veRL's client: one call to the load balancer and one to a server for each request.

    Args:
        client: veRL's.
        server_names: names of the rollout servers' actors.
    """

    def __init__(self, client: LLMServerClient, server_names: Sequence[str]) -> None:
        super().__init__(client.config, client._load_balancer)
        self._server_names = server_names
        self._servers: list[Any] | None = None

    def servers(self) -> list[Any]:
        """Handles of the servers; they exist before the first batch does."""
        if self._servers is None:
            self._servers = [ray.get_actor(name) for name in self._server_names]
        return self._servers

    @rollout_trace_op
    async def generate(
        self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any], **kwargs: Any
    ) -> TokenOutput:
        """Continue one prompt; arguments and result are those of veRL's client."""
        session = SESSION.get(None)
        media = any(kwargs.get(key) for key in ("image_data", "video_data", "audio_data"))
        if session is None or media:
            return await super().generate(request_id, prompt_ids=prompt_ids, sampling_params=sampling_params, **kwargs)
        rounds, number = session
        output = await rounds.ask(number, prompt_ids, sampling_params)
        for key in ("min_global_steps", "max_global_steps"):
            output.extra_fields.setdefault(key, output.extra_fields.get("global_steps"))
        return output
