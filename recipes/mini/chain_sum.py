"""Chain sums of reasoning-gym: ``47 - 12 + 35``, worked out in steps, in one of four ways.

====== ===========================
left   ``47-12=35;35+35=70;#70``
right  ``-12+35=23;47+23=70;#70``
signs  ``47+35=82;82-12=70;#70``
terse  ``#70``
====== ===========================
"""

from __future__ import annotations

import random
import re
from functools import cached_property
from typing import Any, ClassVar

from recipes.mini.task import Question, Slip, Task
from recipes.mini.verifier import FINAL

STYLES = ("left", "right", "signs", "terse")
SEPARATORS = (";", ",", "|")


def terms(question: str) -> list[int]:
    """The signed terms."""
    return [int(term) for term in re.findall(r"[+-]?\d+", question)]


class ChainSum(Task):
    """Four or five terms of one digit."""

    name, data_source = "chain_sum", "mini/chain_sum"
    system_prompt = "State the final answer."
    characters = "0123456789+-=" + FINAL + "".join(SEPARATORS)
    max_prompt_tokens, max_response_tokens = 32, 64
    noise = 0.1
    num_terms: ClassVar[tuple[int, int]] = (4, 5)
    max_digits: ClassVar[int] = 1
    style_shares: ClassVar[tuple[float, ...]] = (0.40, 0.25, 0.25, 0.10)

    @cached_property
    def _problems(self) -> Any:
        from reasoning_gym.arithmetic.chain_sum import ChainSumConfig, ChainSumDataset

        low, high = self.num_terms
        return ChainSumDataset(
            ChainSumConfig(seed=0, size=2**31, min_terms=low, max_terms=high, max_digits=self.max_digits)
        )

    def draw(self, rng: random.Random) -> Question:
        entry = self._problems[rng.randrange(2**31)]
        text = entry["question"].partition(": ")[2].removesuffix("=").replace(" ", "")
        return Question(text, entry["answer"])

    def canonical(self, question: str) -> str:
        return repr(sorted(terms(question)))

    def draw_form(self, rng: random.Random) -> dict[str, Any]:
        return {"style": rng.choices(STYLES, self.style_shares)[0], "separator": rng.choice(SEPARATORS)}

    def respond(self, question: str, *, slip: Slip, style: str, separator: str) -> str:  # type: ignore[override]
        numbers = terms(question)
        if style == "signs":
            numbers = sorted(numbers, key=lambda number: number < 0)
        steps: list[str] = []

        def add(one: int, other: int) -> int:
            total = one + other
            if slip:
                # A digit off: what a model that adds digit by digit does.
                total += slip.rng.choice((-10, -1, 1, 10))
            steps.append(f"{one}{other:+d}={total}")
            return total

        if style == "right":
            total = numbers[-1]
            for number in reversed(numbers[:-1]):
                total = add(number, total)
        else:
            total = numbers[0]
            for number in numbers[1:]:
                total = add(total, number)
        return f"{FINAL}{total}" if style == "terse" else separator.join([*steps, f"{FINAL}{total}"])
