"""Last digit of a sum of products, the quickstart's task, with three products or with four."""

from __future__ import annotations

import random
from typing import Any, ClassVar

from recipes.mini.task import Question, Slip, Task
from recipes.quickstart import task as quickstart


class Sums(Task):
    """``3*7+4*8+2*9`` to ``3*7=1;4*8=2;2*9=8;1+2=3;3+8=1;#1``; see recipes/quickstart/task.py."""

    products: ClassVar[int]
    system_prompt = quickstart.SYSTEM_PROMPT
    characters = "0123456789*+=#" + "".join(quickstart.SEPARATORS)
    noise = 0.1
    style_shares: ClassVar[tuple[float, ...]] = (0.35, 0.30, 0.25, 0.10)

    def draw(self, rng: random.Random) -> Question:
        factors = tuple((rng.choice(quickstart.FACTORS), rng.choice(quickstart.FACTORS)) for _ in range(self.products))
        text = quickstart.question_text(factors)
        return Question(text, quickstart.answer(text))

    def canonical(self, question: str) -> str:
        return repr(sorted(tuple(sorted(pair)) for pair in quickstart.parse_question(question)))

    def draw_form(self, rng: random.Random) -> dict[str, Any]:
        return {
            "style": rng.choices(quickstart.STYLES, self.style_shares)[0],
            "separator": rng.choice(quickstart.SEPARATORS),
            "backwards": rng.random() < 0.5,
        }

    def respond(self, question: str, *, slip: Slip, **form: Any) -> str:
        return quickstart.render_response(question, noise=slip.probability, rng=slip.rng, **form)


class Sums3(Sums):
    name, data_source, products = "sums3", "mini/sums3", 3
    max_prompt_tokens, max_response_tokens = 32, 40


class Sums4(Sums):
    name, data_source, products = "sums4", "mini/sums4", 4
    max_prompt_tokens, max_response_tokens = 32, 56
