"""The implementations, by name: what they compute, and what of SRPO's they are compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from scripts.bench import others, work
from scripts.bench.work import Work

FULL_VOCABULARY_TOKENS = 256
"""Full-vocabulary divergences hold about ten tensors of the logits' size: more tokens than this are not tried."""


@dataclass(frozen=True)
class Implementation:
    """`load` imports what is needed. Each is compared with SRPO's `against`, of which it may do a part only."""

    computes: str
    load: Callable[[], Work]
    against: str
    package: str | None = None
    labels: bool = False
    dtypes: tuple[str, ...] | None = None
    max_tokens: int | None = None
    memory: bool = True
    """Whether its peak memory is measured."""
    own_inputs: bool = False
    """Whether it starts from hidden states instead of the two logits tensors."""


SAME = "the same"
SAME_LABELS = "the same, and log-probabilities of labels"
FULL_JSD = "another quantity: JSD over the full vocabulary; no support, tail or entropy"
FULL_JSD_PROJECTION = "another quantity: projections, JSD over the full vocabulary; no support, tail or entropy"

_full = partial(Implementation, against="srpo", max_tokens=FULL_VOCABULARY_TOKENS)

IMPLEMENTATIONS = {
    "srpo": Implementation("support, teacher scoring, entropy, divergence", lambda: work.srpo, "srpo"),
    "srpo_inplace": Implementation(
        "the same, the gradient in the student logits' memory, as in training",
        lambda: partial(work.srpo, inplace=True),
        "srpo",
    ),
    "srpo_labels": Implementation(
        SAME_LABELS, lambda: partial(work.srpo, with_labels=True), "srpo_labels", labels=True
    ),
    "eager": Implementation(SAME, lambda: work.eager, "srpo"),
    "eager_labels": Implementation(
        SAME_LABELS, lambda: partial(work.eager, with_labels=True), "srpo_labels", labels=True
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
    "trl_labels": Implementation(SAME_LABELS, lambda: others.trl(with_labels=True), "srpo_labels", "trl", labels=True),
    "trl_full_vocabulary": _full(FULL_JSD, others.trl_full_vocabulary, package="trl"),
    "liger_full_vocabulary": _full(FULL_JSD, others.liger_full_vocabulary, package="liger"),
    "liger_kernel": _full(FULL_JSD, others.liger_kernel, package="liger"),
    "srpo_projection": Implementation(
        "both projections and the pipeline",
        others.srpo_projection,
        "srpo_projection",
        "liger",
        max_tokens=FULL_VOCABULARY_TOKENS,
        memory=False,
        own_inputs=True,
    ),
    "liger_projection": Implementation(
        FULL_JSD_PROJECTION,
        others.liger_projection,
        "srpo_projection",
        "liger",
        max_tokens=FULL_VOCABULARY_TOKENS,
        memory=False,
        own_inputs=True,
    ),
}


GROWTH = ("srpo", "srpo_inplace")
"""Also timed on the first tokens of the same logits, to see how time grows with their number."""


def applicable(packages: set[str], dtype: str, num_tokens: int) -> list[str]:
    """Names of the implementations for these packages, this dtype and number of tokens."""
    return [
        name
        for name, item in IMPLEMENTATIONS.items()
        if (item.package is None or item.package in packages)
        and (item.dtypes is None or dtype in item.dtypes)
        and (item.max_tokens is None or num_tokens <= item.max_tokens)
    ]
