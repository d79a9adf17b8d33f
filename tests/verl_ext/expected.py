"""What the float64 oracle says of the harness's batch, and the comparison with what the worker made of it."""

import pytest
import torch

from tests.verl_ext import harness, step_oracle

LAMBDA, FIXED = 0.7, 0.3


def facts(rewards):
    """(c, m, p) of every row: correct, another row of the group is correct, share of the group that is."""
    correct = [int(reward >= 0.5) for reward in rewards]
    groups = [
        [other for other, name in enumerate(harness.GROUPS) if name == harness.GROUPS[row]]
        for row in range(len(correct))
    ]
    teacher = [int(any(correct[other] for other in groups[row] if other != row)) for row in range(len(correct))]
    return correct, teacher, [sum(correct[other] for other in group) / len(group) for group in groups]


def shares(routing, rewards):
    """(g, d) of every row, written out from the table of docs/algorithm.md."""
    correct, teacher, pass_rate = facts(rewards)
    z = [(1 - c) * m for c, m in zip(correct, teacher, strict=True)]
    handed = [x * (1 - p) for x, p in zip(z, pass_rate, strict=True)]
    ones, zeros = [1.0] * len(z), [0.0] * len(z)
    return {
        "none": (ones, zeros),
        "sample": ([1 - x for x in z], z),
        "all": (zeros, teacher),
        "correct_only": (zeros, [m * c for c, m in zip(correct, teacher, strict=True)]),
        "failed_only": (zeros, z),
        "advantage_mix": ([LAMBDA] * len(z), [(1 - LAMBDA) * m for m in teacher]),
        "handover": ([1 - x for x in handed], handed),
        "keep_negative": (ones, z),
        "fixed_negative": (ones, zeros),
        "own": (ones, [0.5 * x for x in z]),
    }[routing]


def oracle(model, routing="sample", tokens=None, rewards=harness.REWARDS, by_pass_rate=False, shown=True, **kwargs):
    grpo, sdpo = shares(routing, rewards)
    correct, teacher, pass_rate = facts(rewards)
    advantages = [reward - p for reward, p in zip(rewards, pass_rate, strict=True)]
    if routing == "fixed_negative":
        advantages = [-FIXED if m and not c else a for c, m, a in zip(correct, teacher, advantages, strict=True)]
    if by_pass_rate:
        kwargs |= {"pass_rates": pass_rate, "groups": harness.GROUPS}
    settings = {
        "grpo": grpo,
        "sdpo": sdpo,
        "advantages": advantages,
        "steps": harness.STEPS,
        "temperature": harness.TEMPERATURE,
        "top_k": harness.TOP_K,
        "learning_rate": harness.LEARNING_RATE,
        "adam_eps": harness.ADAM_EPS,
        "ema_rate": harness.EMA_RATE,
    }
    return step_oracle.run(model, harness.batch_tensors(tokens, shown), **(settings | kwargs))


def assert_same(result, expected, tolerance):
    for step, wanted in enumerate(expected["metrics"]):
        for key, value in wanted.items():
            assert result["metrics"][step][key] == pytest.approx(value, abs=tolerance, rel=tolerance), (step, key)
    for part in ("student", "teacher"):
        for name, tensor in result[part].items():
            torch.testing.assert_close(
                tensor,
                expected[part][name],
                atol=tolerance,
                rtol=tolerance,
                msg=lambda text, where=f"{part} {name}": f"{where}: {text}",
            )
