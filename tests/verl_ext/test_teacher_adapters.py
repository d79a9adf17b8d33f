"""What a LoRA run's teacher saves and what it refuses to resume from; the update itself is in test_lora.py."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from srpo_verl.config.schema import parse
from srpo_verl.verl_ext.teacher.adapters import AdapterWeights
from srpo_verl.verl_ext.teacher.weights import TeacherWeights
from tests.config import compose


@pytest.fixture(scope="module", autouse=True)
def one_process(tmp_path_factory):
    store = dist.FileStore(str(tmp_path_factory.mktemp("store") / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Student(torch.nn.Module):
    def __init__(self, rank=2):
        super().__init__()
        self.base = torch.nn.Linear(4, 4).requires_grad_(False)
        self.lora = torch.nn.Linear(4, rank, bias=False).to(torch.bfloat16)


def adapters(*overrides, student=None):
    srpo = parse(compose("srpo", *overrides).srpo)
    settings = SimpleNamespace(param_offload=False, offload_policy=False)
    return AdapterWeights(SimpleNamespace(module=student or Student(), engine_config=settings), srpo)


def test_the_average_is_in_fp32_and_the_base_is_not_copied():
    student = Student()
    teacher = adapters(student=student)
    assert teacher.names == ["lora.weight"]
    assert [value.dtype for value in teacher.average] == [torch.float32]
    start = student.lora.weight.detach().clone()
    with torch.no_grad():
        student.lora.weight += 1
    moved = student.lora.weight.detach().float() - start.float()
    expected = (0.95 * moved).norm() / student.lora.weight.detach().float().norm()
    assert teacher.step() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(teacher.average[0], start.float() + 0.05 * moved)


def test_a_model_without_a_base_is_refused():
    with pytest.raises(ValueError, match="lora_rank is set, but"):
        adapters(student=torch.nn.Linear(2, 2))


@pytest.mark.parametrize("kind", ["ema", "frozen"])
def test_what_is_saved_is_what_is_loaded(tmp_path, kind):
    override = f"srpo.teacher.kind={kind}"
    saved, loaded = adapters(override), adapters(override)
    assert not torch.equal(saved.average[0], loaded.average[0])
    saved.save(str(tmp_path / "actor"), 1, None)
    loaded.load(f"{tmp_path}/actor/")
    assert torch.equal(saved.average[0], loaded.average[0])


def test_old_checkpoints_are_removed(tmp_path):
    teacher = adapters()
    for step in (1, 2, 3, 3):
        teacher.save(str(tmp_path / f"global_step_{step}" / "actor"), step, 2)
    assert sorted(path.parent.name for path in tmp_path.glob("*/srpo_teacher")) == ["global_step_2", "global_step_3"]


def refused(teacher, tmp_path, error, match):
    with pytest.raises(error, match=match):
        teacher.load(str(tmp_path / "actor"))


def test_a_checkpoint_without_a_teacher(tmp_path):
    refused(adapters(), tmp_path, FileNotFoundError, r"this checkpoint holds no EMA teacher.*resume_mode")
    adapters("srpo.teacher.kind=frozen").load(str(tmp_path / "actor"))  # the initial adapters, as without LoRA


def test_a_frozen_teacher_is_not_an_average(tmp_path):
    adapters("srpo.teacher.kind=frozen").save(str(tmp_path / "actor"), 1, None)
    refused(adapters(), tmp_path, FileNotFoundError, "holds no EMA teacher")


def test_an_average_is_not_a_frozen_teacher(tmp_path):
    adapters().save(str(tmp_path / "actor"), 1, None)
    teacher = adapters("srpo.teacher.kind=frozen")
    before = teacher.average[0].clone()
    teacher.load(str(tmp_path / "actor"))
    assert torch.equal(teacher.average[0], before)


def test_the_teacher_of_a_full_model(tmp_path):
    (tmp_path / "srpo_teacher").mkdir()
    (tmp_path / "srpo_teacher" / "model_world_size_1_rank_0.pt").touch()
    refused(adapters(), tmp_path, FileNotFoundError, "this teacher is a full model.*lora_rank=0")


def test_the_teacher_of_another_number_of_ranks(tmp_path):
    (tmp_path / "srpo_teacher").mkdir()
    (tmp_path / "srpo_teacher" / "adapters_world_size_2_rank_0.pt").touch()
    refused(adapters(), tmp_path, FileNotFoundError, "saved by another number of ranks")


def test_adapters_of_another_rank(tmp_path):
    adapters(student=Student(rank=3)).save(str(tmp_path / "actor"), 1, None)
    refused(adapters(), tmp_path, ValueError, "the same lora_rank")


def test_a_run_of_the_full_model_refuses_adapters(tmp_path):
    adapters().save(str(tmp_path / "actor"), 1, None)
    full = TeacherWeights(SimpleNamespace(), None, parse(compose("srpo").srpo))
    refused(full, tmp_path, FileNotFoundError, "this teacher is that of a LoRA run")
