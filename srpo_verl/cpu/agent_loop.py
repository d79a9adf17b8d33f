"""Agent loops of a whole batch at a time: the same rollouts in every run, and no cost that is paid per session.

veRL's worker makes an agent loop, three remote calls and several transfers for each of a batch's sessions, which
takes a small model longer than sampling. Here sessions run as coroutines that ask for tokens in rounds (`rounds`), are
scored by one call (`scoring`) and stored by one put. What an agent loop is, and what a session leaves in
TransferQueue, stays veRL's.
"""

import asyncio
import gc
import hashlib
import json
import logging
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import ray
import torch
import transfer_queue as tq
from tensordict import TensorDict
from verl.experimental.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.agent_loop import DictConfigWrap, _agent_loop_registry
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.trainer.ppo.v1.agent_loop_tq import (
    AgentLoopManagerTQ,
    AgentLoopWorkerTQ,
    apply_greedy_sampling_params,
)
from verl.utils.profiler import simple_timer
from verl.utils.rollout_trace import rollout_trace_attr
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from srpo_verl.cpu import ROLLOUT_NAME, in_flight
from srpo_verl.cpu.rollout import server_name
from srpo_verl.cpu.rounds import SESSION, RoundClient, Rounds
from srpo_verl.cpu.scoring import RewardRequests

logger = logging.getLogger(__name__)

SINGLE_TURN = {"_target_": f"{SingleTurnAgentLoop.__module__}.{SingleTurnAgentLoop.__qualname__}"}
"""veRL's registry entry of its own single-turn loop."""


def session_seed(*, validate: bool, index: object, session_id: int) -> int:
    """A 63-bit number that names one session of one dataset row.

    veRL's own request ids are random (or, under full_determinism, the same for all sessions of all prompts).
    """
    name = f"{'val' if validate else 'train'}/{index}/{session_id}"
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 1


@dataclass
class _Prompt:
    """One row of a batch, as veRL's worker hands it to the coroutine that runs its sessions."""

    known: dict[str, Any]
    """The row's fields."""
    sampling_params: dict[str, Any]
    trajectory: dict[str, Any]
    trace: bool

    @property
    def uid(self) -> str:
        """Names the prompt's group."""
        return self.known["uid"]


@dataclass
class _Session:
    """One rollout of a prompt."""

    prompt: _Prompt
    session_id: int
    outputs: list[AgentLoopOutput] = field(default_factory=list)
    known: dict[str, Any] = field(default_factory=dict)
    """What veRL stores beside each output: the prompt's fields and the session's number."""
    error: BaseException | None = None


_COLLECTED: ContextVar[list[_Prompt]] = ContextVar("srpo_verl_collected_prompts")


async def _nothing() -> None:
    """Stands for veRL's coroutine per prompt."""


class _Inline:
    """An event loop's `run_in_executor` without the executor: what takes microseconds needs no other thread."""

    async def run_in_executor(self, executor: object, function: Callable[..., Any], *args: Any) -> Any:
        """Call the function here and now."""
        return function(*args)


class _SingleTurn(SingleTurnAgentLoop):
    """veRL's single-turn loop, which has no state of its own: one serves all sessions and renders a prompt once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Keep what was rendered last; the sessions of a prompt come one after the other."""
        super().__init__(*args, **kwargs)
        self.loop = _Inline()
        self._rendered: tuple[str, list[int]] | None = None

    async def ct_build_initial_tokens(self, messages: list[dict], *args: Any, **kwargs: Any) -> list[int]:
        """The tokens of a prompt."""
        if self.processor is not None:
            return await super().ct_build_initial_tokens(messages, *args, **kwargs)
        name = json.dumps(messages, default=repr)
        if self._rendered is None or self._rendered[0] != name:
            self._rendered = name, await super().ct_build_initial_tokens(messages, *args, **kwargs)
        return list(self._rendered[1])


# `AgentLoopWorkerTQ` is a Ray actor class, which cannot be subclassed; this is the class it was made from.
_ACTOR_CLASS: Any = AgentLoopWorkerTQ
_UndecoratedWorker: Any = _ACTOR_CLASS.__ray_metadata__.modified_class.__ray_actor_class__


class _BatchWorker(_UndecoratedWorker):
    """veRL's worker, running all sessions of a batch together and in an order that no timing decides."""

    def __init__(self, config: Any, llm_client: Any, *args: Any, **kwargs: Any) -> None:
        """Let agent loops ask in rounds, where the rollout engine is ours."""
        if config.actor_rollout_ref.rollout.name == ROLLOUT_NAME:
            replicas = config.trainer.nnodes * config.trainer.n_gpus_per_node
            llm_client = RoundClient(llm_client, [server_name(ROLLOUT_NAME, rank) for rank in range(replicas)])
        super().__init__(config, llm_client, *args, **kwargs)
        self._single_turn: _SingleTurn | None = None
        # A collection looks at every object there is, for a third of a second after the imports; those stay anyway.
        gc.collect()
        gc.freeze()

    async def generate_sequences(self, batch: TensorDict) -> None:
        """Sample, score and store a batch. Unlike veRL's, it returns when that is done."""
        prompts: list[_Prompt] = []
        collecting = _COLLECTED.set(prompts)
        try:
            await super().generate_sequences(batch)
        finally:
            _COLLECTED.reset(collecting)
        sessions = list(self._sessions(prompts))
        await self._run_sessions(sessions)
        await self._score(sessions)
        await self._store(prompts, sessions)

    def _run_prompt(
        self, prompt: dict[str, Any], sampling_params: dict[str, Any], trajectory: dict[str, Any], trace: bool = False
    ) -> Coroutine[Any, Any, None]:
        """Called once for each row, and awaited in the background by the base class; here it only takes note."""
        _COLLECTED.get().append(_Prompt(prompt, sampling_params, trajectory, trace))
        return _nothing()

    def _sessions(self, prompts: Sequence[_Prompt]) -> Iterator[_Session]:
        """The sessions of each prompt, with veRL's settings per row: their number, and sampling or not."""
        config = self.config.actor_rollout_ref.rollout
        for prompt in prompts:
            validate = prompt.trajectory["validate"]
            num_sessions = prompt.known.pop("__rollout_n__", config.val_kwargs.n if validate else config.n)
            do_sample = prompt.known.pop("__do_sample__", True)
            prompt.sampling_params = dict(prompt.sampling_params)
            if not validate and not do_sample:
                apply_greedy_sampling_params(prompt.sampling_params)
            for session_id in range(int(num_sessions)):
                yield _Session(prompt, session_id)

    async def _run_sessions(self, sessions: Sequence[_Session]) -> None:
        """Fill in the outputs, or the error, of every session."""
        servers = self.llm_client.servers() if isinstance(self.llm_client, RoundClient) else []
        rounds = Rounds(servers, len(sessions)) if servers else None

        async def run(number: int, session: _Session) -> None:
            if rounds is not None:
                SESSION.set((rounds, number))
            prompt = session.prompt
            try:
                session.outputs, session.known = await self._run_agent_loop(
                    prompt.sampling_params,
                    trajectory=prompt.trajectory,
                    trace=prompt.trace,
                    session_id=session.session_id,
                    **prompt.known,
                )
            except BaseException as error:  # as veRL: a session that fails is its group's failure, not the worker's
                session.error = error
            finally:
                if rounds is not None:
                    rounds.leave()

        await asyncio.gather(*[run(number, session) for number, session in enumerate(sessions)])

    async def _run_agent_loop(
        self,
        sampling_params: dict[str, Any],
        trajectory: dict[str, Any],
        *,
        agent_name: str,
        trace: bool,
        **known: Any,
    ) -> tuple[list[AgentLoopOutput], dict[str, Any]]:
        """Run one session with a seed of its own; multi-turn loops reuse it, as each turn has another prompt."""
        seed = session_seed(
            validate=trajectory["validate"], index=trajectory["sample_index"], session_id=known["session_id"]
        )
        sampling_params = {**sampling_params, "seed": seed}
        if _agent_loop_registry.get(agent_name) != SINGLE_TURN:
            return await super()._run_agent_loop(
                sampling_params, trajectory, agent_name=agent_name, trace=trace, **known
            )
        with rollout_trace_attr(**trajectory, name="agent_loop", trace=trace):
            output = await self._single_turn_loop().run(sampling_params, **known)
            return await self._agent_loop_postprocess(output, trajectory["validate"], **known)

    def _single_turn_loop(self) -> _SingleTurn:
        """Made at the first use, with the arguments that veRL gives to every agent loop."""
        if self._single_turn is None:
            self._single_turn = _SingleTurn(
                trainer_config=DictConfigWrap(self.config),
                server_manager=self.llm_client,
                tokenizer=self.tokenizer,
                processor=self.processor,
                hf_model_type=self.hf_model_type,
                dataset_cls=self.dataset_cls,
                data_config=DictConfigWrap(self.config.data),
            )
        return self._single_turn

    async def _agent_loop_postprocess(
        self, output: AgentLoopOutput | list[AgentLoopOutput], validate: bool, **known: Any
    ) -> tuple[list[AgentLoopOutput], dict[str, Any]]:
        """The end of a session, in which veRL scores and stores it; here that is done for the batch."""
        return output if isinstance(output, list) else [output], known

    async def _score(self, sessions: Sequence[_Session]) -> None:
        """Rewards and, where veRL distils, its teacher's log-probs; both belong to a session's last output."""
        ended = [session for session in sessions if session.error is None and session.outputs]
        await self._reward([session for session in ended if session.outputs[-1].reward_score is None])

        async def finish(session: _Session) -> None:
            last = session.outputs[-1]
            try:
                await self._compute_teacher_logprobs(
                    last,
                    prompt_ids=last.prompt_ids,
                    response_ids=last.response_ids,
                    validate=session.prompt.trajectory["validate"],
                    sample_kwargs=session.known,
                )
            except Exception as error:
                session.error = error
            if last.reward_score is not None:
                for output in session.outputs[:-1]:
                    output.reward_score = last.reward_score
                    output.extra_fields["reward_extra_info"] = last.extra_fields["reward_extra_info"]

        await asyncio.gather(*[finish(session) for session in ended])

    async def _reward(self, sessions: Sequence[_Session]) -> None:
        """Fill in rewards, with one call per reward worker."""
        workers = self.reward_loop_worker_handles
        if workers is None or not sessions:
            return
        bounds = [len(sessions) * share // len(workers) for share in range(len(workers) + 1)]
        await asyncio.gather(
            *[
                self._reward_by(worker, sessions[first:end])
                for worker, first, end in zip(workers, bounds, bounds[1:], strict=False)
                if first < end
            ]
        )

    async def _reward_by(self, worker: Any, sessions: Sequence[_Session]) -> None:
        """One call; where it fails, veRL's call per session finds those that are the cause."""
        timing: dict[str, float] = {}
        results = None
        if self.processor is None:
            try:
                with simple_timer("compute_score", timing):
                    requests = RewardRequests([(session.outputs, session.known) for session in sessions])
                    results = await worker.compute_score_batch.remote(requests)
            except Exception as error:
                logger.warning("scoring %d sessions at once failed, now one by one: %r", len(sessions), error)
        if results is None:
            outcomes = await asyncio.gather(
                *[self._compute_score(session.outputs, kwargs=session.known) for session in sessions],
                return_exceptions=True,
            )
            for session, outcome in zip(sessions, outcomes, strict=True):
                session.error = outcome
            return
        for session, result in zip(sessions, results, strict=True):
            last = session.outputs[-1]
            last.reward_score = result["reward_score"]
            last.extra_fields["reward_extra_info"] = result["reward_extra_info"]
            last.metrics.compute_score = timing["compute_score"]

    async def _store(self, prompts: Sequence[_Prompt], sessions: Sequence[_Session]) -> None:
        """Put every output into TransferQueue, then the status of every group."""
        if not prompts:
            return
        partition = "val" if prompts[0].trajectory["validate"] else "train"
        failed = set()
        rows: dict[tuple[str, ...], list[tuple[str, dict[str, Any], dict[str, Any]]]] = {}
        for session in sessions:
            uid = session.prompt.uid
            if session.error is not None:
                failed.add(uid)
                error = session.error
                logger.error(
                    f"session {session.session_id} of uid={uid} failed",
                    exc_info=(type(error), error, error.__traceback__),
                )
                continue
            if not session.outputs:
                logger.warning(f"session {session.session_id} of uid={uid} has no output")
            for index, output in enumerate(session.outputs):
                key, fields, tag = self._row(index, output, session.known)
                # Outputs of different agents need not have the same fields; a put is one table.
                rows.setdefault(tuple(fields), []).append((key, fields, tag))
        for table in rows.values():
            keys, fields_of, tags = zip(*table, strict=True)
            await tq.async_kv_batch_put(
                keys=list(keys),
                fields=list_of_dict_to_tensordict(list(fields_of)),
                tags=list(tags),
                partition_id=partition,
            )
        await tq.async_kv_batch_put(
            keys=[prompt.uid for prompt in prompts],
            partition_id=partition,
            tags=[{"status": "failure" if prompt.uid in failed else "finished"} for prompt in prompts],
        )

    def _row(
        self, index: int, output: AgentLoopOutput, known: dict[str, Any]
    ) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """Key, fields and tag of one output, as veRL's `_agent_loop_postprocess` stores them."""
        fields = output.as_dict()
        fields.update(known)
        fields.pop("multi_modal_data", None)
        input_ids = torch.cat([fields["prompts"], fields["responses"]])
        multi_modal_inputs = self._compute_multi_modal_inputs(output, input_ids)
        position_ids = self._compute_position_ids(
            input_ids.unsqueeze(0), torch.ones_like(input_ids).unsqueeze(0), multi_modal_inputs
        ).squeeze(0)
        fields["loss_mask"] = fields["response_mask"]
        fields["input_ids"] = input_ids
        fields["position_ids"] = position_ids
        fields["multi_modal_inputs"] = multi_modal_inputs
        prompt_len, response_len = len(fields["prompts"]), len(fields["responses"])
        tag = {
            "status": "success",
            "prompt_len": prompt_len,
            "response_len": response_len,
            "seq_len": prompt_len + response_len,
            "global_steps": known["global_steps"],
            "min_global_steps": fields["extra_fields"].get("min_global_steps"),
            "max_global_steps": fields["extra_fields"].get("max_global_steps"),
        }
        return f"{known['uid']}_{known['session_id']}_{index}", fields, tag


class SeededAgentLoopManager(AgentLoopManagerTQ):
    """Set by `actor_rollout_ref.rollout.agent.agent_loop_manager_class`."""

    def __init__(self, *args, **kwargs) -> None:
        """Replace the worker class that the parent chose."""
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(_BatchWorker)

    def generate_sequences(self, prompts: TensorDict) -> None:
        """Hand a batch out to the workers, without waiting for it (see `in_flight`)."""
        shares = prompts.chunk(len(self.agent_loop_workers))
        in_flight.add(
            worker.generate_sequences.remote(share)
            for worker, share in zip(self.agent_loop_workers, shares, strict=False)
        )
