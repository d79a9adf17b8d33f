"""Agent loop workers that give every rollout session a name that is the same in every run."""

import hashlib
from typing import Any

import ray
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ, AgentLoopWorkerTQ


def session_seed(*, validate: bool, index: object, session_id: int) -> int:
    """A 63-bit number that names one session of one dataset row.

    veRL's own request ids are random (or, under full_determinism, the same for all sessions of all prompts).
    """
    name = f"{'val' if validate else 'train'}/{index}/{session_id}"
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 1


# `AgentLoopWorkerTQ` is a Ray actor class, which cannot be subclassed; this is the class it was made from.
_ACTOR_CLASS: Any = AgentLoopWorkerTQ
_UndecoratedWorker: Any = _ACTOR_CLASS.__ray_metadata__.modified_class.__ray_actor_class__


class _SeededWorker(_UndecoratedWorker):
    """veRL's worker, which adds the session's seed to the sampling parameters of every agent loop."""

    def __init__(self, *args, **kwargs) -> None:
        """Defined although it adds nothing: Ray cannot run a constructor inherited from another actor's class."""
        super().__init__(*args, **kwargs)

    async def _run_agent_loop(self, sampling_params: dict[str, Any], trajectory: dict[str, Any], **kwargs) -> Any:
        """Run one session; multi-turn loops reuse the seed, as each turn has another prompt."""
        seed = session_seed(
            validate=trajectory["validate"], index=trajectory["sample_index"], session_id=kwargs["session_id"]
        )
        return await super()._run_agent_loop({**sampling_params, "seed": seed}, trajectory, **kwargs)


class SeededAgentLoopManager(AgentLoopManagerTQ):
    """Set by `actor_rollout_ref.rollout.agent.agent_loop_manager_class`."""

    def __init__(self, *args, **kwargs) -> None:
        """Replace the worker class that the parent chose."""
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(_SeededWorker)
