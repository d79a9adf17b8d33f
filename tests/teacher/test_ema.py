"""The average of the weights, and how far it is from its source."""

import math
from typing import ClassVar

import pytest
import torch
from torch.utils._pytree import tree_map_only

from srpo_verl.teacher.ema import TRANSFER_BYTES, ema_step, squared_distance


@pytest.mark.parametrize("rate", [0.05, 0.5, 1.0])
def test_the_closed_form(rate):
    """theta'_n = (1-r)^n theta'_0 + sum_i r (1-r)^(n-i) theta_i, in float64."""
    generator = torch.Generator().manual_seed(0)
    shapes, steps = [(3, 4), (5,), ()], 40
    teacher = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    start = [tensor.clone() for tensor in teacher]
    students = [
        [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes] for _ in range(steps)
    ]
    for student in students:
        ema_step(teacher, student, rate)
    for position, average in enumerate(teacher):
        expected = (1 - rate) ** steps * start[position]
        for index, student in enumerate(students, start=1):
            expected = expected + rate * (1 - rate) ** (steps - index) * student[position]
        torch.testing.assert_close(average, expected, rtol=1e-12, atol=1e-12)


def test_in_place_and_the_student_unchanged():
    teacher, student = torch.zeros(3), torch.ones(3)
    address = teacher.data_ptr()
    ema_step([teacher], [student], 0.25)
    assert teacher.data_ptr() == address
    assert teacher.tolist() == [0.25] * 3
    assert student.tolist() == [1.0] * 3


def test_parameters_that_require_gradients():
    teacher, student = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.ones(2))
    ema_step([teacher], [student], 0.5)
    assert teacher.tolist() == [0.5, 0.5]
    assert teacher.grad_fn is None
    assert teacher.requires_grad


def test_a_bf16_student_moves_an_fp32_teacher_by_less_than_bf16_can_hold():
    student = torch.full((4,), 1.0 + 2**-7, dtype=torch.bfloat16)  # the next bf16 after 1
    teacher = torch.ones(4)
    ema_step([teacher], [student], 0.05)
    torch.testing.assert_close(teacher, torch.full((4,), 1.0 + 0.05 * 2**-7), rtol=1e-7, atol=0)
    # The same step in bf16 would be lost, which is why a bf16 teacher is refused below.
    assert torch.ones(4, dtype=torch.bfloat16).lerp_(student, 0.05).tolist() == [1.0] * 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_teacher_in_half_precision_is_refused(dtype):
    with pytest.raises(ValueError, match=r"teacher tensor 1 is torch\.\w*float16; the average has to be kept in fp32"):
        ema_step([torch.zeros(2), torch.zeros(2, dtype=dtype)], [torch.ones(2), torch.ones(2)], 0.05)


def test_shapes_that_differ_are_not_broadcast():
    with pytest.raises(ValueError, match=r"tensor 0: teacher has shape \(3, 2\), student \(2,\)"):
        ema_step([torch.zeros(3, 2)], [torch.ones(2)], 0.05)


@pytest.mark.parametrize(("teachers", "students"), [(2, 1), (1, 2), (0, 1)])
def test_counts_that_differ(teachers, students):
    pairs = [torch.zeros(2) for _ in range(teachers)], [torch.ones(2) for _ in range(students)]
    with pytest.raises(ValueError, match=r"shorter|longer"):
        ema_step(*pairs, 0.05)
    with pytest.raises(ValueError, match=r"shorter|longer"):
        squared_distance(*pairs)


def test_distance_by_hand():
    teacher = [torch.tensor([1.0, 2.0]), torch.tensor([[4.0]])]
    student = [torch.tensor([1.0, 4.0]), torch.tensor([[1.0]])]
    sums = squared_distance(teacher, student)
    assert sums.tolist() == [0 + 4 + 9, 1 + 16 + 1]
    assert sums.dtype == torch.float64
    assert math.sqrt(sums[0] / sums[1]) == pytest.approx(math.sqrt(13 / 18))


def test_distance_is_zero_at_equality_and_its_sums_add_up_over_shards():
    generator = torch.Generator().manual_seed(1)
    teacher, student = torch.randn(10, 4, generator=generator), torch.randn(10, 4, generator=generator)
    assert squared_distance([student], [student])[0] == 0
    parts = sum(squared_distance([teacher[rows]], [student[rows]]) for rows in (slice(0, 3), slice(3, 10)))
    # Within a chunk the sum is fp32: the same numbers in other parts differ by a few roundings (6e-8).
    torch.testing.assert_close(parts, squared_distance([teacher], [student]), rtol=1e-6, atol=0)


def test_a_step_returns_the_distance_afterwards():
    generator = torch.Generator().manual_seed(2)
    teacher, student = torch.randn(2, 300, 7, generator=generator)
    before = squared_distance([teacher], [student])
    after = ema_step([teacher], [student], 0.25)
    assert torch.equal(after, squared_distance([teacher], [student]))
    # The difference shrinks by 1 - rate; rounding is that of fp32.
    torch.testing.assert_close(after[0], 0.75**2 * before[0], rtol=1e-5, atol=0)


def test_distance_is_summed_in_float64():
    """A large model's small differences vanish in an fp32 sum; here 2^24 + 1 ones would."""
    ones = torch.ones(1)
    sums = squared_distance([torch.zeros(1), *[torch.zeros(1)] * 3], [ones * 4096, ones, ones, ones])
    assert sums.tolist() == [2**24 + 3, 2**24 + 3]


def test_the_distance_to_a_bf16_student_is_that_of_its_values():
    student = torch.tensor([1.0 + 2**-7], dtype=torch.bfloat16)
    assert squared_distance([torch.ones(1)], [student])[0].item() == 2.0**-14
    assert squared_distance([], []).tolist() == [0.0, 0.0]


class Elsewhere(torch.Tensor):
    """A tensor on another device, as far as anyone can see; every copy between there and here is written down."""

    copies: ClassVar[list[int]] = []
    """Bytes of each."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device="meta"
        )

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        args_in, kwargs_in = tree_map_only(cls, lambda tensor: tensor.inner, (args, kwargs))
        result = func(*args_in, **kwargs_in)
        name = func.overloadpacket.__name__
        if name == "copy_" and isinstance(args[0], cls) != isinstance(args[1], cls):
            cls.copies.append(args[1].numel() * args[0].element_size())
        if name == "_to_copy" and str(kwargs.get("device")) == "cpu":
            cls.copies.append(result.numel() * result.element_size())
            return result
        if name.endswith("_"):
            return args[0]
        return tree_map_only(torch.Tensor, cls, result)


# Tensors of all sizes, in all 3.2 times what travels at once; one is larger than that.
SIZES = [*[1000] * 500, TRANSFER_BYTES // 4 + 5, *[300_000] * 60, *[2_000_000] * 9]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("teacher_is_here", [True, False])
def test_between_devices_weights_travel_in_pieces_of_64_mib(teacher_is_here, dtype):
    values = torch.linspace(-1, 1, max(SIZES))
    students = [values[:size].to(dtype) for size in SIZES]
    expected = [torch.zeros(size) for size in SIZES]
    sums = ema_step(expected, students, 0.25)

    teachers = [torch.zeros(size) for size in SIZES]
    Elsewhere.copies = []
    if teacher_is_here:
        found = ema_step(teachers, [Elsewhere(student) for student in students], 0.25)
    else:
        found = ema_step([Elsewhere(teacher) for teacher in teachers], students, 0.25)
        assert Elsewhere.copies.pop() < 2**16  # the sums
    assert all(torch.equal(*pair) for pair in zip(teachers, expected, strict=True))
    # The same sums over other chunks; off the CPU those are long, and this dot product adds them up one by one.
    torch.testing.assert_close(found, sums, rtol=1e-5 if teacher_is_here else 1e-3, atol=0)

    total = 4 * sum(SIZES)
    assert Elsewhere.copies == [2**26] * (total // 2**26) + [total % 2**26]


def test_on_one_device_nothing_is_copied():
    Elsewhere.copies = []
    teacher, student = Elsewhere(torch.zeros(5)), Elsewhere(torch.ones(5))
    assert ema_step([teacher], [student], 0.25).tolist() == [5 * 0.75**2, 5.0]
    assert Elsewhere.copies == [16]  # the sums


@pytest.mark.parametrize("accelerator", [True, False])
def test_the_side_on_the_cpu_is_pinned_where_that_is_possible(monkeypatch, accelerator):
    asked = []
    original = torch.Tensor.new_empty

    def new_empty(tensor, *size, pin_memory=False, **kwargs):
        asked.append((tensor.device.type, pin_memory))
        return original(tensor, *size, **kwargs)

    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: accelerator)
    ema_step([torch.zeros(3)], [Elsewhere(torch.ones(3))], 0.25)
    assert asked[:2] == [("meta", False), ("cpu", accelerator)]
