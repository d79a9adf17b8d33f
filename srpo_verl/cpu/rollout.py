"""The rollout engine named "hf": a transformers model in a Ray actor, sampled by `srpo_verl.cpu.sampler`.

There is one replica per training rank. `HFServerAdapter` lives in the training worker and sends weights; `HFServer` is
the actor; `HFReplica` is veRL's handle on it.
"""

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import ray
import torch
from transformers import AutoModelForCausalLM
from verl.utils import normalize_token_ids
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.torch_dtypes import PrecisionType
from verl.workers.config import HFModelConfig, RolloutConfig
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica, TokenOutput

from srpo_verl.cpu import sampler
from srpo_verl.cpu.attention import PACKED_ATTENTION

logger = logging.getLogger(__name__)
logger.setLevel(os.getenv("VERL_LOGGING_LEVEL", "WARN"))

# A group of requests arrives one by one; a wave starts when none has come for this long, or when it is full.
QUIET_S = 0.01


class WeightSync:
    """One transfer of all weights into a model, which is complete or fails.

    Tied tensors (input and output embedding) count as received when one of their names was; a second name must carry
    the same values.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        """Expect every parameter and persistent buffer of `model`."""
        self._targets = model.state_dict()
        self._received: set[str] = set()
        self._storages = {name: tensor.data_ptr() for name, tensor in self._targets.items()}

    @torch.no_grad()
    def load(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Copy some tensors into the model."""
        filled = {self._storages[name] for name in self._received}
        for name, tensor in weights:
            if name not in self._targets:
                raise ValueError(f"weight sync: the rollout model has no tensor named {name!r}")
            if name in self._received:
                raise ValueError(f"weight sync: {name!r} was sent twice")
            target = self._targets[name]
            if target.shape != tensor.shape:
                raise ValueError(f"weight sync: {name!r} has shape {tuple(tensor.shape)}, not {tuple(target.shape)}")
            if self._storages[name] in filled and not torch.equal(target, tensor.to(target.dtype)):
                raise ValueError(f"weight sync: {name!r} is tied to a tensor that was sent with other values")
            target.copy_(tensor)
            self._received.add(name)
            filled.add(self._storages[name])

    def finish(self) -> int:
        """Number of tensors received; an error names those that were not."""
        filled = {self._storages[name] for name in self._received}
        missing = sorted(name for name, storage in self._storages.items() if storage not in filled)
        if missing:
            raise ValueError(f"weight sync: {len(missing)} of {len(self._targets)} tensors did not arrive: {missing}")
        return len(self._received)


def buckets(weights: Iterable[tuple[str, torch.Tensor]], max_bytes: int) -> Iterator[list[tuple[str, torch.Tensor]]]:
    """Cut the stream of weights into lists of at most `max_bytes` (one tensor at least)."""
    bucket: list[tuple[str, torch.Tensor]] = []
    size = 0
    for name, tensor in weights:
        nbytes = tensor.numel() * tensor.element_size()
        if bucket and size + nbytes > max_bytes:
            yield bucket
            bucket, size = [], 0
        bucket.append((name, tensor.detach()))
        size += nbytes
    if bucket:
        yield bucket


@dataclass
class _Waiting:
    """A request in the queue, and where its result goes."""

    request: sampler.Request
    result: asyncio.Future


def _token_output(
    completion: sampler.Completion, sampling_params: dict[str, Any], global_steps: int | None
) -> TokenOutput:
    """A completion in veRL's words."""
    return TokenOutput(
        token_ids=completion.token_ids,
        log_probs=completion.log_probs if sampling_params.get("logprobs") else None,
        stop_reason="completed",
        extra_fields={"global_steps": global_steps, "finish_reason": completion.finish_reason},
    )


class HFServer:
    """Ray actor that holds the rollout model.

    Requests are queued and decoded in waves of up to `rollout.max_num_seqs`. What a request samples is a function of
    (rollout.seed, step of the last weight sync, prompt, `seed` among the sampling parameters); a request without such
    a seed is told apart from others with its prompt by the order of arrival.

    An error while decoding or loading weights is final: it goes to every waiting request, and to every later call of
    the trainer, so that a run ends instead of training on what is left.
    """

    def __init__(self, config: Any, model_config: Any, replica_rank: int) -> None:
        """Build the model: from its config alone under load_format=dummy, else with the weights on disk."""
        self.config: RolloutConfig = omega_conf_to_dataclass(config)
        self.model_config: HFModelConfig = omega_conf_to_dataclass(model_config, dataclass_type=HFModelConfig)
        self.replica_rank = replica_rank
        self.global_steps: int | None = None
        self._ready = self.config.load_format != "dummy"
        dtype = PrecisionType.to_dtype(self.config.dtype)
        hf_config = self.model_config.hf_config
        if hf_config._attn_implementation == PACKED_ATTENTION:  # nothing is packed here
            hf_config._attn_implementation = "sdpa"
        if self._ready:
            self.model = AutoModelForCausalLM.from_pretrained(
                self.model_config.local_path, config=hf_config, dtype=dtype
            )
        else:
            self.model = AutoModelForCausalLM.from_config(hf_config, dtype=dtype)
        self.model.eval().requires_grad_(False)
        self.max_model_len = self.config.max_model_len or self.config.prompt_length + self.config.response_length
        self.eos_token_ids = self._find_eos_token_ids()
        self.pad_token_id = min(self.eos_token_ids, default=0)

        self._ordinals: Counter[tuple[int, ...]] = Counter()
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._decoder: asyncio.Task | None = None
        # One thread for everything that touches the model: a weight sync never meets a running wave.
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._sync: WeightSync | None = None
        self._failure: Exception | None = None

    def _find_eos_token_ids(self) -> frozenset[int]:
        """Every token that ends a response: those of the generation config (or model config) and the tokenizer's."""
        generation_config = self.model_config.generation_config
        declared = getattr(generation_config, "eos_token_id", None)
        if declared is None:
            declared = self.model_config.hf_config.eos_token_id
        ids = set(declared) if isinstance(declared, (list, tuple)) else {declared}
        ids.add(self.model_config.tokenizer.eos_token_id)
        return frozenset(token for token in ids if token is not None)

    def _raise_failure(self) -> None:
        """Fail calls that come after an error."""
        if self._failure is not None:
            raise RuntimeError("the rollout server failed before") from self._failure

    def _raise_unready(self) -> None:
        """Fail calls for tokens that cannot be sampled."""
        self._raise_failure()
        if not self._ready:
            raise RuntimeError("the rollout model has no weights yet: rollout.load_format=dummy and no weight sync")

    async def _run(self, function: Any, *args: Any) -> Any:
        """Run `function` in the model's thread; remember its failure."""
        self._raise_failure()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)
        except Exception as error:
            self._failure = error
            raise

    def _request(self, prompt_ids: list[int], sampling_params: dict[str, Any]) -> sampler.Request:
        """Turn what an agent loop sends into a request, with the limits vLLM's server applies."""
        room = self.max_model_len - len(prompt_ids)
        if room < 1:
            raise ValueError(
                f"a prompt of {len(prompt_ids)} tokens leaves no room to generate within "
                f"rollout.max_model_len={self.max_model_len}"
            )
        given = dict(sampling_params)
        given.pop("logprobs", None)
        identity = given.pop("seed", None)
        limit = room
        if given.get("max_tokens", given.get("max_new_tokens")) is None:
            configured = self.config.prompt_length + self.config.response_length - len(prompt_ids)
            limit = min(room, self.config.response_length, configured)
        params = sampler.parse_sampling_params(given, max_tokens=limit, ignore_eos=self.config.ignore_eos)
        prompt = tuple(prompt_ids)
        if identity is None:
            identity = f"ordinal {self._ordinals[prompt]}"
            self._ordinals[prompt] += 1
        seed = sampler.stream_seed(self.config.seed, self.global_steps, prompt, identity)
        return sampler.Request(prompt_ids=prompt, params=params, seed=seed)

    async def generate(
        self,
        prompt_ids: list[int],
        sampling_params: dict[str, Any],
        request_id: str,
        image_data: list[Any] | None = None,
        video_data: list[Any] | None = None,
    ) -> TokenOutput:
        """Continue one prompt; the signature is that of veRL's rollout servers for text."""
        if image_data or video_data:
            raise ValueError("the rollout named hf takes text only")
        self._raise_unready()
        request = self._request(normalize_token_ids(prompt_ids), sampling_params)
        if self._decoder is None:
            self._decoder = asyncio.create_task(self._decode_waves())
        result: asyncio.Future = asyncio.get_running_loop().create_future()
        global_steps = self.global_steps
        self._queue.put_nowait(_Waiting(request, result))
        return _token_output(await result, sampling_params, global_steps)

    async def generate_batch(
        self, prompts: list[list[int]], sampling_params: list[dict[str, Any]]
    ) -> list[TokenOutput | Exception]:
        """Continue many prompts; the answer to a request that cannot be served is its error.

        Waves are cut in the order given, so that the same call computes the same bits.
        """
        self._raise_unready()
        answers: list[TokenOutput | Exception] = []
        requests: dict[int, sampler.Request] = {}
        for row, (prompt_ids, params) in enumerate(zip(prompts, sampling_params, strict=True)):
            try:
                requests[row] = self._request(normalize_token_ids(prompt_ids), params)
            except ValueError as error:
                answers.append(error)
            else:
                answers.append(TokenOutput(token_ids=[]))
        global_steps, rows = self.global_steps, list(requests)
        for first in range(0, len(rows), self.config.max_num_seqs):
            wave = rows[first : first + self.config.max_num_seqs]
            completions = await self._run(self._decode, [requests[row] for row in wave])
            for row, completion in zip(wave, completions, strict=True):
                answers[row] = _token_output(completion, sampling_params[row], global_steps)
        return answers

    async def _next_wave(self) -> list[_Waiting]:
        """Wait for requests, then for a pause in their arrival."""
        wave = [await self._queue.get()]
        while len(wave) < self.config.max_num_seqs:
            try:
                wave.append(await asyncio.wait_for(self._queue.get(), QUIET_S))
            except asyncio.TimeoutError:
                break
        return wave

    async def _decode_waves(self) -> None:
        """Decode wave after wave; after a failure, pass it to all that wait."""
        while True:
            wave = await self._next_wave()
            try:
                completions = await self._run(self._decode, [waiting.request for waiting in wave])
            except Exception as error:
                for waiting in wave:
                    waiting.result.set_exception(error)
                continue
            for waiting, completion in zip(wave, completions, strict=True):
                waiting.result.set_result(completion)

    def _decode(self, requests: list[sampler.Request]) -> list[sampler.Completion]:
        """One wave, in the model's thread."""
        return sampler.generate(self.model, requests, eos_token_ids=self.eos_token_ids, pad_token_id=self.pad_token_id)

    async def load_weights(self, weights: list[tuple[str, torch.Tensor]]) -> None:
        """Take one bucket of a weight sync."""
        if self._sync is None:
            self._sync = WeightSync(self.model)
        self._ready = False
        await self._run(self._sync.load, weights)

    async def finish_weights(self, global_steps: int | None) -> int:
        """Check that all weights arrived; return their number."""
        sync, self._sync = self._sync or WeightSync(self.model), None
        count = await self._run(sync.finish)
        self._ready = True
        self._ordinals.clear()
        if global_steps is not None:
            self.global_steps = global_steps
        return count

    async def wake_up(self, tags: list[str] | None = None) -> None:
        """Nothing was released."""
        self._raise_failure()

    async def sleep(self) -> None:
        """Nothing is held between waves; the trainer calls this after each batch and so learns of errors."""
        self._raise_failure()

    async def clear_kv_cache(self) -> None:
        """No cache outlives a wave."""

    async def release_kv_cache(self) -> None:
        """No cache outlives a wave."""

    async def resume_kv_cache(self) -> None:
        """No cache outlives a wave."""

    async def abort_all_requests(self, reject_request: bool = False) -> None:
        """Only asynchronous trainers abort."""
        raise NotImplementedError("the rollout named hf serves trainer.v1.trainer_mode=sync and its kind only")

    async def resume_generation(self) -> None:
        """Only asynchronous trainers abort and resume."""
        raise NotImplementedError("the rollout named hf serves trainer.v1.trainer_mode=sync and its kind only")

    async def start_profile(self, **kwargs: Any) -> None:
        """No profiler in the server."""

    async def stop_profile(self) -> None:
        """No profiler in the server."""


class HFReplica(RolloutReplica):
    """veRL's handle on one `HFServer`."""

    async def launch_servers(self) -> None:
        """Start the actor."""
        if self.world_size != 1:
            raise ValueError(
                "rollout.name=hf: every replica has one rank; set rollout.tensor_model_parallel_size, "
                f"data_parallel_size and pipeline_model_parallel_size to 1 (their product is {self.world_size})"
            )
        name = server_name(self.config.name, self.replica_rank)
        actor_class: Any = ray.remote(HFServer)
        server = actor_class.options(name=name, num_cpus=1, max_concurrency=self.max_concurrency).remote(
            self.config, self.model_config, self.replica_rank
        )
        await server.wake_up.remote()
        self.servers = [server]
        self._server_handle = server
        self._server_address = name


def server_name(rollout_name: str | None, replica_rank: int) -> str:
    """Name under which worker and replica find the actor."""
    return f"{rollout_name}_server_{replica_rank}_0"


class HFServerAdapter(BaseRollout):
    """Lives in a training worker and sends its weights to the replica of the same rank."""

    def __init__(self, config: RolloutConfig, model_config: HFModelConfig, device_mesh: Any) -> None:
        """The actor starts later than the worker; it is looked up at the first use."""
        super().__init__(config, model_config, device_mesh)
        self._name = server_name(self.config.name, int(os.environ["RANK"]))

    async def resume(self, tags: list[str]) -> None:
        """Nothing was released."""

    async def release(self) -> None:
        """Nothing is held."""

    @torch.no_grad()
    async def update_weights(
        self,
        weights: Iterable[tuple[str, torch.Tensor]],
        wire_format: str = "named_tensors",
        *,
        global_steps: int | None = None,
        peft_config: dict | None = None,
        base_sync_done: bool = True,
    ) -> None:
        """Send every tensor; all ranks iterate over `weights` together, because gathering one is collective."""
        if wire_format != "named_tensors":
            raise NotImplementedError(f"rollout.name=hf cannot read the wire format {wire_format!r}")
        if peft_config is not None:
            raise NotImplementedError("rollout.name=hf has no LoRA adapters; set model.lora.merge=True")
        server = ray.get_actor(self._name)
        max_bytes = self.config.checkpoint_engine.update_weights_bucket_megabytes << 20
        sent = 0
        for bucket in buckets(weights, max_bytes):
            await server.load_weights.remote(bucket)
            sent += len(bucket)
        received = await server.finish_weights.remote(global_steps)
        if received != sent:
            raise RuntimeError(f"weight sync: sent {sent} tensors, the rollout server counts {received}")
        logger.info("weight sync of step %s: %d tensors to %s", global_steps, received, self._name)
