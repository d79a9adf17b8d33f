"""Last digit of a sum of products: a task small enough that SRPO's effects show on two CPU cores.

A question is a line such as ``3*7+4*8+2*9`` (factors 2 to 9). A response works in last digits and ends in ``#`` and
the answer. Every question has nineteen right responses, so that a correct sibling tells a failed rollout something
without being the one text to copy: the products forwards or backwards, three separators, four styles:

=========== =========================================
partial     ``3*7=1;4*8=2;2*9=8;1+2=3;3+8=1;#1``
interleaved ``3*7=1;4*8=2;1+2=3;2*9=8;3+8=1;#1``
running     ``3*7=1;1+4*8=3;3+2*9=1;#1``
terse       ``#1``
=========== =========================================

This module needs nothing but the standard library: veRL's reward workers load it by path for ``compute_score``.
"""

import hashlib
import random
import re
from collections.abc import Iterator
from functools import lru_cache

DATA_SOURCE = "last_digit"
SYSTEM_PROMPT = "Give the last digit of the result."
DEMONSTRATION_PHRASE = "Correct solution:"
RETRY_PHRASE = "Correctly solve the original question."

PRODUCTS = 3
FACTORS = range(2, 10)
STYLES = ("partial", "interleaved", "running", "terse")
SEPARATORS = (";", ",", "|")

# Sixteenths of the question space. Warm-up, reinforcement learning and evaluation never share a question, nor a
# question and its rearrangement, because every question belongs to exactly one of the three.
_SPLIT_OF_BUCKET = ("test",) * 1 + ("train",) * 5 + ("warmup",) * 10
SPLITS = ("warmup", "train", "test")

_ANSWER = re.compile(r"#([0-9])\Z")


def question_text(factors: tuple[tuple[int, int], ...]) -> str:
    """``((3, 7), (4, 8))`` as ``3*7+4*8``."""
    return "+".join(f"{a}*{b}" for a, b in factors)


def parse_question(question: str) -> tuple[tuple[int, int], ...]:
    """Inverse of `question_text`; ValueError names a text that is no question."""
    if not re.fullmatch(r"[2-9]\*[2-9](\+[2-9]\*[2-9])+", question):
        raise ValueError(f"not a sum of at least two products of factors 2-9: {question!r}")
    return tuple((int(term[0]), int(term[2])) for term in question.split("+"))


def answer(question: str) -> str:
    """The last digit of the result, the ground truth of the verifier."""
    return str(sum(a * b for a, b in parse_question(question)) % 10)


def split_of(question: str) -> str:
    """The one split a question belongs to.

    The hash is taken of the sum with its factors and products sorted: `7*3+2*9+4*8` goes where `3*7+4*8+2*9` goes,
    otherwise the evaluation would hold rearrangements of questions seen in training.
    """
    canonical = sorted(tuple(sorted(pair)) for pair in parse_question(question))
    digest = hashlib.sha256(repr(canonical).encode()).digest()
    return _SPLIT_OF_BUCKET[digest[0] % len(_SPLIT_OF_BUCKET)]


def _check_drawing(split: str, products: int) -> None:
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    if products < 2:
        raise ValueError(f"products must be at least 2, got {products}")


def sample_question(split: str, rng: random.Random, products: int = PRODUCTS) -> str:
    """A uniformly drawn question of one split."""
    _check_drawing(split, products)
    while True:
        question = question_text(tuple((rng.choice(FACTORS), rng.choice(FACTORS)) for _ in range(products)))
        if split_of(question) == split:
            return question


def sample_questions(split: str, count: int, seed: int, products: int = PRODUCTS) -> list[str]:
    """`count` different questions of one split, the same ones for the same seed.

    At most half of the split, since drawing until they differ gets slow beyond that.
    """
    _check_drawing(split, products)
    share = _SPLIT_OF_BUCKET.count(split) / len(_SPLIT_OF_BUCKET)
    limit = int(len(FACTORS) ** (2 * products) * share / 2)
    if count > limit:
        raise ValueError(f"count must be at most {limit} for split {split!r} and {products} products, got {count}")
    rng = random.Random(f"{split}-{products}-{seed}")
    chosen: dict[str, None] = {}
    while len(chosen) < count:
        chosen[sample_question(split, rng, products)] = None
    return list(chosen)


def render_response(
    question: str,
    style: str = "partial",
    separator: str = ";",
    backwards: bool = False,
    noise: float = 0.0,
    rng: random.Random | None = None,
) -> str:
    """A response in one style; with `noise`, a wrong one now and then.

    `noise` is the probability that the digit a step finds is replaced by a random one. Later steps go on with the
    digit that was written, so that a noisy response has one slip and not a contradiction, which is how a model that
    learns from it fails as well.
    """
    if style not in STYLES:
        raise ValueError(f"style must be one of {STYLES}, got {style!r}")
    if separator not in SEPARATORS:
        raise ValueError(f"separator must be one of {SEPARATORS}, got {separator!r}")
    if noise and rng is None:
        raise ValueError("noise needs rng")

    def found(value: int) -> int:
        return rng.randrange(10) if noise and rng.random() < noise else value % 10

    factors = parse_question(question)
    if style == "terse":
        return f"#{found(sum(a * b for a, b in factors))}"
    if backwards:
        factors = factors[::-1]
    steps: list[str] = []

    def step(expression: str, value: int) -> int:
        digit = found(value)
        steps.append(f"{expression}={digit}")
        return digit

    (a, b), rest = factors[0], factors[1:]
    total = step(f"{a}*{b}", a * b)
    if style == "partial":
        for digit in [step(f"{a}*{b}", a * b) for a, b in rest]:
            total = step(f"{total}+{digit}", total + digit)
    elif style == "interleaved":
        for a, b in rest:
            digit = step(f"{a}*{b}", a * b)
            total = step(f"{total}+{digit}", total + digit)
    else:
        for a, b in rest:
            total = step(f"{total}+{a}*{b}", total + a * b)
    return separator.join([*steps, f"#{total}"])


def right_responses(question: str) -> Iterator[str]:
    """Every right response to a question, each once."""
    yield render_response(question, "terse")
    for style in STYLES[:-1]:
        for separator in SEPARATORS:
            for backwards in (False, True):
                yield render_response(question, style, separator, backwards)


def teacher_prompt(question: str, demonstration: str) -> str:
    """The user message of the self-teacher: the question and a sibling's correct response.

    The warm-up shows the model this message so that it can use a demonstration at all, as a large model can by itself.
    """
    return f"{question}\n\n{DEMONSTRATION_PHRASE}\n\n{demonstration}\n\n{RETRY_PHRASE}\n"


def messages(question: str, demonstration: str | None = None) -> list[dict[str, str]]:
    """The chat of a question, or with a demonstration the self-teacher's."""
    user = question if demonstration is None else teacher_prompt(question, demonstration)
    return [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": user}]


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: dict | None = None) -> dict:
    """veRL's reward function: 1 where the response ends in ``#`` and the right digit, else 0.

    veRL decodes without special tokens, so the end-of-sequence token cannot be seen here. A response that was cut off
    is still told from a finished one: the digit must be the last character, and a finished response is at most
    12 * products - 4 characters long. With more room than that a cut falls into text that has gone on after its answer
    or has not reached it, and either fails.

    Returns score and acc (0.0 or 1.0), pred (the digit, "" where there is none) and format_ok. Wrong answers in the
    right format and right answers in a wrong one both score 0. Never raises on any response.
    """
    match = _ANSWER.search(solution_str)
    pred = match.group(1) if match else ""
    acc = float(bool(match) and pred == str(ground_truth))
    return {"score": acc, "acc": acc, "pred": pred, "format_ok": match is not None}


@lru_cache(maxsize=1024)
def _right_responses(question: str) -> tuple[str, ...]:
    return tuple(right_responses(question))


def first_error(question: str, response: str) -> tuple[int, str] | None:
    """Where a response leaves the last right one that it could have become: (index of the character, kind).

    None if it is right. The kind is what a right response has there: ``operand``, ``result`` (behind ``=``),
    ``answer`` (behind ``#``), or ``format`` for a sign, the end, or text behind the end. A response that ends too
    early has its error at its length. This is the analysis of which failures a demonstration can help with.
    """
    alive = _right_responses(question)
    for index in range(len(response) + 1):
        character = response[index : index + 1]  # "" at the end, which matches only a right response that ends here
        after = [right for right in alive if right[index : index + 1] == character]
        if not after:
            expected = [right[index : index + 1].isdigit() for right in alive]
            if any(expected) if character.isdigit() else all(expected):
                kind = {"=": "result", "#": "answer"}.get(response[index - 1 : index], "operand")
            else:
                kind = "format"
            return index, kind
        alive = tuple(after)
    return None
