"""One row: are its messages a prompt, and does its verifier read its ground truth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from srpo_verl.preflight.reward import Verifier

MEDIA = ("images", "videos", "audios")
"""Columns whose contents veRL puts into the messages, by its default names."""


def prompt_problem(messages: Any) -> str | None:
    """Why this is no conversation to answer, or None."""
    if not isinstance(messages, list) or not messages:
        return "the prompt holds no message"
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            return f"message {number} is {message!r:.80}"
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not role:
            return f"message {number} has the role {role!r:.80}"
        if role in ("system", "user") and (content is None or content == "" or content == []):
            return f"message {number}, of role {role}, is empty"
    if messages[-1]["role"] == "assistant":
        return "the last message is the assistant's"
    return None


def is_plain_text(row: Mapping[str, Any], messages: list[Mapping[str, Any]]) -> bool:
    """Whether token counts need the tokenizer alone."""
    return not any(row.get(column) for column in MEDIA) and all(
        message.get("content") is None or isinstance(message["content"], str) for message in messages
    )


def teacher_problem(row: Mapping[str, Any], messages: list[Mapping[str, Any]]) -> str | None:
    """Why no demonstration could be added to these messages (teacher/reprompt.py), or None."""
    last = messages[-1]
    if last["role"] != "user":
        return f"the last message is of role {last['role']!r:.80}"
    if not isinstance(last["content"], str) or not is_plain_text(row, [last]):
        return "the last message is not plain text"
    return None


def ground_truth_problem(row: Mapping[str, Any], verifier: Verifier) -> str | None:
    """What the verifier says against data source and ground truth, or None; None as well if it cannot be asked."""
    source, reward = row.get("data_source"), row.get("reward_model")
    if not isinstance(source, str) or not source:
        return f"data_source={source!r:.80}"
    if not isinstance(reward, Mapping):
        return f"reward_model={reward!r:.80}"
    if verifier.validate is None:
        return None
    try:
        verifier.validate(source, reward.get("ground_truth"))
    except Exception as error:
        return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    return None
