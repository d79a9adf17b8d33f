"""Correct responses of earlier steps, by prompt, to demonstrate where no sibling is correct."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from srpo_verl.whole_file import write_whole

FILE_NAME = "srpo_memory.json"


def remove_stale(checkpoints: str | Path) -> None:
    """Remove the memories of checkpoints whose actor veRL has removed (trainer.max_actor_ckpt_to_keep)."""
    for path in Path(checkpoints).glob(f"global_step_*/{FILE_NAME}"):
        if not (path.parent / "actor").exists():
            path.unlink()


def prompt_id(messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] = ()) -> str:
    """What a prompt is remembered by: a digest of conversation and tools, the same in every epoch and every run."""
    prompt = [list(messages), list(tools)] if tools else list(messages)
    text = json.dumps(prompt, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class SuccessMemory:
    """Up to `per_prompt` correct responses for each of up to `max_prompts` prompts; the oldest go first.

    A prompt is as old as its last new response. Responses are texts, as a teacher's prompt shows them.
    """

    def __init__(self, per_prompt: int, max_prompts: int):
        self.per_prompt, self.max_prompts = per_prompt, max_prompts
        self._texts: dict[str, list[str]] = {}  # newest first; prompts in the order of their last response

    def add(self, prompt: str, texts: Iterable[str]) -> int:
        """Remember correct responses, in the order they came; return how many prompts were forgotten for it."""
        known = self._texts.pop(prompt, [])
        for text in texts:
            known = [text, *(other for other in known if other != text)]
        self._texts[prompt] = known[: self.per_prompt]
        forgotten = max(0, len(self._texts) - self.max_prompts)
        for oldest in list(self._texts)[:forgotten]:
            del self._texts[oldest]
        return forgotten

    def newest(self, prompt: str, other_than: str | None = None) -> str | None:
        """The newest response to the prompt whose text is another one than the row's own; None: there is none."""
        return next((text for text in self._texts.get(prompt, []) if text != other_than), None)

    def __contains__(self, prompt: str) -> bool:
        return prompt in self._texts

    @property
    def prompts(self) -> int:
        return len(self._texts)

    @property
    def responses(self) -> int:
        return sum(map(len, self._texts.values()))

    def save(self, folder: str | Path) -> None:
        """Write the memory into a checkpoint's folder, whole or not at all."""
        write_whole(Path(folder) / FILE_NAME, json.dumps(self._texts) + "\n")

    def load(self, folder: str | Path) -> None:
        """Go on with what `save` wrote, within this memory's own bounds.

        Raises:
            FileNotFoundError, ValueError: there is no memory in the checkpoint, or none that can be read; with what to
                do about it.
        """
        path = Path(folder) / FILE_NAME
        remedy = "resume without memory in srpo.demonstration.sources, or from another checkpoint"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: this checkpoint was written by a run without a success memory; {remedy}")
        try:
            texts = json.loads(path.read_text(encoding="utf-8"))
            right = isinstance(texts, dict) and all(
                isinstance(known, list) and all(isinstance(text, str) for text in known) for known in texts.values()
            )
        except ValueError:
            right = False
        if not right:
            raise ValueError(f"{path}: no success memory; {remedy}")
        kept = list(texts.items())[-self.max_prompts :]
        self._texts = {prompt: known[: self.per_prompt] for prompt, known in kept}
