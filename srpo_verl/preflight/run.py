"""All checks of model, data and GPUs in their order, and the stop before Ray."""

from __future__ import annotations

import os
import sys
import time

from omegaconf import DictConfig, OmegaConf

from srpo_verl.config.schema import SrpoConfig
from srpo_verl.errors import ConfigError
from srpo_verl.preflight import VARIABLE
from srpo_verl.preflight.data import split_findings
from srpo_verl.preflight.findings import ERROR, MAX_SHOWN, NOTE, OK, Finding, errors, last_line, render
from srpo_verl.preflight.hardware import gpu_findings
from srpo_verl.preflight.loading import (
    LoadedModel,
    LoadError,
    load_extern_object,
    load_model,
    load_renderer,
    verl_refusal,
)
from srpo_verl.preflight.model import model_errors
from srpo_verl.preflight.reward import Verifier, find_verifier
from srpo_verl.preflight.settings import DataSettings, data_settings, default_template_kwargs
from srpo_verl.preflight.template import RESERVED, Renderer, argument_findings


def before_ray(config: DictConfig, srpo: SrpoConfig) -> None:
    """Check a run that is about to start; print what is wrong or unchecked, and end the process at an error."""
    switch = os.environ.get(VARIABLE, "on")
    if switch not in ("on", "off"):
        raise ConfigError(VARIABLE, switch, "has to be on or off")
    if switch == "off":
        print(f"srpo_verl: {VARIABLE}=off: model, data and GPUs are not checked", file=sys.stderr, flush=True)
        return
    started = time.perf_counter()
    findings = examine(config, srpo)
    told = [finding for finding in findings if finding.level != OK]
    wrong = errors(findings)
    if told:
        print(render(told), file=sys.stderr)
    if len(wrong) > MAX_SHOWN:
        print("python -m srpo_verl check with --out FILE writes the whole list", file=sys.stderr)
    seconds = time.perf_counter() - started
    print(f"srpo_verl: model, data and GPUs checked in {seconds:.1f} s", file=sys.stderr, flush=True)
    if wrong:
        # What veRL has printed so far would otherwise come after the message.
        sys.stdout.flush()
        sys.exit(last_line(findings))


def examine(config: DictConfig, srpo: SrpoConfig) -> list[Finding]:
    """Everything that is found in a composed configuration that has passed `check_run`."""
    settings = data_settings(config, srpo)
    findings = gpu_findings(config)
    if refusal := verl_refusal(config):
        findings.append(Finding(ERROR, "veRL's check of the configuration", refusal, "correct the configuration"))
    model, found = _model(config, srpo)
    findings += found
    renderer = None
    if model is not None:
        renderer, found = _renderer(config, model, settings)
        findings += found
    verifier, found = find_verifier(*_reward_function(config))
    findings += found
    if settings.feedback and verifier.feedback_texts is None:
        message = "the length of the feedback is unchecked: the reward function's file defines no FEEDBACK_TEXTS"
        findings.append(Finding(NOTE, "srpo.demonstration.environment_feedback", message))
    if not settings.reads_ground_truth:
        message = "a reward manager of your own: data sources and ground truths are unchecked"
        findings.append(Finding(NOTE, "reward.reward_manager", message))
    return [*findings, *_data(config, settings, verifier, renderer)]


def _model(config: DictConfig, srpo: SrpoConfig) -> tuple[LoadedModel | None, list[Finding]]:
    path = config.actor_rollout_ref.model.path
    if "://" in path:
        message = f"actor_rollout_ref.model.path={path!r} is not a local folder: model and lengths are unchecked"
        return None, [Finding(NOTE, "model", message)]
    try:
        model = load_model(config)
    except LoadError as error:
        return None, [Finding(ERROR, "model", str(error), error.remedy)]
    facts = model.facts
    sizes = f"vocabulary {facts.vocab_size}, tokenizer {facts.tokenizer_length}, positions {facts.max_positions}"
    wrong = [Finding(ERROR, "model", str(error)) for error in model_errors(config, srpo, facts)]
    return model, [*wrong, Finding(OK, "model", f"{path}: {sizes}")]


def _renderer(config: DictConfig, model: LoadedModel, settings: DataSettings) -> tuple[Renderer | None, list[Finding]]:
    try:
        # Those that cannot be passed are an error by themselves, and not one of every row.
        possible = {name: value for name, value in settings.template_kwargs.items() if name not in RESERVED}
        renderer = load_renderer(config, model, possible, teacher=settings.teacher_limit is not None)
    except LoadError as error:
        return None, [Finding(ERROR, "chat template", str(error), error.remedy)]
    template = getattr(model.tokenizer, "chat_template", None)
    if not isinstance(template, str):
        return renderer, []
    return renderer, argument_findings(template, settings.template_kwargs, default_template_kwargs())


def _reward_function(config: DictConfig) -> tuple[str | None, str | None]:
    node = config.reward.get("custom_reward_function") or {}
    return node.get("path"), node.get("name")


def _data(config: DictConfig, settings: DataSettings, verifier: Verifier, renderer: Renderer | None) -> list[Finding]:
    path = OmegaConf.select(config, "data.custom_cls.path")
    if path is None:
        return [
            finding
            for split in (settings.train, settings.val)
            for finding in split_findings(split, settings, verifier, renderer)
        ]
    name = OmegaConf.select(config, "data.custom_cls.name")
    try:
        load_extern_object(path, name)
    except Exception as error:
        cause = error.__cause__ or error
        message = f"data.custom_cls.path={path!r}, .name={name!r}: {type(cause).__name__}: {cause}"
        return [Finding(ERROR, "data", message, "veRL has to be able to load the class")]
    return [Finding(NOTE, "data", f"data.custom_cls={name}: files and rows are unchecked")]
