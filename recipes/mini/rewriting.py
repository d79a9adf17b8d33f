"""A::B programs of reasoning-gym: rewrite neighbours until nothing is left to rewrite.

A program is a row of the four tokens ``A#``, ``B#``, ``#A``, ``#B``. Neighbours whose # face each other are rewritten:
A# #A and B# #B vanish, A# #B becomes #B A#, B# #A becomes #A B#. Here a token is one letter: ``A`` and ``B`` for A#
and B# (they look right), ``a`` and ``b`` for #A and #B (they look left). The result does not depend on the order of
the rewriting, so that there are many right ways: leftmost pair first, rightmost first, all pairs at once, or the
result alone. Nothing keeps a response from repeating a state: this is a task in which responses can grow.
"""

from __future__ import annotations

import random
from functools import cached_property
from typing import Any, ClassVar

from recipes.mini.task import Question, Slip, Task
from recipes.mini.verifier import FINAL

LETTERS = {"A#": "A", "B#": "B", "#A": "a", "#B": "b"}
RULES = {"Aa": "", "Bb": "", "Ab": "bA", "Ba": "aB"}
ORDERS = ("leftmost", "rightmost", "all", "none")
SEPARATORS = (">", "/", "|")


def pairs(state: str) -> list[int]:
    """Where the rewritable pairs of a state begin; no two of them overlap."""
    return [index for index in range(len(state) - 1) if state[index : index + 2] in RULES]


def _rewrite(state: str, places: list[int], slip: Slip) -> str:
    """Rewrite the pairs at these places; a slip takes a wrong rule."""
    for index in reversed(places):
        right = RULES[state[index : index + 2]]
        replacement = slip.rng.choice([text for text in RULES.values() if text != right]) if slip else right
        state = state[:index] + replacement + state[index + 2 :]
    return state


class Rewriting(Task):
    """``AabBA`` to ``AabBA>bBA#bBA``."""

    name, data_source = "rewriting", "mini/rewriting"
    system_prompt = "Rewrite until nothing changes."
    characters = "ABab" + FINAL + "".join(SEPARATORS)
    max_prompt_tokens, max_response_tokens = 16, 96
    noise = 0.25
    length: ClassVar[int] = 7
    order_shares: ClassVar[tuple[float, ...]] = (0.35, 0.30, 0.25, 0.10)

    @cached_property
    def _programs(self) -> Any:
        from reasoning_gym.algorithmic.ab import ABConfig, ABDataset

        return ABDataset(ABConfig(seed=0, size=2**31, length=self.length))

    def draw(self, rng: random.Random) -> Question:
        entry = self._programs[rng.randrange(2**31)]
        program = entry["question"].split("consider the following program:\n\n")[1].split("\n")[0]
        return Question(*("".join(LETTERS[token] for token in text.split()) for text in (program, entry["answer"])))

    def canonical(self, question: str) -> str:
        # Exchanging A with B, or reading backwards, gives the same program in other signs.
        exchanged = question.translate(str.maketrans("ABab", "BAba"))
        mirrored = [text[::-1].swapcase() for text in (question, exchanged)]
        return min(question, exchanged, *mirrored)

    def draw_form(self, rng: random.Random) -> dict[str, Any]:
        return {"order": rng.choices(ORDERS, self.order_shares)[0], "separator": rng.choice(SEPARATORS)}

    def respond(self, question: str, *, slip: Slip, order: str, separator: str) -> str:  # type: ignore[override]
        states = [question]
        while places := pairs(states[-1]):
            chosen = {"leftmost": places[:1], "rightmost": places[-1:]}.get(order, places)
            states.append(_rewrite(states[-1], chosen, slip))
        shown = states[:0] if order == "none" else states[1:]
        return separator.join(shown) + FINAL + states[-1]
