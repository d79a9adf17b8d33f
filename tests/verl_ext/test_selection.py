"""What veRL picks for a configuration is ours, or the run is refused; resolved by veRL's own code."""

import os
from copy import deepcopy

import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils import tensordict_utils as tu
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from srpo_verl.errors import ConfigError
from srpo_verl.start import ConfigCheck
from srpo_verl.verl_ext import engine as srpo_engine
from srpo_verl.verl_ext.fields import SCORE, TEACHER_LOG_PROBS, WANT_SUPPORT
from srpo_verl.verl_ext.selection import check_selection
from srpo_verl.verl_ext.trainer import SrpoTrainer
from tests.config import NAMES, compose

MODE, STRATEGY = "trainer.v1.trainer_mode", "actor_rollout_ref.actor.strategy"
ESTIMATOR, LOSS = "algorithm.adv_estimator", "actor_rollout_ref.actor.policy_loss.loss_mode"


@pytest.fixture(scope="module")
def shipped():
    return compose("srpo")


def changed(config, **values):
    config = deepcopy(config)
    for key, value in values.items():
        OmegaConf.update(config, key, value, force_add=True)
    return config


def refusal(config, environment=None):
    with pytest.raises(ConfigError) as raised:
        check_selection(config, environment or {})
    return raised.value


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("overrides", [[], ["platform=cpu", f"{STRATEGY}=fsdp"]])
def test_every_named_configuration_runs_our_code(name, overrides):
    config = compose(name, *overrides)
    before = OmegaConf.to_container(config)
    check_selection(config, os.environ)
    assert OmegaConf.to_container(config) == before


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        (MODE, "sync", "PPOTrainerSync"),
        (MODE, "colocate_async", "PPOTrainerColocateAsync"),
        (ESTIMATOR, "grpo", "compute_grpo_outcome_advantage"),
        (LOSS, "vanilla", "compute_policy_loss_vanilla"),
    ],
)
def test_veRL_s_own_code_is_refused_by_its_name(shipped, key, value, found):
    error = refusal(changed(shipped, **{key: value}))
    assert (error.key, error.value) == (key, value)
    assert found in error.remedy
    assert "set it to srpo" in error.remedy


@pytest.mark.parametrize("key", [MODE, ESTIMATOR, LOSS, STRATEGY])
def test_a_name_that_veRL_does_not_know(shipped, key):
    error = refusal(changed(shipped, **{key: "unheard_of"}))
    assert (error.key, error.value) == (key, "unheard_of")
    assert "veRL finds nothing to run" in error.remedy


def test_the_right_word_over_another_s_code_is_refused(shipped, monkeypatch):
    """Another plugin may have taken the name."""
    monkeypatch.setitem(POLICY_LOSS_REGISTRY, "srpo", POLICY_LOSS_REGISTRY["vanilla"])
    assert "compute_policy_loss_vanilla" in refusal(shipped).remedy
    monkeypatch.undo()
    monkeypatch.setitem(ADV_ESTIMATOR_REGISTRY, "srpo", ADV_ESTIMATOR_REGISTRY["grpo"])
    assert "compute_grpo_outcome_advantage" in refusal(shipped).remedy
    monkeypatch.undo()
    monkeypatch.setitem(TRAINER_REGISTRY, "srpo", PPOTrainerSync)
    assert "PPOTrainerSync" in refusal(shipped).remedy
    monkeypatch.undo()
    monkeypatch.setitem(EngineRegistry._engines["srpo_student"]["fsdp2"], "cuda", FSDPEngineWithLMHead)
    assert "FSDPEngineWithLMHead" in refusal(shipped, {"VERL_ENGINE_DEVICE": "cuda"}).remedy


def test_the_engine_is_the_one_of_the_run_s_processes(shipped, monkeypatch):
    """veRL lets the environment choose: that of the run, not of this process."""
    error = refusal(shipped, {"VERL_ENGINE_DEVICE": "tpu"})
    assert error.key == STRATEGY
    assert "No engine registered for device='tpu'" in error.remedy
    monkeypatch.setenv("VERL_ENGINE_DEVICE", "tpu")
    check_selection(shipped, {"VERL_ENGINE_DEVICE": "cuda"})
    assert os.environ["VERL_ENGINE_DEVICE"] == "tpu"


def test_a_trainer_that_names_veRL_s_worker_is_refused_and_a_subclass_of_ours_is_not(shipped, monkeypatch):
    class Mine(SrpoTrainer):
        pass

    class WithoutOurWorker(SrpoTrainer):
        def _init_resource_pool_mgr(self):
            PPOTrainerSync._init_resource_pool_mgr(self)

    monkeypatch.setitem(TRAINER_REGISTRY, "mine", Mine)
    monkeypatch.setitem(TRAINER_REGISTRY, "without", WithoutOurWorker)
    check_selection(changed(shipped, **{MODE: "mine"}), {})
    error = refusal(changed(shipped, **{MODE: "without"}))
    assert "ActorRolloutRefWorker" in error.remedy
    with_reference = changed(shipped, **{MODE: "without", "actor_rollout_ref.actor.use_kl_loss": True})
    assert "actor_rollout_ref" in refusal(with_reference).remedy


def test_the_callback_ends_the_process_before_ray(shipped):
    with pytest.raises(SystemExit, match=r"srpo_verl: trainer\.v1\.trainer_mode='sync': .*'srpo'"):
        ConfigCheck().on_job_start(changed(shipped, **{MODE: "sync"}))


# --- in the update ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asks", [TEACHER_LOG_PROBS, SCORE, WANT_SUPPORT])
def test_a_teacher_never_falls_back_to_veRL_s_own_code(asks, monkeypatch):
    """Whatever of veRL makes a micro-batch its own: with something of the teacher in it, that is an error."""
    monkeypatch.setattr(FSDPEngineWithLMHead, "prepare_model_inputs", lambda self, batch: ({}, {}))
    engine = object.__new__(srpo_engine.SrpoEngine)
    batch = TensorDict({"responses": torch.zeros(1, 2), "temperature": torch.ones(1)}, batch_size=1)
    engine.prepare_model_inputs(batch)
    if asks == TEACHER_LOG_PROBS:
        batch[asks] = torch.zeros(1, 2)
    else:
        tu.assign_non_tensor(batch, **{asks: True})
    with pytest.raises(RuntimeError, match=f"{asks} would be computed by veRL's own code, which knows no teacher"):
        engine.prepare_model_inputs(batch)
