"""Where the teacher is kept between uses, and resuming with one: what a checkpoint has to hold."""

from types import SimpleNamespace

import pytest
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.engine_workers import ActorRolloutRefWorker

from srpo_verl.config.schema import parse
from srpo_verl.verl_ext import worker as worker_module
from srpo_verl.verl_ext.teacher import model as model_module
from srpo_verl.verl_ext.teacher.averaging import keeps_on_cpu
from srpo_verl.verl_ext.teacher.weights import TeacherWeights
from tests.config import compose


class RecordingEngine:
    """Stands where the teacher's engine is, and notes which folder it was told to read."""

    def __init__(self):
        self.loaded, self.module = [], SimpleNamespace(modules=list)

    def load_checkpoint(self, folder, **kwargs):
        self.loaded.append(folder)


def weights(*overrides):
    engine = RecordingEngine()
    return TeacherWeights(engine, None, parse(compose("srpo", *overrides).srpo)), engine


def test_a_checkpoint_without_a_teacher_is_refused(tmp_path):
    """Resuming a GRPO run as SRPO would silently restart the average from the base model."""
    (tmp_path / "actor").mkdir()
    teacher, engine = weights()
    with pytest.raises(FileNotFoundError, match=r"srpo_teacher: this checkpoint holds no EMA teacher.*resume_mode"):
        teacher.load(str(tmp_path / "actor"))
    assert engine.loaded == []


def test_the_teacher_is_read_from_beside_the_actor(tmp_path):
    (tmp_path / "actor").mkdir()
    (tmp_path / "srpo_teacher").mkdir()
    teacher, engine = weights()
    teacher.load(f"{tmp_path}/actor/")
    assert engine.loaded == [str(tmp_path / "srpo_teacher")]


def test_a_frozen_teacher_needs_nothing_of_a_checkpoint(tmp_path):
    teacher, engine = weights("srpo.teacher.kind=frozen")
    teacher.load(str(tmp_path / "actor"))
    assert engine.loaded == []


OFFLOAD = "actor_rollout_ref.actor.fsdp_config"


@pytest.mark.parametrize(
    ("overrides", "on_cpu"),
    [
        ([], False),
        ([f"{OFFLOAD}.param_offload=true"], True),
        ([f"{OFFLOAD}.offload_policy=true"], True),
        ([f"{OFFLOAD}.optimizer_offload=true"], False),
        (["srpo.teacher.cpu_offload=true"], True),
        ([f"{OFFLOAD}.param_offload=true", "srpo.teacher.cpu_offload=false"], False),
    ],
)
def test_the_teacher_is_kept_where_the_student_is_unless_said_otherwise(overrides, on_cpu):
    config = compose("srpo", *overrides)
    engine = omega_conf_to_dataclass(config.actor_rollout_ref.actor).engine
    assert keeps_on_cpu(parse(config.srpo).teacher, engine) is on_cpu


@pytest.mark.parametrize("kind", ["ema", "frozen", "live"])
def test_what_building_the_teacher_leaves_cached_is_given_back_before_the_rollout_engine_measures(monkeypatch, kind):
    """veRL gives back its own models' before; the rollout engine starts after init_model."""
    log = []
    monkeypatch.setattr(ActorRolloutRefWorker, "init_model", lambda worker: log.append("veRL's models"))
    monkeypatch.setattr(model_module, "build_teacher", lambda *args: log.append("teacher"))
    monkeypatch.setattr(model_module, "aggressive_empty_cache", lambda **kwargs: log.append("given back"))
    worker = object.__new__(worker_module.SrpoWorker)
    config = compose("srpo", f"srpo.teacher.kind={kind}")
    worker.config = SimpleNamespace(srpo=config.srpo)
    worker.actor = SimpleNamespace(
        model_config=SimpleNamespace(lora_rank=0), config=None, engine=None, set_loss_fn=lambda function: None
    )
    worker.loss_fn = SimpleNamespace(keywords={"config": None})
    worker.init_model()
    assert log == ["veRL's models"] + (["teacher", "given back"] if kind != "live" else [])
