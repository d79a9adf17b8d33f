"""Trainer side of the token sample: some rollouts of a step with their demonstrations, for the report's token view."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srpo_verl.config.schema import TokenSampleConfig
from srpo_verl.run_files import sample_path, sample_paths, write_json
from srpo_verl.verl_ext.router import Rollouts, RoutedBatch
from srpo_verl.verl_ext.token_recorder import Recorded

DIGITS = 4
"""Significant digits of a value on disk."""
TEXT_LIMIT = 20_000
"""Characters of a message or a demonstration that are kept."""
REPLACEMENT = "\ufffd"
"""What a tokenizer writes for part of a character."""
CHARACTER_TOKENS = 4
"""No character has more bytes, so what is still incomplete after so many tokens never was one."""


@dataclass(frozen=True)
class TokenSample:
    """The chosen rows of one step: their keys, in the order of their numbers, and what is known before the update."""

    step: int
    keys: list[str]
    prompts: list[dict[str, Any]]

    def numbers(self, keys: Sequence[str]) -> list[int]:
        """The number of every row in the sample, -1 for those that are not in it."""
        number = {key: index for index, key in enumerate(self.keys)}
        return [number.get(key, -1) for key in keys]


class TokenSampler:
    """Chooses the sample of a step, and writes it beside the run's log.

    Args:
        settings: srpo.token_sample.
        decode: token ids -> text, special tokens included.
    """

    def __init__(self, settings: TokenSampleConfig, decode: Callable[[Sequence[int]], str]):
        self.settings, self.decode = settings, decode

    def wants(self, step: int, last_step: int) -> bool:
        """Whether the step is sampled: the first, every k-th and the last one."""
        every = self.settings.every
        return every > 0 and (step % every == 0 or step in (1, last_step))

    def choose(self, step: int, rollouts: Rollouts, routed: RoutedBatch) -> TokenSample:
        """Whole groups up to the number of rollouts, those with most distilled rows first."""
        groups: dict[str, list[int]] = {}
        for row, uid in enumerate(rollouts.uids):
            groups.setdefault(uid, []).append(row)
        prompted = [reprompt is not None for reprompt in routed.reprompts]
        order = sorted(groups.values(), key=lambda rows: -sum(prompted[row] for row in rows))
        chosen: list[list[int]] = []
        left = self.settings.rollouts
        while order and left > 0:
            rows = sorted(order.pop(0), key=lambda row: not prompted[row])[:left]
            chosen.append(rows)
            left -= len(rows)
        return TokenSample(
            step,
            [rollouts.keys[row] for rows in chosen for row in rows],
            [self._prompt(rows, rollouts, routed) for rows in chosen],
        )

    def _prompt(self, rows: Sequence[int], rollouts: Rollouts, routed: RoutedBatch) -> dict[str, Any]:
        return {
            "messages": [_message(message) for message in rollouts.messages[rows[0]]],
            "rollouts": [self._rollout(row, rows, rollouts, routed) for row in rows],
        }

    def _rollout(self, row: int, rows: Sequence[int], rollouts: Rollouts, routed: RoutedBatch) -> dict[str, Any]:
        routing, shown, reprompt = routed.routing, routed.shown[row], routed.reprompts[row]
        sibling = int(routing.sibling_B[row])
        ids = rollouts.responses[row].tolist()
        return {
            "reward": _rounded(float(rollouts.rewards_B[row])),
            "correct": bool(routing.correct_B[row]),
            "grpo_share": _rounded(float(routing.grpo_share_B[row])),
            "sdpo_share": _rounded(float(routing.sdpo_share_B[row])),
            "demonstration": None
            if shown is None
            else {
                "source": shown.source,
                "text": (shown.text or "")[:TEXT_LIMIT],
                # Of this prompt's rollouts in the sample, where it is one of them.
                "rollout": rows.index(sibling) if shown.source == "sibling" and sibling in rows else None,
                "shortened": reprompt is not None and reprompt.truncated,
            },
            "feedback": rollouts.feedback[row][:TEXT_LIMIT],
            "length": len(ids),
            "tokens": token_texts(ids[: self.settings.tokens], self.decode),
        }

    def write(self, log: Path, sample: TokenSample, recorded: Iterable[Mapping[int, Recorded]]) -> None:
        """Join what the ranks recorded with the sample and write it; a rank's rows may come twice."""
        values: dict[int, Recorded] = {}
        for rows in recorded:
            values.update(rows)
        rollouts = [rollout for prompt in sample.prompts for rollout in prompt["rollouts"]]
        for number, rollout in enumerate(rollouts):
            for name, of_tokens in values.get(number, {}).items():
                rollout[name] = [_rounded(value) for value in of_tokens[: self.settings.tokens]]
        write_json(sample_path(log, sample.step), {"step": sample.step, "prompts": sample.prompts})


def forget_later(log: Path, done: int) -> None:
    """Remove the samples of steps that a run is going to make again, or that another run left."""
    for step, path in sample_paths(log).items():
        if step > done:
            path.unlink()


def token_texts(ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[str]:
    """The text of every token, so that all of them together are the text of the response.

    A character that takes several tokens belongs to the last of them; the others are empty.
    """
    texts: list[str] = []
    context, start = 0, 0
    for end in range(1, len(ids) + 1):
        # With the tokens before, because tokenizers drop the space before a first word.
        before, text = decode(ids[context:start]), decode(ids[context:end])
        if text.endswith(REPLACEMENT) and end < len(ids) and end - start < CHARACTER_TOKENS:
            texts.append("")
            continue
        texts.append(text[len(before) :])
        context, start = start, end
    return texts


def _message(message: Mapping[str, Any]) -> dict[str, str]:
    content = message.get("content")
    return {
        "role": str(message.get("role", "")),
        "content": (content if isinstance(content, str) else repr(content))[:TEXT_LIMIT],
    }


def _rounded(value: float) -> float | None:
    """None for a value that JSON does not have."""
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
