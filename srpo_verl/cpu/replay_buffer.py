"""A replay buffer for small models: waits instead of polling, and orders a batch the same way every time."""

from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

from srpo_verl.cpu import in_flight

POLL_INTERVAL_S = 0.05


def _trajectory_order(key: str) -> tuple[int, int]:
    """(session, output) of a key "{uid}_{session}_{output}"."""
    _, session, output = key.split("_")
    return int(session), int(output)


class FastReplayBuffer(ReplayBuffer):
    """veRL's synchronous buffer with two differences; set it by `trainer.v1.sampler.custom_sampler`.

    * It waits for the batches that `SeededAgentLoopManager` handed out, and asks for what else is missing every 50 ms.
      The built-in one asks every two seconds, hard-coded (`sampler_kwargs.poll_interval` has no effect): most of a
      step of a tiny model.
    * Prompts come in the order of the data loader and trajectories in the order of their sessions. The built-in one
      takes them in the order of a set of random uids and of arrival, so that a resumed run would cut its mini-batches
      differently.
    """

    def __init__(self, *, trainer_mode: str, **kwargs) -> None:
        """Take what the trainer gives to custom samplers; refuse the modes whose semantics this class lacks."""
        if trainer_mode in ("colocate_async", "separate_async"):
            raise ValueError(
                f"trainer.v1.trainer_mode={trainer_mode}: FastReplayBuffer samples synchronously; unset "
                "trainer.v1.sampler.custom_sampler for asynchronous modes"
            )
        super().__init__(trainer_mode=trainer_mode, poll_interval=POLL_INTERVAL_S, **kwargs)

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> tuple[KVBatchMeta, dict]:
        """veRL's, which finds everything there when it first looks; an agent-loop worker that failed raises here."""
        in_flight.wait()
        return super().sample(global_steps, partition_id, batch_size)

    def _wait_for_next_poll(self, partition_id: str, last_debug_time: float) -> float:
        """Prompts that replace failed ones are handed out while a batch is being sampled."""
        in_flight.wait()
        return super()._wait_for_next_poll(partition_id, last_debug_time)

    def _select_prompt_uids(
        self, partition_id: str, sampleable_keys: set[str], batch_size: int
    ) -> tuple[list[str], dict[str, dict], dict[str, int]]:
        """Oldest prompts first, and among equals in the order in which they were submitted."""
        submitted = self.prompt_global_steps[partition_id]
        ordered = sorted((uid for uid in submitted if uid in sampleable_keys), key=lambda uid: submitted[uid])
        return ordered[:batch_size], dict(self.partitions[partition_id]), dict(submitted)

    def _materialize_batch(
        self, partition_id: str, selected_prompt_uids: list[str], partition_snapshot: dict[str, dict]
    ) -> KVBatchMeta:
        """Hand over the batch of the base class, prompt by prompt and session by session."""
        batch = super()._materialize_batch(partition_id, selected_prompt_uids, partition_snapshot)
        rank = {uid: position for position, uid in enumerate(selected_prompt_uids)}
        order = sorted(
            range(len(batch.keys)),
            key=lambda row: (rank[batch.keys[row].split("_")[0]], *_trajectory_order(batch.keys[row])),
        )
        return KVBatchMeta(
            partition_id=partition_id,
            keys=[batch.keys[row] for row in order],
            tags=[batch.tags[row] for row in order],
        )
