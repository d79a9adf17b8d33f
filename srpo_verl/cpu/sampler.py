"""Autoregressive sampling with a key-value cache, one random stream per request. Pure torch and transformers.

What a request samples depends on its own random stream, prompt and parameters alone; which other requests share its
batch changes the logits by rounding only (left padding), about 1e-6 in fp32.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from srpo_verl.cpu.kv_cache import close_gaps, spread

STOP = "stop"
LENGTH = "length"


@dataclass(frozen=True)
class SamplingParams:
    """How one request is sampled."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        """Refuse values that have no meaning."""
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens={self.max_tokens}: at least one token must be generated")
        if self.temperature < 0:
            raise ValueError(f"temperature={self.temperature}: must be 0 (greedy) or positive")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: must lie in (0, 1]")
        if self.top_k < -1:
            raise ValueError(f"top_k={self.top_k}: must be positive, or -1 or 0 for off")


@dataclass(frozen=True)
class Request:
    """One prompt to continue; `seed` determines its whole random stream."""

    prompt_ids: tuple[int, ...]
    params: SamplingParams
    seed: int


@dataclass(frozen=True)
class Completion:
    """Sampled tokens, their log-probabilities under softmax(logits / temperature), and why sampling ended."""

    token_ids: list[int]
    log_probs: list[float]
    finish_reason: str


def stream_seed(seed: int, version: object, prompt_ids: Iterable[int], identity: object) -> int:
    """63-bit seed of a request's random stream, the same in every process.

    Args:
        seed: the run's seed.
        version: version of the weights (training step of the last weight sync).
        prompt_ids: the prompt's tokens.
        identity: what tells apart requests with the same prompt: a session's number, or an ordinal.
    """
    digest = hashlib.blake2b(digest_size=8)
    digest.update(f"{seed}/{version}/{identity}/".encode())
    digest.update(",".join(map(str, prompt_ids)).encode())
    return int.from_bytes(digest.digest(), "big") >> 1


def keep_top(logits_V: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """Mask (-inf) all but the `top_k` largest logits, then all but the smallest set of probability >= `top_p`."""
    if top_k <= 0 and top_p >= 1:
        return logits_V
    ordered_V, ids_V = logits_V.sort(descending=True, stable=True)
    if top_k > 0:
        ordered_V[top_k:] = -torch.inf
    probs_V = ordered_V.softmax(-1)
    # A token goes when those before it already reach top_p; the first one always stays.
    ordered_V[probs_V.cumsum(-1) - probs_V >= top_p] = -torch.inf
    return torch.empty_like(logits_V).scatter_(0, ids_V, ordered_V)


def choose(
    logits_BV: torch.Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]
) -> tuple[list[int], list[float]]:
    """Next token of each row, and its log-probability under softmax(logits / temperature).

    A row's token is where the cumulative distribution first exceeds the row's number in [0, 1). Greedy rows
    (temperature 0) report the log-probability at temperature 1. The reported log-probability is that of the whole
    vocabulary, also under top-k or top-p: it is what the trainer recomputes.
    """
    temperature_B1 = torch.tensor([[row.temperature or 1.0] for row in params])
    scaled_BV = logits_BV / temperature_B1
    log_probs_BV = scaled_BV.log_softmax(-1)
    for row, param in enumerate(params):
        if param.top_k > 0 or param.top_p < 1:
            scaled_BV[row] = keep_top(scaled_BV[row], param.top_k, param.top_p)
    cumulative_BV = scaled_BV.double().softmax(-1).cumsum(-1)
    targets_B1 = torch.tensor(uniforms, dtype=torch.float64).unsqueeze(1) * cumulative_BV[:, -1:]
    # Strictly greater: a token of probability zero has the same cumulative value as the one before it.
    sampled_B1 = torch.searchsorted(cumulative_BV, targets_B1, right=True).clamp(max=logits_BV.shape[1] - 1)
    greedy_B1 = torch.tensor([[row.temperature == 0] for row in params])
    tokens_B1 = torch.where(greedy_B1, logits_BV.argmax(-1, keepdim=True), sampled_B1)
    return tokens_B1.squeeze(1).tolist(), log_probs_BV.gather(1, tokens_B1).squeeze(1).tolist()


def _uniforms(request: Request) -> list[float]:
    """The request's random numbers, one for each token it may generate."""
    generator = torch.Generator().manual_seed(request.seed)
    return torch.rand(request.params.max_tokens, generator=generator, dtype=torch.float64).tolist()


def _left_pad(prompts: list[tuple[int, ...]], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids_BP, mask_BP): prompts aligned on the right, so that all rows continue at the same column."""
    width = max(map(len, prompts))
    ids_BP = torch.full((len(prompts), width), pad_token_id)
    mask_BP = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids_BP[row, width - len(prompt) :] = torch.tensor(prompt)
        mask_BP[row, width - len(prompt) :] = 1
    return ids_BP, mask_BP


@torch.inference_mode()
def generate(
    model: PreTrainedModel, requests: list[Request], *, eos_token_ids: frozenset[int], pad_token_id: int
) -> list[Completion]:
    """Continue all requests as one batch; a row leaves the batch when it ends.

    Args:
        model: a causal language model in eval mode.
        requests: non-empty prompts with their parameters and seeds.
        eos_token_ids: tokens that end a row (they are part of the completion), unless its params ignore them.
        pad_token_id: any valid token; it is masked.

    Raises:
        ValueError: an empty prompt.
        FloatingPointError: logits that are not finite.
    """
    if not requests:
        return []
    tokens: list[list[int]] = [[] for _ in requests]
    log_probs: list[list[float]] = [[] for _ in requests]
    reasons = [LENGTH] * len(requests)
    uniforms = [_uniforms(request) for request in requests]

    rows = list(range(len(requests)))  # the request that each row of the batch belongs to
    prompts_B, ids_BP, mask_BP = _distinct_prompts(requests, pad_token_id)
    positions_BP = (mask_BP.cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    is_prompt = True
    while True:
        output = model(
            input_ids=ids_BP,
            attention_mask=mask_BP,
            position_ids=positions_BP,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits_BV = output.logits[:, -1].float()
        if is_prompt:
            spread(cache, prompts_B)
            logits_BV, mask_BP, positions_BP = logits_BV[prompts_B], mask_BP[prompts_B], positions_BP[prompts_B]
            is_prompt = False
        if not logits_BV.isfinite().all():
            raise FloatingPointError("the rollout model's logits are not finite")

        going = []
        chosen, chosen_log_probs = choose(
            logits_BV,
            [requests[index].params for index in rows],
            [uniforms[index][len(tokens[index])] for index in rows],
        )
        for row, index in enumerate(rows):
            tokens[index].append(chosen[row])
            log_probs[index].append(chosen_log_probs[row])
            if chosen[row] in eos_token_ids and not requests[index].params.ignore_eos:
                reasons[index] = STOP
            elif len(tokens[index]) < requests[index].params.max_tokens:
                going.append(row)
        if not going:
            return [Completion(*row) for row in zip(tokens, log_probs, reasons, strict=True)]

        if len(going) < len(rows):
            order = close_gaps(cache, going)
            mask_BP, positions_BP = mask_BP[order], positions_BP[order]
            rows = [rows[row] for row in order]
        ids_BP = torch.tensor([[tokens[index][-1]] for index in rows])
        mask_BP = torch.cat([mask_BP, mask_BP.new_ones(len(rows), 1)], dim=1)
        positions_BP = positions_BP[:, -1:] + 1


def _distinct_prompts(requests: list[Request], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each prompt once, whoever shares it: (which one every request has, their ids and mask, left-padded)."""
    if not all(request.prompt_ids for request in requests):
        raise ValueError("a prompt has no tokens")
    number = {prompt: place for place, prompt in enumerate(dict.fromkeys(request.prompt_ids for request in requests))}
    prompts_B = torch.tensor([number[request.prompt_ids] for request in requests])
    return prompts_B, *_left_pad(list(number), pad_token_id)


def parse_sampling_params(given: Mapping[str, Any], *, max_tokens: int, ignore_eos: bool) -> SamplingParams:
    """Sampling parameters from the dictionary an agent loop sends.

    Args:
        given: keys of vLLM's or SGLang's sampling parameters.
        max_tokens: bound on the tokens to generate; `given` may ask for fewer.
        ignore_eos: used where `given` does not say.

    Raises:
        ValueError: a key or value this sampler cannot honour.
    """
    given = dict(given)
    asked = [given.pop(key) for key in ("max_tokens", "max_new_tokens") if key in given]
    for key, neutral in (("repetition_penalty", 1.0), ("n", 1), ("stop", None)):
        value = given.pop(key, neutral)
        if value != neutral:
            raise ValueError(f"sampling parameter {key}={value!r} is not supported by the rollout named hf")
    params = SamplingParams(
        max_tokens=max(1, min([max_tokens, *(int(value) for value in asked if value is not None)])),
        temperature=float(given.pop("temperature", 1.0)),
        top_p=float(given.pop("top_p", 1.0)),
        top_k=int(given.pop("top_k", -1)),
        ignore_eos=bool(given.pop("ignore_eos", ignore_eos)),
    )
    if given:
        raise ValueError(f"sampling parameters {sorted(given)} are not supported by the rollout named hf")
    return params
