"""Prompts against the student's limit, and the teacher's prompts against the teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from srpo_verl.preflight.settings import DataSettings
from srpo_verl.preflight.template import Renderer
from srpo_verl.teacher.reprompt import with_solution

SHARE_OF_RESPONSE = 8
"""A teacher's prompt has to have room for a demonstration of at least this fraction of data.max_response_length.

Correct responses are mostly far shorter than the limit, so that the whole of it is too much to ask for; with less than
an eighth, what is left of nearly every demonstration is its beginning.
"""

SLACK = 64


@dataclass(frozen=True)
class Teacher:
    """How long a teacher's prompt gets.

    Attributes:
        limit: srpo.demonstration.max_prompt_tokens.
        feedback: the longest feedback there can be, or None.
        room: tokens of a demonstration that have to fit.
    """

    limit: int
    feedback: str | None
    room: int

    def may_lack(self, room: int, student: int) -> bool:
        """Whether there may be no room for so many tokens beside a student's prompt of so many.

        No tokenizer makes more tokens of a text than it has bytes. Where the added text meets the question, tokens of
        the question may change as well; `SLACK` is for those.
        """
        added = with_solution([{"role": "user", "content": ""}], "", self.feedback)[0]["content"]
        return student + len(added.encode()) + SLACK + room > self.limit


def teacher_of(settings: DataSettings, feedback_texts: Sequence[str] | None, renderer: Renderer) -> Teacher | None:
    """None without a teacher. Feedback counts with the longest text that the verifier can give, if it says which."""
    if settings.teacher_limit is None:
        return None
    texts = feedback_texts or () if settings.feedback else ()
    longest = max(texts, key=lambda text: len(renderer.tokenizer(text)["input_ids"]), default=None)
    room = max(1, settings.max_response // SHARE_OF_RESPONSE) if settings.demonstrates else 0
    return Teacher(settings.teacher_limit, longest, room)


def whole_lengths(
    conversations: Sequence[Any], references: Sequence[str], teacher: Teacher, renderer: Renderer
) -> list[int | str]:
    """Tokens of every teacher's prompt with the whole of the row's own reference."""
    pairs = zip(conversations, references, strict=True)
    return renderer.lengths([with_solution(messages, reference, teacher.feedback) for messages, reference in pairs])


def bare_lengths(conversations: Sequence[Any], teacher: Teacher, renderer: Renderer) -> list[int | str]:
    """Tokens of every teacher's prompt with all its parts and an empty demonstration."""
    return renderer.lengths([with_solution(messages, "", teacher.feedback) for messages in conversations])


def room_problem(bare: int | str, teacher: Teacher) -> str | None:
    """Why this question leaves no room, or None."""
    if isinstance(bare, str):
        return f"the teacher's prompt does not render: {bare}"
    parts = "question, feedback and closing instruction" if teacher.feedback else "question and closing instruction"
    if bare > teacher.limit:
        return f"{parts} take {bare} tokens"
    if bare + teacher.room > teacher.limit:
        return f"{parts} take {bare} tokens and leave {teacher.limit - bare} for a demonstration"
    return None
