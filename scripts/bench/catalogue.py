"""The implementations, by name: what they compute, and what of SRPO's they are compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from scripts.bench import others, work
from scripts.bench.work import Work


@dataclass(frozen=True)
class Implementation:
    """`load` imports what is needed. Each is compared with SRPO's `against`, of which it may do a part only."""

    computes: str
    load: Callable[[], Work]
    against: str
    package: str | None = None
    labels: bool = False
    dtypes: tuple[str, ...] | None = None
    memory: bool = True
    """Whether its peak memory is measured."""


SAME = "the same"
SAME_LABELS = "the same, and log-probabilities of labels"

IMPLEMENTATIONS = {
    "srpo": Implementation("support, teacher scoring, entropy, divergence", lambda: work.srpo, "srpo"),
    "srpo_engine": Implementation(
        "the same with labels, as in training: a mask of distilled tokens, the gradient in the logits' memory",
        lambda: partial(work.srpo, with_labels=True, as_engine=True),
        "srpo_labels",
        labels=True,
    ),
    "srpo_labels": Implementation(
        SAME_LABELS, lambda: partial(work.srpo, with_labels=True), "srpo_labels", labels=True
    ),
    "eager": Implementation(SAME, lambda: work.eager, "srpo"),
    "eager_labels": Implementation(
        SAME_LABELS, lambda: partial(work.eager, with_labels=True), "srpo_engine", labels=True
    ),
    "eager_cast": Implementation(
        "the same, logits cast to fp32 first",
        lambda: partial(work.eager, cast=True),
        "srpo",
        dtypes=("bfloat16", "float16"),
    ),
    "logsumexp": Implementation(
        "a bare torch.logsumexp of the teacher's logits", lambda: work.logsumexp, "srpo", memory=False
    ),
    "trl": Implementation(SAME, others.trl, "srpo", "trl"),
    "trl_labels": Implementation(SAME_LABELS, lambda: others.trl(with_labels=True), "srpo_engine", "trl", labels=True),
}


GROWTH = ("srpo", "srpo_engine")
"""Also timed on the first tokens of the same logits, to see how time grows with their number."""


def applicable(packages: set[str], dtype: str) -> list[str]:
    """Names of the implementations for these packages and this dtype."""
    return [
        name
        for name, item in IMPLEMENTATIONS.items()
        if (item.package is None or item.package in packages) and (item.dtypes is None or dtype in item.dtypes)
    ]
