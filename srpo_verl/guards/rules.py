"""What each guard looks for: functions of a run's history. Trends are relative to the run's own first steps.

A rule that compares levels asks for a difference that matters and for one that noise does not make: NOISES robust
standard deviations of the recent level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from srpo_verl.guards.history import EARLY, RECENT, VALIDATION, History, Series

NOISES = 4.0
LIMIT_SHARE = 0.2
"""Rise of the share of responses that the length limit cuts off."""
COMPRESSION_GROWTH = 1.5
ENTROPY_GROWTH, ENTROPY_RISE = 2.0, 0.3
"""Entropy rises without bound: by this factor and by so many nats per token."""
FORMAT_LOSS, HOLDS = 0.1, 0.05
"""Loss of well-formed responses while the reward is not lower than by HOLDS."""
FALSE_SUCCESS = 0.2
"""Share of the rewarded responses that the verifier calls wrong."""
ACCURACY_LOSS, SLOW_LOSS = 0.08, 0.05
"""Loss of training accuracy against the best level so far, within steps and over tens of them."""
SLOW_ERRORS = 3.5
"""Standard errors of a slow loss that are hardly chance. Every doubling of the steps beyond 100 asks for 0.7 more, as
the best of more windows is further from their mean. Of simulated runs without any trend (normal noise) 8 % exceed
them somewhere within 100 steps and 18 % within 1,500, before SLOW_LOSS and patience."""
PARTING = 0.15
"""Growth of the difference between training and validation accuracy."""
GAIN, MASTERED = 0.03, 0.9
"""Accuracy that has risen by GAIN, or is MASTERED: then half of the change of length is no sign."""
TEACHER_DISTANCE, TEACHER_STRIDE = 0.03, 0.0065
"""Relative distance of an averaged teacher from its student, and growth of it in one step, that no learning rate comes
near to which is best for its method: 0.022 and 0.006 were the most in the mini study."""
MANY, MANY_MASTERED = 10, 50
"""Steps in a row without distillation, or with one reward for everything; where all is solved, later."""
TRUNCATED = 0.95
"""Share of responses cut off by the length limit that counts as all of them."""


@dataclass(frozen=True)
class Settings:
    """What the rules need to know besides the log; None: unknown, and the rule that asks for it keeps quiet."""

    levels: Mapping[str, str] = field(default_factory=dict)
    """Level by guard; a guard that is not in it warns."""
    length_growth: float = 2.0
    length_shrink: float = 0.5
    entropy_floor: float = 0.01
    success_threshold: float | None = None
    failed_only: bool | None = None
    """Whether the routing distils failed rows alone, so that distilling every row says that all have failed."""
    teacher_kind: str | None = None


@dataclass(frozen=True)
class Sign:
    """What a rule sees now."""

    seen: str
    remedy: str
    steps: int = 1
    """Training steps that show it, at least; the last of them is the present one."""


Rule = Callable[[History, Settings], Sign | None]


def _risen(series: Series, to: float) -> bool:
    return series.recent() >= to and series.recent() - series.early() > NOISES * series.noise()


def _fallen(series: Series, to: float) -> bool:
    return series.recent() <= to and series.early() - series.recent() > NOISES * series.noise()


def _accuracy(history: History) -> Series:
    """The verifier's own word where it has one: a reward may pay for other things as well."""
    own = history["srpo/accuracy"]
    return own if len(own) else history["srpo/frac_correct"]


def _learns_nothing(history: History) -> bool:
    values = _accuracy(history)
    return values.has_trend and values.recent() < min(values.early() + GAIN, MASTERED)


def nonfinite(history: History, settings: Settings) -> Sign | None:
    """Loss, gradient or teacher scores that were not finite: the update was skipped."""
    counts = history["srpo/nonfinite_steps"].values
    skipped = 0
    while skipped + 1 < len(counts) and counts[-1 - skipped] > counts[-2 - skipped]:
        skipped += 1
    if skipped + 1 == len(counts) and counts and counts[0] > 0:
        skipped += 1
    if not skipped:
        return None
    return Sign(
        f"loss, gradient or teacher scores were not finite, so the update was skipped, {counts[-1]:.0f} times so far",
        "lower actor.optim.lr or actor.optim.clip_grad; look for a row with an extreme reward; try fp32",
        skipped,
    )


def length(history: History, settings: Settings) -> Sign | None:
    """Responses running away, or collapsing."""
    lengths, cut = history["response_length/mean"], history["srpo/frac_at_length_limit"]
    if not lengths.has_trend:
        return None
    early, recent = lengths.early(), lengths.recent()
    change = f"responses have {recent:.0f} tokens, {recent / early:.2g} times those of the first {EARLY} steps"
    at_limit = f"; the limit cuts off {cut.recent():.0%}" if len(cut) else ""
    growth, shrink = settings.length_growth, settings.length_shrink
    if _learns_nothing(history):
        growth, shrink = (1 + growth) / 2, (1 + shrink) / 2
        change += ", and accuracy has not risen"
    if _risen(lengths, growth * early) or (cut.has_trend and _risen(cut, cut.early() + LIMIT_SHARE)):
        return Sign(
            change + at_limit,
            "read some responses (trainer.rollout_data_dir); look for a reward that pays for length; go back to a "
            "checkpoint from before and lower actor.optim.lr",
        )
    if _fallen(lengths, shrink * early):
        return Sign(
            change,
            "read some responses (trainer.rollout_data_dir); look for a reward or demonstrations that pay for "
            "shortness; go back to a checkpoint from before and lower actor.optim.lr",
        )
    return None


def repetition(history: History, settings: Settings) -> Sign | None:
    """Responses that say the same again and again, by how far they can be compressed."""
    ratio = history["srpo/response_compression"]
    if not ratio.has_trend or not _risen(ratio, COMPRESSION_GROWTH * ratio.early()):
        return None
    return Sign(
        f"responses repeat themselves: compressed they are {ratio.recent():.1f} times smaller, "
        f"{ratio.early():.1f} times in the first {EARLY} steps",
        "read some responses (trainer.rollout_data_dir); go back to a checkpoint from before and lower actor.optim.lr",
    )


def entropy(history: History, settings: Settings) -> Sign | None:
    """A policy that has become deterministic, or is dissolving."""
    values = history["actor/entropy"]
    if not values.has_trend:
        return None
    early, recent = values.early(), values.recent()
    change = f"the policy's entropy is {recent:.3g} nats per token, {early:.3g} in the first {EARLY} steps"
    if recent < settings.entropy_floor and _fallen(values, early):
        return Sign(
            f"{change}, below srpo.guards.entropy_floor={settings.entropy_floor:g}",
            "nothing is left to explore: use the best checkpoint; for longer training lower actor.optim.lr",
        )
    if _risen(values, max(ENTROPY_GROWTH * early, early + ENTROPY_RISE)):
        return Sign(
            change,
            "the policy dissolves: go back to a checkpoint from before and lower actor.optim.lr; look at the reward",
        )
    return None


def well_formed(history: History, settings: Settings) -> Sign | None:
    """Responses that lose their format while the reward holds."""
    formed, correct = history["srpo/frac_format_ok"], history["srpo/frac_correct"]
    if not (formed.has_trend and correct.has_trend) or not _fallen(formed, formed.early() - FORMAT_LOSS):
        return None
    if correct.recent() < correct.early() - HOLDS:
        return None
    return Sign(
        f"{formed.recent():.0%} of the responses are well-formed, {formed.early():.0%} in the first {EARLY} steps, "
        f"while {correct.recent():.0%} are rewarded",
        "the reward pays without the format: look at the verifier",
    )


def success(history: History, settings: Settings) -> Sign | None:
    """A reward that calls success what the verifier calls wrong, from the first steps on."""
    false = history["srpo/frac_false_success"]
    if len(false) < RECENT or false.recent() < FALSE_SUCCESS:
        return None
    return Sign(
        f"of the responses whose reward reaches srpo.success_threshold {false.recent():.0%} are wrong by "
        "the verifier's own acc",
        "the teacher is shown wrong solutions as often: raise srpo.success_threshold above what the reward pays "
        "without the right answer",
    )


def _lost_fast(values: Series) -> tuple[float, float] | None:
    """The best level and the recent one, where the loss within a few steps is no chance."""
    best, recent = values.best_recent(), values.recent()
    # The best of many levels is above their mean by chance alone, hence twice the noise.
    return (best, recent) if best - recent >= max(ACCURACY_LOSS, 2 * NOISES * values.noise()) else None


def _lost_slowly(values: Series) -> tuple[float, float] | None:
    """The same over tens of steps, of means."""
    fall = values.slow_fall()
    if fall is None:
        return None
    best, recent, error = fall
    errors = SLOW_ERRORS + 0.7 * math.log2(max(len(values), 100) / 100)
    return (best, recent) if best - recent >= max(SLOW_LOSS, errors * error) else None


def accuracy(history: History, settings: Settings) -> Sign | None:
    """Training accuracy falling from what it had reached."""
    values = _accuracy(history)
    if not values.has_trend:
        return None
    lost = _lost_fast(values) or _lost_slowly(values)
    if lost is None:
        return None
    best, recent = lost
    return Sign(
        f"training accuracy has fallen from {best:.0%} to {recent:.0%}",
        "use the best checkpoint; lower actor.optim.lr",
    )


def overfitting(history: History, settings: Settings) -> Sign | None:
    """Training accuracy leaving validation accuracy behind."""
    training, validation = _accuracy(history), history[VALIDATION]
    at = dict(zip(training.steps, range(len(training)), strict=True))
    gaps = [
        sum(training.values[max(0, at[step] - RECENT + 1) : at[step] + 1]) / min(RECENT, at[step] + 1) - value
        for step, value in zip(validation.steps, validation.values, strict=True)
        if step in at
    ]
    if len(gaps) < 6:
        return None
    early, recent = sorted(gaps[:3])[1], sorted(gaps[-3:])[1]
    if recent - early < PARTING or training.recent() <= training.early():
        return None
    return Sign(
        f"training accuracy is {100 * recent:+.0f} points from validation accuracy, {100 * early:+.0f} at the start",
        "the run learns its training prompts: use the best checkpoint, or more data",
    )


def distillation(history: History, settings: Settings) -> Sign | None:
    """A run that is to distil, and does not; or distils everything because everything fails."""
    if not len(history["srpo/teacher_forward_tokens"]) or _last(history, "srpo/distillation_coefficient") == 0:
        return None
    share, credit = history["srpo/frac_sdpo"], history["srpo/frac_credit"]
    none = min(share.streak(0.0), credit.streak(0.0)) if len(credit) else share.streak(0.0)
    all_rows = share.streak(1.0) if settings.failed_only else 0
    if all_rows >= MANY:
        return Sign(
            f"every response has been distilled for {all_rows} steps, because none is correct"
            + (" and each has feedback" if _last(history, "srpo/frac_shown_feedback") > 0.5 else ""),
            "no reward reaches the policy: look at the verifier and srpo.success_threshold",
            all_rows,
        )
    why, remedy, patience = _why_inactive(history, settings)
    if none < patience:
        return None
    return Sign(f"nothing has been distilled for {none} steps: {why}", remedy, none)


def _why_inactive(history: History, settings: Settings) -> tuple[str, str, int]:
    """The reason, the remedy, and after how many steps it is worth a word."""
    best, worst = _last(history, "critic/score/max"), _last(history, "critic/score/min")
    if _last(history, "srpo/frac_all_correct_groups") == 1:
        return (
            "every response is correct",
            "nothing is left to learn from these prompts: end the run, or take harder ones",
            MANY_MASTERED,
        )
    if _last(history, "srpo/frac_correct") == 0:
        if _last(history, "srpo/frac_at_length_limit") >= TRUNCATED:
            return "all responses are cut off", "raise data.max_response_length, or look at the stop token", MANY
        if best > worst:
            threshold = settings.success_threshold
            reaches = f"srpo.success_threshold={threshold:g}" if threshold is not None else "srpo.success_threshold"
            return f"no reward reaches {reaches}, the best is {best:.3g}", "lower srpo.success_threshold", MANY
        return "no response is correct", "take easier prompts, more rollouts (rollout.n) or a better model", MANY
    if _last(history, "srpo/frac_teacher_available") == 0:
        return (
            "no response has a correct sibling or another demonstration",
            "raise rollout.n; look at srpo.demonstration.sources",
            MANY,
        )
    return "the routing gave no response to the teacher", "look at srpo.routing", MANY


def _last(history: History, name: str) -> float:
    """The last value, NaN where there is none: NaN equals nothing and is above nothing."""
    series = history[name]
    return series.values[-1] if len(series) else float("nan")


def teacher(history: History, settings: Settings) -> Sign | None:
    """A teacher that is its student, or has left it behind."""
    distance, rate = history["srpo/teacher_distance"], history["actor/lr"]
    if not len(distance) or settings.teacher_kind not in ("ema", "frozen"):
        return None
    same = distance.streak(0.0)
    if same >= MANY and len(rate) and min(rate.values[-same:]) > 0:
        return Sign(
            f"teacher and student have been identical for {same} steps, although the learning rate is "
            f"{rate.values[-1]:.2g}",
            "the student does not move: look at actor/grad_norm and srpo/nonfinite_steps",
            same,
        )
    if settings.teacher_kind != "ema":
        return None
    stride = distance.values[-1] - distance.values[-2] if len(distance) > 1 else 0.0
    if stride > TEACHER_STRIDE:
        return Sign(
            f"each step takes the student another {stride:.1%} of its norm away from its averaged teacher",
            "lower actor.optim.lr",
        )
    if distance.recent() > TEACHER_DISTANCE:
        return Sign(
            f"the averaged teacher is {distance.recent():.0%} of the student's norm away from it",
            "the student runs away from its average: lower actor.optim.lr, or raise srpo.teacher.ema_rate",
        )
    return None


def reward(history: History, settings: Settings) -> Sign | None:
    """One reward for everything: no advantage, nothing to learn."""
    best, worst = history["critic/score/max"], history["critic/score/min"]
    same = 0
    while same < min(len(best), len(worst)) and best.values[-1 - same] == worst.values[-1 - same]:
        same += 1
    solved = _last(history, "srpo/frac_correct") == 1
    if same < (MANY_MASTERED if solved else MANY):
        return None
    return Sign(
        f"every response has had the reward {best.values[-1]:.3g} for {same} steps",
        "end the run, or take harder prompts" if solved else "look at the verifier: python -m srpo_verl check",
        same,
    )


RULES: dict[str, Rule] = {
    "nonfinite": nonfinite,
    "length": length,
    "repetition": repetition,
    "entropy": entropy,
    "format": well_formed,
    "success": success,
    "accuracy": accuracy,
    "overfitting": overfitting,
    "distillation": distillation,
    "teacher": teacher,
    "reward": reward,
}
"""Guard by its key under srpo.guards."""
