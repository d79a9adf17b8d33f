"""Resuming with a teacher: what a checkpoint has to hold."""

from types import SimpleNamespace

import pytest

from srpo_verl.config.schema import parse
from srpo_verl.verl_ext.teacher_weights import TeacherWeights
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
