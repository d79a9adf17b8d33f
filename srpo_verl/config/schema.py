"""The `srpo` configuration group as typed values. Its defaults are stated in base.yaml and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any

from omegaconf import OmegaConf

from srpo_verl.algos.routings import ROUTINGS, effects_of, is_own
from srpo_verl.algos.schedule import distillation_coefficient
from srpo_verl.config.demonstration import DemonstrationConfig, read_demonstration
from srpo_verl.config.endurance import CheckpointsConfig, GuardsConfig, read_checkpoints, read_guards
from srpo_verl.config.values import choice, flag, flatten, increasing, integer, number
from srpo_verl.errors import ConfigError

TEACHER_KINDS = ("ema", "frozen", "live")
CREDITS = ("none", "teacher_ratio")
SCHEDULES = ("constant", "linear")


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
class ScheduleConfig:
    kind: str
    start: int
    end: int

    def coefficient(self, step: int) -> float:
        """Of distillation in a training step."""
        if self.kind == "constant":
            return 1.0
        return distillation_coefficient(step, start=self.start, end=self.end)


@dataclass(frozen=True)
class WeightingConfig:
    beta: float
    floor: float
    pass_rate: bool


@dataclass(frozen=True)
class TeacherConfig:
    kind: str
    ema_rate: float
    cpu_offload: bool | None


@dataclass(frozen=True)
class BudgetConfig:
    hours: tuple[float, ...]
    stop_at_hours: float | None


@dataclass(frozen=True)
class TokenSampleConfig:
    every: int
    rollouts: int
    tokens: int


@dataclass(frozen=True)
class SrpoConfig:
    """Checked values of the `srpo` group; see base.yaml for what each one means."""

    routing: str
    success_threshold: float
    distillation: DistillationConfig
    schedule: ScheduleConfig
    weighting: WeightingConfig
    mix_lambda: float
    negative_advantage: float
    credit: str
    credit_epsilon: float
    credit_lambda: float
    teacher: TeacherConfig
    demonstration: DemonstrationConfig
    budget: BudgetConfig
    checkpoints: CheckpointsConfig
    guards: GuardsConfig
    kernels: KernelsConfig
    token_sample: TokenSampleConfig

    @property
    def uses_teacher(self) -> bool:
        """A routing of the user's own is taken to distil; only the driver imports it."""
        return self.distils or self.gives_credit

    @property
    def remembers(self) -> bool:
        """Whether a correct response of an earlier step may become a demonstration."""
        return self.uses_teacher and "memory" in self.demonstration.sources

    @property
    def distils(self) -> bool:
        """Whether the routing may give a row a share of distillation."""
        return effects_of(self.routing).distils

    @property
    def gives_credit(self) -> bool:
        """Whether the teacher scales advantages."""
        return self.credit != "none"

    def credit_share(self, step: int) -> float:
        """How much of the teacher's factor advantages take in a training step."""
        return self.credit_lambda * self.schedule.coefficient(step)

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
    weighting, budget = values["weighting"], values["budget"]

    ratio, fixed = values["teacher_ratio"], values["fixed_negative"]
    credit = choice("srpo.credit", values["credit"], CREDITS)
    top_k = integer("srpo.distillation.top_k", distillation["top_k"], low=1, nullable=True)
    config = SrpoConfig(
        routing=_routing(values["routing"]),
        success_threshold=number("srpo.success_threshold", values["success_threshold"]),
        distillation=DistillationConfig(
            # For credit the teacher scores one token a position, the sampled one.
            top_k=top_k if credit == "none" else 1,
            divergence_alpha=number("srpo.distillation.divergence_alpha", distillation["divergence_alpha"], 0, 1),
            tail=flag("srpo.distillation.tail", distillation["tail"]),
            is_clip=number("srpo.distillation.is_clip", distillation["is_clip"], 0, None, True, nullable=True),
        ),
        schedule=ScheduleConfig(
            kind=choice("srpo.schedule.kind", values["schedule"]["kind"], SCHEDULES),
            start=integer("srpo.schedule.start", values["schedule"]["start"], low=0),
            end=integer("srpo.schedule.end", values["schedule"]["end"], low=1),
        ),
        weighting=WeightingConfig(
            beta=number("srpo.weighting.beta", weighting["beta"], 0),
            floor=number("srpo.weighting.floor", weighting["floor"], 0, 1, below_high=True),
            pass_rate=flag("srpo.weighting.pass_rate", weighting["pass_rate"]),
        ),
        mix_lambda=number("srpo.advantage_mix.lambda", values["advantage_mix"]["lambda"], 0, 1),
        negative_advantage=number("srpo.fixed_negative.advantage", fixed["advantage"], 0, above_low=True),
        credit=credit,
        credit_epsilon=number("srpo.teacher_ratio.epsilon", ratio["epsilon"], 0, 1, True, below_high=True),
        credit_lambda=number("srpo.teacher_ratio.lambda", ratio["lambda"], 0, 1, above_low=True),
        teacher=TeacherConfig(
            kind=choice("srpo.teacher.kind", teacher["kind"], TEACHER_KINDS),
            ema_rate=number("srpo.teacher.ema_rate", teacher["ema_rate"], 0, 1, above_low=True),
            cpu_offload=flag("srpo.teacher.cpu_offload", teacher["cpu_offload"], nullable=True),
        ),
        demonstration=read_demonstration(values["demonstration"]),
        budget=BudgetConfig(
            hours=increasing("srpo.budget.hours", budget["hours"]),
            stop_at_hours=number(
                "srpo.budget.stop_at_hours", budget["stop_at_hours"], 0, above_low=True, nullable=True
            ),
        ),
        checkpoints=read_checkpoints(values["checkpoints"]),
        guards=read_guards(values["guards"]),
        kernels=KernelsConfig(compile=flag("srpo.kernels.compile", values["kernels"]["compile"])),
        token_sample=_token_sample(values["token_sample"]),
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


def check_key(key: str, value: Any) -> None:
    """Raise ConfigError where a dotted key, `srpo.` and more, names nothing in the group."""
    path, defaults = "srpo", default_values()
    for part in key.split(".")[1:]:
        if part not in defaults:
            raise _no_such_key(path, part, value, defaults)
        path, defaults = f"{path}.{part}", defaults[part] if isinstance(defaults[part], Mapping) else {}


def _no_such_key(path: str, key: str, value: Any, siblings: Mapping) -> ConfigError:
    close = "".join(f"did you mean {path}.{match}? " for match in get_close_matches(key, [*siblings], n=1))
    known = f"known here: {', '.join(f'{path}.{name}' for name in siblings)}" if siblings else f"{path} is a value"
    return ConfigError(f"{path}.{key}", value, f"no such key; {close}{known}")


def _check_keys(values: Mapping, defaults: Mapping, path: str) -> None:
    for key, value in values.items():
        if key not in defaults:
            raise _no_such_key(path, key, value, defaults)
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

    if config.gives_credit and config.routing != "none":
        raise ConfigError(
            "srpo.credit",
            config.credit,
            f"goes with srpo.routing=none alone, not with {config.routing}: the teacher then scales the advantages of "
            "rows that take GRPO, and computes no divergence",
        )
    if not config.gives_credit:
        for key in ("epsilon", "lambda"):
            refuse(f"teacher_ratio.{key}", "with srpo.credit=none (it needs credit=teacher_ratio)")
    idle = [] if config.distils else ["distillation", "weighting"]
    idle += [] if config.uses_teacher else ["schedule", "teacher", "demonstration"]
    for key in flatten(defaults):
        if key.split(".")[0] in idle:
            refuse(key, f"with srpo.routing={config.routing}")
    for routing, key in (("advantage_mix", "lambda"), ("fixed_negative", "advantage")):
        if config.routing in ROUTINGS and config.routing != routing:
            refuse(f"{routing}.{key}", f"with srpo.routing={config.routing} (it needs routing={routing})")
    if config.schedule.kind == "constant":
        for key in ("start", "end"):
            refuse(f"schedule.{key}", "with srpo.schedule.kind=constant (it needs kind=linear)")
    elif config.schedule.end <= config.schedule.start:
        raise ConfigError(
            "srpo.schedule.end", config.schedule.end, f"has to exceed srpo.schedule.start={config.schedule.start}"
        )
    for guard, keys in (("length", ("length_growth", "length_shrink")), ("entropy", ("entropy_floor",))):
        for key in keys if config.guards.levels[guard] == "off" else ():
            refuse(f"guards.{key}", f"with srpo.guards.{guard}=off")
    if config.weighting.beta == 0:
        refuse("weighting.floor", "with srpo.weighting.beta=0 (all weights are 1)")
    _check_sources(config, refuse)
    if config.token_sample.every == 0:
        for key in ("rollouts", "tokens"):
            refuse(f"token_sample.{key}", "with srpo.token_sample.every=0 (no sample is written)")
    if config.teacher.kind != "ema":
        refuse("teacher.ema_rate", f"with srpo.teacher.kind={config.teacher.kind} (it needs kind=ema)")
    if config.teacher.kind == "live":
        refuse("teacher.cpu_offload", "with srpo.teacher.kind=live (the student is the teacher)")
        refuse("demonstration.show", "with srpo.teacher.kind=live (student and teacher would be one, and agree)")
    if config.distillation.top_k is None:
        refuse("distillation.tail", "with srpo.distillation.top_k=null (nothing lies outside the full vocabulary)")


def _check_sources(config: SrpoConfig, refuse: Callable[[str, str], None]) -> None:
    """Every source has what it needs, and every setting of a source has its source."""
    demonstration = config.demonstration
    sources = demonstration.sources
    if "sibling" not in sources:
        refuse("demonstration.select", "without the source sibling in srpo.demonstration.sources")
    if "memory" not in sources:
        for key in ("per_prompt", "max_prompts"):
            refuse(f"demonstration.memory.{key}", "without the source memory in srpo.demonstration.sources")
    if "reference" not in sources:
        refuse("demonstration.reference_column", "without the source reference in srpo.demonstration.sources")
    elif demonstration.reference_column is None:
        raise ConfigError(
            "srpo.demonstration.reference_column",
            None,
            "has to name a column of the data, such as reward_model.ground_truth: the source reference shows it",
        )
    effects = effects_of(config.routing)
    if config.distils and not effects.distils_failed:
        refuse("demonstration.environment_feedback", f"with srpo.routing={config.routing} (it is on failed rollouts)")
    if config.weighting.pass_rate and sources[:2] == ("sibling", "memory") and not effects.distils_correct:
        raise ConfigError(
            "srpo.demonstration.sources",
            list(sources),
            f"remembers for nothing with srpo.weighting.pass_rate=true and srpo.routing={config.routing}: a failure "
            "without a correct sibling has pass rate 0 and weight 0; leave one of them out",
        )


def _token_sample(values: Mapping) -> TokenSampleConfig:
    lowest = {"every": 0, "rollouts": 1, "tokens": 1}
    return TokenSampleConfig(
        **{key: integer(f"srpo.token_sample.{key}", values[key], low=low) for key, low in lowest.items()}
    )


def _routing(value: Any) -> str:
    if not isinstance(value, str) or not (value in ROUTINGS or is_own(value)):
        names = ", ".join(ROUTINGS)
        raise ConfigError("srpo.routing", value, f"has to be one of {names}, or module:function for one of your own")
    return value
