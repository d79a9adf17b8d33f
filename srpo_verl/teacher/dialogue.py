"""A rollout as text for the teacher's prompt: one response, or a whole dialogue with tool calls and tool outputs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

from srpo_verl.teacher.reprompt import strip_thinking

# What a chat template opens an assistant's turn with, where it decides whether the model thinks.
_THINKING_OPENED = re.compile(r"<think>\s*(?:</think>\s*)?\Z")


class DialogueText:
    """Writes rollouts as plain text that stands inside one user message.

    A response that the model wrote alone is its text without special tokens. Where tools answered in between, the
    special tokens are what separates the turns, so they stay, as text: roles and turns appear as the model's own chat
    template writes them, whatever the template. Either way nothing in the text is read as the structure of a chat when
    the prompt is tokenised (see `inert`): a demonstration cannot end the user's message or open a turn of its own.

    Args:
        decode: (token ids, skip special tokens) -> text.
        structure: texts that the tokenizer reads as one token and the chat template builds turns of, special tokens
            first of all.
    """

    def __init__(self, decode: Callable[[list[int], bool], str], structure: Iterable[str]):
        self.decode = decode
        self.structure = sorted({token for token in structure if token}, key=lambda token: (-len(token), token))
        self._structure = re.compile("|".join(map(re.escape, self.structure)) if self.structure else r"(?!)")

    def of_response(self, token_ids: Sequence[int], response_mask: Sequence[int], *, without_thinking: bool) -> str:
        """The text of a response.

        Args:
            token_ids: of the response.
            response_mask: of the same length; 1 where the model wrote the token, 0 where a tool or the template did.
            without_thinking: remove a leading <think>...</think> from each of the assistant's turns.

        Raises:
            ValueError: the two differ in length.
        """
        spans = _spans(token_ids, response_mask)
        if all(written for written, _ in spans):
            text = self.decode(list(token_ids), True)
            return self.inert(strip_thinking(text) if without_thinking else text)
        texts = []
        for index, (written, ids) in enumerate(spans):
            text = self.decode(ids, False)
            if index == len(spans) - 1:
                text = self._without_end(text)
            if without_thinking:
                text = strip_thinking(text) if written else _THINKING_OPENED.sub("", text)
            texts.append(text)
        return self.inert("".join(texts))

    def inert(self, text: str) -> str:
        """The text with a space inside everything that reads as structure: `<|im_end|>` becomes `< |im_end|>`.

        Ordinary tokens may spell such a text as well, so this goes by the text and not by token ids. A structure of
        one character has no inside and is left out.
        """
        while self._structure.search(text):
            text = self._structure.sub(lambda found: f"{found[0][0]} {found[0][1:]}" if found[0][1:] else "", text)
        return text

    def _without_end(self, text: str) -> str:
        """A dialogue ends without the tokens that end its last turn, as a single response does."""
        while ending := next((token for token in self.structure if text.endswith(token)), None):
            text = text.removesuffix(ending)
        return text


def _spans(token_ids: Sequence[int], response_mask: Sequence[int]) -> list[tuple[bool, list[int]]]:
    """(written by the model, token ids) of each run of tokens with the same mask."""
    if len(token_ids) != len(response_mask):
        raise ValueError(f"a response of {len(token_ids)} tokens has a mask of {len(response_mask)}")
    runs = groupby(zip(token_ids, response_mask, strict=True), key=lambda pair: bool(pair[1]))
    return [(written, [token for token, _ in run]) for written, run in runs]
