"""The routings: every row's share of the GRPO loss and of distillation. A new routing is one entry of this file."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch


@dataclass(frozen=True, eq=False)
class Rows:
    """What a routing knows of B rollouts, in the notation of equation (1).

    All tensors are float64 of shape (B,), so that formulas read as formulas.
    """

    correct_B: torch.Tensor  # c: 1 where the reward reaches the threshold
    teacher_B: torch.Tensor  # m: 1 where there is teacher information
    sibling_B: torch.Tensor  # 1 where another rollout of the group is correct, whether a teacher is shown it or not
    pass_rate_B: torch.Tensor  # p: share of the row's group that is correct, the row itself included
    step: int  # number of the training step, from 1
    mix_lambda: float  # srpo.advantage_mix.lambda
    negative_advantage: float  # srpo.fixed_negative.advantage

    @property
    def failed_with_teacher_B(self) -> torch.Tensor:
        """z of equation (1)."""
        return (1 - self.correct_B) * self.teacher_B


@dataclass(frozen=True, eq=False)
class Shares:
    """What a routing gives every row for equation (5); each of shape (B,), finite and at least 0."""

    grpo_B: torch.Tensor  # g: factor of the row's GRPO loss
    sdpo_B: torch.Tensor  # d: factor of its distillation loss; above 0 only where there is teacher information
    advantage_B: torch.Tensor | None = None  # in place of the group's advantage; NaN where that one stays


@dataclass(frozen=True)
class Rule:
    """A routing: its shares, and what the documentation says of it."""

    shares: Callable[[Rows], Shares]
    grpo: str  # g as a formula; z = (1 - c) m
    sdpo: str  # d as a formula
    about: str
    title: str = ""  # as people call it, where no configuration has it (config/methods.py)


def _none(rows: Rows) -> Shares:
    return Shares(torch.ones_like(rows.correct_B), torch.zeros_like(rows.correct_B))


def _sample(rows: Rows) -> Shares:
    z_B = rows.failed_with_teacher_B
    return Shares(1 - z_B, z_B)


def _all(rows: Rows) -> Shares:
    return Shares(torch.zeros_like(rows.correct_B), rows.teacher_B)


def _correct_only(rows: Rows) -> Shares:
    return Shares(torch.zeros_like(rows.correct_B), rows.teacher_B * rows.correct_B)


def _failed_only(rows: Rows) -> Shares:
    return Shares(torch.zeros_like(rows.correct_B), rows.failed_with_teacher_B)


def _advantage_mix(rows: Rows) -> Shares:
    return Shares(torch.full_like(rows.correct_B, rows.mix_lambda), (1 - rows.mix_lambda) * rows.teacher_B)


def _handover(rows: Rows) -> Shares:
    d_B = rows.failed_with_teacher_B * (1 - rows.pass_rate_B)
    return Shares(1 - d_B, d_B)


def _keep_negative(rows: Rows) -> Shares:
    return Shares(torch.ones_like(rows.correct_B), rows.failed_with_teacher_B)


def _fixed_negative(rows: Rows) -> Shares:
    blamed_B = (1 - rows.correct_B) * rows.sibling_B
    advantage_B = torch.full_like(blamed_B, -rows.negative_advantage).masked_fill(blamed_B == 0, float("nan"))
    return Shares(torch.ones_like(blamed_B), torch.zeros_like(blamed_B), advantage_B)


ROUTINGS: dict[str, Rule] = {
    "sample": Rule(_sample, "1 - z", "z", "SRPO: failed rows with a teacher are distilled, all others take GRPO"),
    "none": Rule(_none, "1", "0", "GRPO"),
    "all": Rule(_all, "0", "m", "SDPO: every row with a teacher, a correct one towards another correct sibling"),
    "correct_only": Rule(_correct_only, "0", "m c", "SDPO on the correct rows alone, Figure 1(b)"),
    "failed_only": Rule(_failed_only, "0", "m (1 - c)", "SDPO on the failed rows alone, Figure 1(b)"),
    "advantage_mix": Rule(_advantage_mix, "λ", "(1 - λ) m", "both losses on every row, Table 2"),
    "handover": Rule(
        _handover, "1 - z (1 - p)", "z (1 - p)", "SRPO whose failures pass to the reward as a prompt gets mastered"
    ),
    "keep_negative": Rule(
        _keep_negative, "1", "z", "SRPO whose distilled rows keep their negative advantage", "SRPO, negatives kept"
    ),
    "fixed_negative": Rule(
        _fixed_negative,
        "1",
        "0",
        "control: failed rows with a correct sibling get one fixed negative advantage, and there is no teacher",
        "fixed negative advantage",
    ),
}


@dataclass(frozen=True)
class Effects:
    """What a routing can do to any row at all; the checks of the configuration go by it."""

    takes_grpo: bool = True
    distils_correct: bool = True
    distils_failed: bool = True
    needs_group: bool = False  # pass rate or siblings decide: of one rollout a prompt it would be another routing

    @property
    def distils(self) -> bool:
        """Whether d can be above 0: without, no teacher exists."""
        return self.distils_correct or self.distils_failed

    @property
    def distils_failed_only(self) -> bool:
        """Whether failed rows alone are distilled."""
        return self.distils_failed and not self.distils_correct


def effects_of(name: str, *, mix_lambda: float = 0.5) -> Effects:
    """Of a routing in ROUTINGS, found by asking it about every kind of row; a user's own is taken to do anything."""
    if name not in ROUTINGS:
        return Effects()
    kinds = list(product((0.0, 1.0), (0.0, 1.0), (0.0, 1.0), (0.25, 0.5, 0.75)))  # c, m, sibling, p
    c, m, sibling, p = torch.tensor(kinds, dtype=torch.float64).unbind(dim=1)
    shares = ROUTINGS[name].shares(Rows(c, m, sibling, p, step=1, mix_lambda=mix_lambda, negative_advantage=1.0))
    is_correct = c == 1
    by_pass_rate = shares.sdpo_B.view(-1, 3)
    return Effects(
        takes_grpo=bool((shares.grpo_B > 0).any()),
        distils_correct=bool((shares.sdpo_B > 0)[is_correct].any()),
        distils_failed=bool((shares.sdpo_B > 0)[~is_correct].any()),
        needs_group=shares.advantage_B is not None or bool((by_pass_rate != by_pass_rate[:, :1]).any()),
    )


def is_own(name: str) -> bool:
    """Whether a name has the form of a user's own routing, `module:function`."""
    module, colon, function = name.partition(":")
    return bool(colon) and function.isidentifier() and all(part.isidentifier() for part in module.split("."))


def shares_of(name: str) -> Callable[[Rows], Shares]:
    """The function behind a routing's name: one of ROUTINGS, or a user's own, `module:function`, which is imported.

    Raises:
        ValueError: an unknown name, a module that cannot be imported, or one without such a function.
    """
    if name in ROUTINGS:
        return ROUTINGS[name].shares
    if not is_own(name):
        raise ValueError(f"routing must be one of {', '.join(ROUTINGS)}, or module:function, got {name!r}")
    module_name, _, function_name = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"routing {name!r} cannot be imported ({error}); the module has to be installed, or on PYTHONPATH"
        ) from error
    if not callable(function) or not _takes_one_argument(function):
        raise ValueError(f"routing {name!r} has to be a function of one argument, the Rows, that returns Shares")
    return function


def _takes_one_argument(function: Callable) -> bool:
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        return False
    return True


def compute_shares(name: str, rows: Rows) -> Shares:
    """Shares of all rows by the named routing, checked: float32 of shape (B,).

    Raises:
        ValueError: unknown name; from a user's routing, what is not Shares, or a share that has another shape, is not
            finite, is negative, or distils a row without teacher information (names the row).
    """
    shares = shares_of(name)(rows)
    if not isinstance(shares, Shares):
        raise ValueError(f"routing {name!r} has to return srpo_verl.functional.Shares, got {type(shares).__name__}")
    grpo_B, sdpo_B = (_checked(name, kind, getattr(shares, kind), rows) for kind in ("grpo_B", "sdpo_B"))
    without_B = (sdpo_B > 0) & (rows.teacher_B == 0)
    if bool(without_B.any()):
        index = int(without_B.nonzero()[0])
        raise ValueError(f"routing {name!r} distils row {index}, which has no teacher information (teacher_B is 0)")
    advantage_B = shares.advantage_B
    if advantage_B is not None:
        advantage_B = torch.as_tensor(advantage_B).float()
        if advantage_B.shape != rows.correct_B.shape or bool(advantage_B.isinf().any()):
            raise ValueError(
                f"routing {name!r}: advantage_B must have shape {tuple(rows.correct_B.shape)}, no infinity"
            )
    return Shares(grpo_B, sdpo_B, advantage_B)


def _checked(name: str, kind: str, share_B: torch.Tensor, rows: Rows) -> torch.Tensor:
    share_B = torch.as_tensor(share_B)
    if share_B.shape != rows.correct_B.shape:
        raise ValueError(
            f"routing {name!r}: {kind} must have shape {tuple(rows.correct_B.shape)}, got {tuple(share_B.shape)}"
        )
    share_B = share_B.float()
    bad_B = ~(torch.isfinite(share_B) & (share_B >= 0))
    if bool(bad_B.any()):
        index = int(bad_B.nonzero()[0])
        raise ValueError(
            f"routing {name!r}: {kind} must be finite and at least 0, got {float(share_B[index])} in row {index}"
        )
    return share_B
