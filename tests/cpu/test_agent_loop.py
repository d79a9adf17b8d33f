"""Session seeds: stable, distinct, and passed on to the agent loops."""

import asyncio
import inspect

from verl.trainer.ppo.v1 import agent_loop_tq

from srpo_verl.cpu.agent_loop import SeededAgentLoopManager, _SeededWorker, session_seed


def test_seeds_name_sessions():
    sessions = [(validate, index, session) for validate in (True, False) for index in range(5) for session in range(5)]
    seeds = [session_seed(validate=v, index=i, session_id=s) for v, i, s in sessions]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_worker_adds_the_seed(monkeypatch):
    seen = []

    async def record(self, sampling_params, trajectory, **kwargs):
        seen.append(sampling_params)

    base = _SeededWorker.__mro__[1]
    monkeypatch.setattr(base, "_run_agent_loop", record)
    worker = object.__new__(_SeededWorker)
    given = {"temperature": 1.0}
    trajectory = {"validate": False, "sample_index": 3, "step": 1, "rollout_n": 0}
    for session in range(2):
        asyncio.run(worker._run_agent_loop(given, trajectory=trajectory, session_id=session, agent_name="x"))
    assert given == {"temperature": 1.0}
    assert [params["seed"] for params in seen] == [
        session_seed(validate=False, index=3, session_id=session) for session in range(2)
    ]


def test_verl_passes_what_the_worker_reads():
    cls = agent_loop_tq.AgentLoopWorkerTQ.__ray_metadata__.modified_class.__ray_actor_class__
    assert _SeededWorker.__mro__[1] is cls
    call = inspect.getsource(cls._run_prompt)
    assert "self._run_agent_loop(" in call
    assert "session_id=i" in call
    assert "agent_loop_workers_class" in inspect.getsource(agent_loop_tq.AgentLoopManagerTQ.__init__)
    assert issubclass(SeededAgentLoopManager, agent_loop_tq.AgentLoopManagerTQ)
