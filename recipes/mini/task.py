"""What a task of the mini suite is: questions, right responses in several forms, slips, and a verifier.

The suite's tasks share one model size, one warm-up and one data format; a task says only what is its own. Questions
are split by a hash, so that warm-up, training, validation and test never share one, nor a rearrangement of one.
"""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

DEMONSTRATION_PHRASE = "Correct solution:"
RETRY_PHRASE = "Correctly solve the original question."

# Sixteenths of the question space.
_SPLIT_OF_BUCKET = ("test",) * 2 + ("validation",) * 1 + ("train",) * 5 + ("warmup",) * 8
SPLITS = ("warmup", "train", "validation", "test")

Messages = list[dict[str, str]]
Form = dict[str, Any]
"""How a right response is written; the keyword arguments of `Task.respond`."""


class Question(NamedTuple):
    """The user message, and what the verifier compares with."""

    text: str
    ground_truth: str


def split_of(canonical: str) -> str:
    """The one split that every question with this canonical text belongs to."""
    return _SPLIT_OF_BUCKET[hashlib.sha256(canonical.encode()).digest()[0] % len(_SPLIT_OF_BUCKET)]


class Task(ABC):
    """A family of questions with a verifier."""

    name: ClassVar[str]
    """On the command line and in folder names."""
    data_source: ClassVar[str]
    system_prompt: ClassVar[str]
    phrases: ClassVar[tuple[str, ...]] = ()
    """Texts of several characters that are one token each."""
    characters: ClassVar[str]
    """Texts of one character that are one token each."""
    max_prompt_tokens: ClassVar[int]
    max_response_tokens: ClassVar[int]
    """More than any right response has, so that a cut response is never taken for a finished one."""
    noise: ClassVar[float]
    """Probability of a slip in each step of a warm-up response: what leaves room to learn."""
    has_demonstrations: ClassVar[bool] = True

    @abstractmethod
    def draw(self, rng: random.Random) -> Question:
        """A question of any split."""

    @abstractmethod
    def canonical(self, question: str) -> str:
        """The same text for a question and its rearrangements."""

    @abstractmethod
    def draw_form(self, rng: random.Random) -> Form:
        """How to write a response."""

    @abstractmethod
    def respond(self, question: str, *, slip: Slip, **form: Any) -> str:
        """A response in a form; with slips, a wrong one now and then, which goes on from what it wrote."""

    def sample(self, split: str, rng: random.Random) -> Question:
        """A question of one split."""
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        while True:
            question = self.draw(rng)
            if split_of(self.canonical(question.text)) == split:
                return question

    def questions(self, split: str, count: int, seed: int) -> list[Question]:
        """`count` different questions of one split, the same ones for the same seed.

        Raises ValueError where the split seems to hold fewer: a hundred times as many draws did not find them.
        """
        rng = random.Random(f"{self.name}-{split}-{seed}")
        chosen: dict[str, Question] = {}
        for _ in range(100 * count):
            question = self.sample(split, rng)
            chosen.setdefault(question.text, question)
            if len(chosen) == count:
                return list(chosen.values())
        raise ValueError(f"{self.name}: {count} different questions of split {split!r} were not found")

    def messages(self, question: str, demonstration: str | None = None) -> Messages:
        """The chat of a question, or with a demonstration the self-teacher's."""
        if demonstration is not None:
            question = f"{question}\n\n{DEMONSTRATION_PHRASE}\n\n{demonstration}\n\n{RETRY_PHRASE}\n"
        return [{"role": "system", "content": self.system_prompt}, {"role": "user", "content": question}]


class Slip:
    """Decides at every step of a response whether it goes wrong."""

    def __init__(self, probability: float, rng: random.Random):
        self.probability, self.rng = probability, rng

    def __bool__(self) -> bool:
        """Whether this step slips; every look is another draw."""
        return self.probability > 0 and self.rng.random() < self.probability


def no_slip() -> Slip:
    """Every step is right."""
    return Slip(0.0, random.Random(0))
