"""The `srpo` configuration group as typed values. Its defaults are stated in base.yaml and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import pairwise
from sys import float_info
from typing import Any

from omegaconf import OmegaConf

from srpo_verl.algos.routings import ROUTINGS, is_own
from srpo_verl.errors import ConfigError

TEACHER_KINDS = ("ema", "frozen", "live")
DEMONSTRATION_SELECTS = ("first", "random", "shortest")


@dataclass(frozen=True)
class DistillationConfig:
    top_k: int | None
    divergence_alpha: float
    tail: bool
    is_clip: float | None


@dataclass(frozen=True)
class KernelsConfig:
    compile: bool


@dataclass(frozen=True)
class WeightingConfig:
    beta: float


@dataclass(frozen=True)
class TeacherConfig:
    kind: str
    ema_rate: float
    cpu_offload: bool | None


@dataclass(frozen=True)
class DemonstrationConfig:
    select: str
    strip_thinking: bool
    max_prompt_tokens: int
    environment_feedback: bool


@dataclass(frozen=True)
class BudgetConfig:
    hours: tuple[float, ...]
    stop_at_hours: float | None


@dataclass(frozen=True)
class SrpoConfig:
    """Checked values of the `srpo` group; see base.yaml for what each one means."""

    routing: str
    success_threshold: float
    distillation: DistillationConfig
    weighting: WeightingConfig
    mix_lambda: float
    negative_advantage: float
    teacher: TeacherConfig
    demonstration: DemonstrationConfig
    budget: BudgetConfig
    kernels: KernelsConfig

    @property
    def uses_teacher(self) -> bool:
        """A routing of the user's own may distil; only the driver imports it."""
        return self.routing not in ROUTINGS or ROUTINGS[self.routing].distils

    @property
    def needs_teacher_copy(self) -> bool:
        """Whether a second set of weights exists (the live teacher is the student itself)."""
        return self.uses_teacher and self.teacher.kind != "live"


def parse(node: Any) -> SrpoConfig:
    """Check the `srpo` group (a DictConfig or mapping) and return it typed.

    Raises ConfigError for an unknown or missing key, a wrong type, a value out of range, and a key that was changed
    from its default although the other choices make it ineffective.
    """
    values = _plain(node)
    _check_keys(values, default_values(), "srpo")
    distillation, teacher = values["distillation"], values["teacher"]
    weighting, demonstration = values["weighting"], values["demonstration"]
    budget = values["budget"]

    config = SrpoConfig(
        routing=_routing(values["routing"]),
        success_threshold=_number("srpo.success_threshold", values["success_threshold"]),
        distillation=DistillationConfig(
            top_k=_integer("srpo.distillation.top_k", distillation["top_k"], low=1, nullable=True),
            divergence_alpha=_number("srpo.distillation.divergence_alpha", distillation["divergence_alpha"], 0, 1),
            tail=_flag("srpo.distillation.tail", distillation["tail"]),
            is_clip=_number("srpo.distillation.is_clip", distillation["is_clip"], 0, None, True, nullable=True),
        ),
        weighting=WeightingConfig(beta=_number("srpo.weighting.beta", weighting["beta"], 0)),
        mix_lambda=_number("srpo.advantage_mix.lambda", values["advantage_mix"]["lambda"], 0, 1),
        negative_advantage=_number(
            "srpo.fixed_negative.advantage", values["fixed_negative"]["advantage"], 0, above_low=True
        ),
        teacher=TeacherConfig(
            kind=_choice("srpo.teacher.kind", teacher["kind"], TEACHER_KINDS),
            ema_rate=_number("srpo.teacher.ema_rate", teacher["ema_rate"], 0, 1, above_low=True),
            cpu_offload=_flag("srpo.teacher.cpu_offload", teacher["cpu_offload"], nullable=True),
        ),
        demonstration=DemonstrationConfig(
            select=_choice("srpo.demonstration.select", demonstration["select"], DEMONSTRATION_SELECTS),
            strip_thinking=_flag("srpo.demonstration.strip_thinking", demonstration["strip_thinking"]),
            max_prompt_tokens=_integer(
                "srpo.demonstration.max_prompt_tokens", demonstration["max_prompt_tokens"], low=1
            ),
            environment_feedback=_flag(
                "srpo.demonstration.environment_feedback", demonstration["environment_feedback"]
            ),
        ),
        budget=BudgetConfig(
            hours=_increasing("srpo.budget.hours", budget["hours"]),
            stop_at_hours=_number(
                "srpo.budget.stop_at_hours", budget["stop_at_hours"], 0, above_low=True, nullable=True
            ),
        ),
        kernels=KernelsConfig(compile=_flag("srpo.kernels.compile", values["kernels"]["compile"])),
    )
    _check_effective(values, config)
    return config


@cache
def _default_node() -> Any:
    return OmegaConf.load(files("srpo_verl.config").joinpath("base.yaml").open()).srpo


def default_values() -> dict:
    """The defaults of the `srpo` group as nested plain values, read from base.yaml."""
    return OmegaConf.to_container(_default_node())  # type: ignore[return-value]


def _plain(node: Any) -> dict:
    if OmegaConf.is_config(node):
        node = OmegaConf.to_container(node, resolve=True)
    if not isinstance(node, Mapping):
        raise ConfigError("srpo", node, "has to be the group of srpo_verl/config/base.yaml; use --config-name srpo")
    return dict(node)


def _check_keys(values: Mapping, defaults: Mapping, path: str) -> None:
    for key, value in values.items():
        if key not in defaults:
            known = ", ".join(f"{path}.{name}" for name in defaults)
            raise ConfigError(f"{path}.{key}", value, f"no such key; known here: {known}")
        if isinstance(defaults[key], Mapping):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{path}.{key}", value, "is a group; set one of its keys")
            _check_keys(value, defaults[key], f"{path}.{key}")
    for key in defaults:
        if key not in values:
            raise ConfigError(f"{path}.{key}", None, "is missing; compose from --config-path pkg://srpo_verl.config")


def _check_effective(values: Mapping, config: SrpoConfig) -> None:
    """A key that was set and cannot change anything is a misunderstanding; say so before hours are spent."""
    defaults = default_values()

    def changed(path: str) -> Any:
        here, there = values, defaults
        for key in path.split("."):
            here, there = here[key], there[key]
        return None if here == there else (here,)

    def refuse(path: str, reason: str) -> None:
        found = changed(path)
        if found is not None:
            raise ConfigError(f"srpo.{path}", found[0], f"has no effect {reason}; leave it at its default")

    if not config.uses_teacher:
        for group in ("distillation", "weighting", "teacher", "demonstration"):
            for key in defaults[group]:
                refuse(f"{group}.{key}", f"with srpo.routing={config.routing}")
    for routing, key in (("advantage_mix", "lambda"), ("fixed_negative", "advantage")):
        if config.routing in ROUTINGS and config.routing != routing:
            refuse(f"{routing}.{key}", f"with srpo.routing={config.routing} (it needs routing={routing})")
    if config.teacher.kind != "ema":
        refuse("teacher.ema_rate", f"with srpo.teacher.kind={config.teacher.kind} (it needs kind=ema)")
    if config.teacher.kind == "live":
        refuse("teacher.cpu_offload", "with srpo.teacher.kind=live (the student is the teacher)")
    if config.distillation.top_k is None:
        refuse("distillation.tail", "with srpo.distillation.top_k=null (nothing lies outside the full vocabulary)")


def _choice(key: str, value: Any, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ConfigError(key, value, f"has to be one of {', '.join(allowed)}")
    return value


def _routing(value: Any) -> str:
    if not isinstance(value, str) or not (value in ROUTINGS or is_own(value)):
        names = ", ".join(ROUTINGS)
        raise ConfigError("srpo.routing", value, f"has to be one of {names}, or module:function for one of your own")
    return value


def _flag(key: str, value: Any, nullable: bool = False) -> Any:
    if value is None and nullable:
        return None
    if not isinstance(value, bool):
        raise ConfigError(key, value, "has to be true or false" + (", or null" if nullable else ""))
    return value


def _number(
    key: str,
    value: Any,
    low: float | None = None,
    high: float | None = None,
    above_low: bool = False,
    nullable: bool = False,
) -> Any:
    if value is None and nullable:
        return None
    bounds = f"{'above' if above_low else 'at least'} {low}" if low is not None else "finite"
    if high is not None:
        bounds += f" and at most {high}"
    wanted = f"has to be a number, {bounds}" + (", or null" if nullable else "")
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= float_info.max:
        raise ConfigError(key, value, wanted)
    if (low is not None and (value < low or (above_low and value == low))) or (high is not None and value > high):
        raise ConfigError(key, value, wanted)
    return float(value)


def _integer(key: str, value: Any, low: int, nullable: bool = False) -> Any:
    if value is None and nullable:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigError(key, value, f"has to be a whole number, at least {low}" + (", or null" if nullable else ""))
    return value


def _increasing(key: str, value: Any) -> tuple[float, ...]:
    wanted = "has to be a list of increasing numbers above 0, such as [1, 5, 10], or [] for none"
    if not isinstance(value, list):
        raise ConfigError(key, value, wanted)
    try:
        numbers = [_number(key, item, 0, above_low=True) for item in value]
    except ConfigError:
        raise ConfigError(key, value, wanted) from None
    if any(one >= other for one, other in pairwise(numbers)):
        raise ConfigError(key, value, wanted)
    return tuple(numbers)


def as_flat_dict(config: Any, prefix: str = "srpo") -> dict[str, Any]:
    """All leaf keys of a nested mapping as dotted names, for documentation and tests."""
    flat: dict[str, Any] = {}
    for key, value in _plain(config).items():
        if isinstance(value, Mapping):
            flat.update(as_flat_dict(value, f"{prefix}.{key}"))
        else:
            flat[f"{prefix}.{key}"] = value
    return flat
