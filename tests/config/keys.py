"""Every key of the `srpo` group with its default and kind, and ways to change one and to be refused."""

import pytest

from srpo_verl.config.schema import default_values, parse
from srpo_verl.errors import ConfigError

GUARDS = [
    "length",
    "repetition",
    "entropy",
    "format",
    "success",
    "accuracy",
    "overfitting",
    "distillation",
    "teacher",
    "reward",
]
DEFAULTS = {
    "srpo.routing": "sample",
    "srpo.success_threshold": 0.5,
    "srpo.distillation.top_k": 100,
    "srpo.distillation.divergence_alpha": 0.5,
    "srpo.distillation.tail": True,
    "srpo.distillation.is_clip": 2.0,
    "srpo.schedule.kind": "constant",
    "srpo.schedule.start": 10,
    "srpo.schedule.end": 40,
    "srpo.weighting.beta": 1.0,
    "srpo.weighting.floor": 0.0,
    "srpo.weighting.pass_rate": False,
    "srpo.advantage_mix.lambda": 0.9,
    "srpo.fixed_negative.advantage": 0.5,
    "srpo.credit": "none",
    "srpo.teacher_ratio.epsilon": 0.5,
    "srpo.teacher_ratio.lambda": 1.0,
    "srpo.teacher.kind": "ema",
    "srpo.teacher.ema_rate": 0.05,
    "srpo.teacher.cpu_offload": None,
    "srpo.demonstration.sources": ["sibling"],
    "srpo.demonstration.memory.per_prompt": 4,
    "srpo.demonstration.memory.max_prompts": 10000,
    "srpo.demonstration.reference_column": None,
    "srpo.demonstration.select": "first",
    "srpo.demonstration.strip_thinking": True,
    "srpo.demonstration.max_prompt_tokens": 10240,
    "srpo.demonstration.show": True,
    "srpo.demonstration.environment_feedback": False,
    "srpo.budget.hours": [1, 5, 10],
    "srpo.budget.stop_at_hours": None,
    "srpo.checkpoints.keep_best": True,
    "srpo.checkpoints.max_disk_gib": None,
    "srpo.checkpoints.trust_pickles": False,
    **{f"srpo.guards.{guard}": "warn" for guard in GUARDS},
    "srpo.guards.nonfinite": "stop",
    "srpo.guards.length_growth": 2.0,
    "srpo.guards.length_shrink": 0.5,
    "srpo.guards.entropy_floor": 0.01,
    "srpo.guards.stall_minutes": 120,
    "srpo.kernels.compile": False,
    "srpo.token_sample.every": 20,
    "srpo.token_sample.rollouts": 8,
    "srpo.token_sample.tokens": 512,
}
NUMBERS = [
    "srpo.success_threshold",
    "srpo.distillation.divergence_alpha",
    "srpo.distillation.is_clip",
    "srpo.weighting.beta",
    "srpo.weighting.floor",
    "srpo.advantage_mix.lambda",
    "srpo.fixed_negative.advantage",
    "srpo.teacher_ratio.epsilon",
    "srpo.teacher_ratio.lambda",
    "srpo.teacher.ema_rate",
    "srpo.budget.stop_at_hours",
    "srpo.checkpoints.max_disk_gib",
    "srpo.guards.length_growth",
    "srpo.guards.length_shrink",
    "srpo.guards.entropy_floor",
    "srpo.guards.stall_minutes",
]
INTEGERS = [
    "srpo.distillation.top_k",
    "srpo.schedule.start",
    "srpo.schedule.end",
    "srpo.demonstration.memory.per_prompt",
    "srpo.demonstration.memory.max_prompts",
    "srpo.demonstration.max_prompt_tokens",
    "srpo.token_sample.every",
    "srpo.token_sample.rollouts",
    "srpo.token_sample.tokens",
]
FLAGS = [
    "srpo.weighting.pass_rate",
    "srpo.distillation.tail",
    "srpo.teacher.cpu_offload",
    "srpo.demonstration.strip_thinking",
    "srpo.demonstration.show",
    "srpo.demonstration.environment_feedback",
    "srpo.checkpoints.keep_best",
    "srpo.checkpoints.trust_pickles",
    "srpo.kernels.compile",
]
CHOICES = {
    "srpo.routing": (
        "sample",
        "none",
        "all",
        "correct_only",
        "failed_only",
        "advantage_mix",
        "handover",
        "keep_negative",
        "fixed_negative",
    ),
    "srpo.schedule.kind": ("constant", "linear"),
    "srpo.credit": ("none",),
    "srpo.teacher.kind": ("ema", "frozen", "live"),
    "srpo.demonstration.select": ("first", "random", "shortest"),
    **{f"srpo.guards.{guard}": ("off", "warn", "checkpoint", "stop") for guard in ("nonfinite", *GUARDS)},
}
LISTS = ["srpo.budget.hours"]
OTHERS = ["srpo.demonstration.sources", "srpo.demonstration.reference_column"]
NULLABLE = [
    "srpo.distillation.top_k",
    "srpo.distillation.is_clip",
    "srpo.teacher.cpu_offload",
    "srpo.demonstration.reference_column",
    "srpo.budget.stop_at_hours",
    "srpo.checkpoints.max_disk_gib",
    "srpo.guards.stall_minutes",
]
GROUPS = [
    "distillation",
    "schedule",
    "weighting",
    "advantage_mix",
    "fixed_negative",
    "teacher_ratio",
    "teacher",
    "demonstration",
    "budget",
    "checkpoints",
    "guards",
    "kernels",
    "token_sample",
]


def with_values(changes):
    """The defaults with some dotted keys replaced (or added)."""
    values = default_values()
    for key, value in changes.items():
        *path, last = key.split(".")[1:]
        node = values
        for name in path:
            node = node[name]
        node[last] = value
    return values


def refusal(changes, key):
    """The ConfigError that `changes` lead to, checked to name the full key, the value and a remedy."""
    values = with_values(changes)
    with pytest.raises(ConfigError) as raised:
        parse(values)
    error = raised.value
    assert error.key == key
    # The message as the user sees it: key=value: what would be right.
    assert str(error).startswith(f"{key}={error.value!r}: ")
    assert len(str(error).split(": ", 1)[1].split()) >= 3, str(error)
    return error
