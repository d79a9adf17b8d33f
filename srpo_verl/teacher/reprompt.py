"""The teacher's prompt: the student's own conversation with a correct solution added (paper appendix B.5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

# The three parts the paper names, in its order. White space is ours: blank lines between the parts.
DEMONSTRATION_HEADER = "\n\nCorrect solution:\n\n"
FEEDBACK_HEADER = "\n\nFeedback on an earlier, unsuccessful attempt:\n\n"
CLOSING_INSTRUCTION = "\n\nCorrectly solve the original question.\n"

Messages = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Reprompt:
    """A tokenised teacher prompt; `truncated` says whether the demonstration had to be shortened."""

    token_ids: list[int]
    truncated: bool


def strip_thinking(text: str) -> str:
    """Remove one leading <think>...</think> block; the opening tag may be missing (it can stand in the prompt)."""
    thinking, closed, answer = text.partition("</think>")
    if not closed or "<think>" in thinking.lstrip().removeprefix("<think>"):
        return text
    return answer.lstrip()


def with_solution(messages: Messages, demonstration: str | None, feedback: str | None = None) -> list[dict[str, Any]]:
    """The conversation whose last user message also holds the demonstration and / or the feedback.

    System prompt and earlier turns stay as they are. Raises ValueError where the last message is not a user's text.
    """
    if not messages or messages[-1].get("role") != "user" or not isinstance(messages[-1].get("content"), str):
        raise ValueError(f"the prompt has to end with a user message of plain text, got {messages[-1:]!r}")
    content = messages[-1]["content"]
    if demonstration is not None:
        content += DEMONSTRATION_HEADER + demonstration
    if feedback:
        content += FEEDBACK_HEADER + feedback
    return [*messages[:-1], {**messages[-1], "content": content + CLOSING_INSTRUCTION}]


def build_reprompt(
    messages: Messages,
    demonstration: str | None,
    feedback: str | None,
    *,
    render: Callable[[Messages], list[int]],
    max_prompt_tokens: int,
) -> Reprompt:
    """Render the teacher's prompt within `max_prompt_tokens`, shortening the demonstration's end where it must.

    Question, closing instruction and the template's assistant header always stay whole. The demonstration is cut by
    characters: the longest prefix that fits is found by bisection on rendered lengths, so that the template's own
    tokenisation decides, not an estimate.

    Args:
        messages: the student's conversation.
        demonstration: a sibling's response as text, or None.
        feedback: the verifier's words on this attempt, or None.
        render: conversation -> token ids, with the student's chat template and its arguments.
        max_prompt_tokens: limit, in tokens.

    Raises:
        ValueError: even without any demonstration the prompt is longer than the limit.
    """
    token_ids = render(with_solution(messages, demonstration, feedback))
    if len(token_ids) <= max_prompt_tokens:
        return Reprompt(token_ids, truncated=False)

    fits, best = -1, token_ids
    too_long = len(demonstration or "")
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        candidate = render(with_solution(messages, (demonstration or "")[:middle], feedback))
        if len(candidate) <= max_prompt_tokens:
            fits, best = middle, candidate
        else:
            too_long = middle
    if fits < 0:
        raise ValueError(
            f"a teacher prompt has more than srpo.demonstration.max_prompt_tokens={max_prompt_tokens} tokens before "
            "any demonstration is added; raise that limit, lower data.max_prompt_length or shorten the feedback"
        )
    return Reprompt(best, truncated=True)
