"""Methods beside the paper's, through veRL's trainer: what a run logs is worked out again from its own rollouts.

veRL writes the rollouts of every step where `trainer.rollout_data_dir` says: prompt, response, score and key of rows.
"""

import json
import os

import pandas as pd
import pytest
import torch

from tests.e2e.test_training import inputs, train
from tests.support import TINY_SRPO, run_main_ppo, tiny_parquet

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="the CPU platform is not active here"),
]

__all__ = ["inputs"]

SOURCES = ("sibling", "memory", "reference", "feedback", "nothing")
RARE = "srpo.success_threshold=0.24"
"""About one rollout in ten is correct, so that half of the groups have none."""


@pytest.fixture(scope="module")
def small(inputs, tmp_path_factory):
    """Four questions, so that each comes again in every step; three have a solution. (overrides, solutions)"""
    path = tiny_parquet(tmp_path_factory.mktemp("small"), 4)
    data = pd.read_parquet(path)
    data["solution"] = ["0 + 0 is 0", "1 + 1 is 2", "", "3 + 3 is 6"]
    data.to_parquet(path)
    questions = [prompt[0]["content"] for prompt in data["prompt"]]
    return [*inputs, f"data.train_files={path}"], dict(zip(questions, data["solution"], strict=True))


def rollouts(run, step):
    """The rows of a step, by question and session: [(question, text, score)]."""
    lines = (run.cwd / "rollouts" / f"{step}.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 16
    # The rendered prompt: "user\nQUESTION\nassistant\n". veRL sorts by ids of the groups that differ from run to run.
    told = [(row["input"].split("\n")[1], row["output"], row["score"]) for row in rows]
    return sorted(told, key=lambda row: row[0])


def dumped(cwd):
    return f"trainer.rollout_data_dir={cwd}/rollouts"


def facts(rows, threshold):
    """Per row: correct, another of its group is correct, pass rate of the group."""
    groups = {}
    for question, _, score in rows:
        groups.setdefault(question, []).append(score >= threshold)
    assert all(len(group) == 4 for group in groups.values())
    return [
        (score >= threshold, sum(groups[question]) - (score >= threshold) > 0, sum(groups[question]) / 4)
        for question, _, score in rows
    ]


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def check_sums(metrics):
    shown = sum(metrics[f"srpo/frac_shown_{source}"] for source in SOURCES)
    assert shown == pytest.approx(metrics["srpo/frac_sdpo"] + metrics["srpo/frac_credit"])
    assert sum(metrics[f"srpo/frac_{name}_groups"] for name in GROUPS) == pytest.approx(1.0)
    summands = metrics["srpo/grpo_loss"] + metrics["srpo/sdpo_loss"]
    assert metrics["srpo/loss"] == pytest.approx(summands, rel=1e-6, abs=1e-8)


GROUPS = ("all_failed", "mostly_failed", "mostly_correct", "all_correct")

# --- hand-over, with a memory ----------------------------------------------------------------------------------------

HANDOVER = ["srpo.routing=handover", *TINY_SRPO[1:], RARE]
MEMORY = [*HANDOVER, "srpo.demonstration.sources=[sibling,memory]", "srpo.demonstration.memory.per_prompt=2"]


@pytest.fixture(scope="module")
def remembering(small, tmp_path_factory):
    """Four steps with a checkpoint after the second and the last."""
    cwd = tmp_path_factory.mktemp("remembering")
    checkpoints = f"trainer.default_local_dir={cwd}/checkpoints"
    return train(small[0], cwd, *MEMORY, dumped(cwd), "trainer.save_freq=2", checkpoints, steps=4)


def test_a_run_with_handover_and_a_memory_is_what_its_rollouts_make_of_it(remembering):
    """Shares, sources and the memory's contents of every step, from the formulas alone."""
    memory, hits = {}, 0.0
    for step in range(1, 5):
        metrics, rows = remembering.metrics[step], rollouts(remembering, step)
        known = facts(rows, 0.24)
        shares, sibling, remembered, available = [], [], [], []
        for (question, text, _), (correct, has_sibling, pass_rate) in zip(rows, known, strict=True):
            others = [other for other in memory.get(question, []) if not (correct and other == text)]
            available.append(has_sibling or bool(others))
            z = not correct and available[-1]
            shares.append(z * (1 - pass_rate))
            sibling.append(z and has_sibling)
            remembered.append(z and not has_sibling)
        assert metrics["srpo/frac_teacher_available"] == pytest.approx(mean(available))
        assert metrics["srpo/sdpo_share_mean"] == pytest.approx(mean(shares), rel=1e-6)
        assert metrics["srpo/grpo_share_mean"] == pytest.approx(1 - mean(shares), rel=1e-6)
        assert metrics["srpo/frac_sdpo"] == pytest.approx(mean(share > 0 for share in shares))
        assert metrics["srpo/frac_shown_sibling"] == pytest.approx(mean(sibling))
        assert metrics["srpo/frac_shown_memory"] == pytest.approx(mean(remembered))
        for (question, text, _), (correct, *_) in zip(rows, known, strict=True):
            if correct:
                memory[question] = [text, *(other for other in memory.get(question, []) if other != text)][:2]
        assert metrics["srpo/memory_prompts"] == len(memory)
        assert metrics["srpo/memory_responses"] == sum(map(len, memory.values()))
        check_sums(metrics)
        hits += metrics["srpo/frac_shown_memory"]
    assert hits > 0  # or the claims about the memory are empty
    saved = json.loads((remembering.cwd / "checkpoints" / "global_step_4" / "srpo_memory.json").read_text())
    assert sorted(saved.values()) == sorted(memory.values())


def test_a_memory_survives_a_stop(small, remembering, tmp_path):
    resumed = train(
        small[0],
        tmp_path,
        *MEMORY,
        dumped(tmp_path),
        "trainer.save_freq=2",
        f"trainer.default_local_dir={tmp_path}/checkpoints",
        "trainer.resume_mode=resume_path",
        f"trainer.resume_from_path={remembering.cwd}/checkpoints/global_step_2",
        steps=4,
    )
    assert sorted(resumed.metrics) == [3, 4]
    for step in (3, 4):
        before, after = remembering.metrics[step], resumed.metrics[step]
        exact = [name for name in before if name.startswith(("srpo/memory_", "srpo/frac_", "srpo/reprompt_"))]
        exact += ["srpo/sdpo_share_mean", "srpo/sdpo_tokens", "srpo/teacher_forward_tokens"]
        exact.remove("srpo/frac_credit")  # 0 in both
        assert {name: after[name] for name in exact} == {name: before[name] for name in exact}
        assert rollouts(resumed, step) == rollouts(remembering, step)
        # To fp32 rounding: rows may be summed in another order.
        for name in ("srpo/loss", "srpo/sdpo_loss", "srpo/student_teacher_divergence", "actor/grad_norm"):
            assert after[name] == pytest.approx(before[name], rel=1e-4, abs=1e-7), (step, name)
    files = [run.cwd / "checkpoints" / "global_step_4" / "srpo_memory.json" for run in (remembering, resumed)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_teacher_that_is_shown_nothing_distils_the_same_rows(small, remembering, tmp_path):
    """The first learning rate of a warm-up is 0: the student moves in the second step and disagrees in the third."""
    run = train(small[0], tmp_path, *HANDOVER, "srpo.demonstration.show=false", dumped(tmp_path), steps=3)
    assert rollouts(run, 1) == rollouts(remembering, 1)
    same = ["srpo/frac_sdpo", "srpo/sdpo_share_mean", "srpo/grpo_share_mean", "srpo/frac_teacher_available"]
    assert {name: run.metrics[1][name] for name in same} == {name: remembering.metrics[1][name] for name in same}
    for step in (1, 2, 3):
        metrics = run.metrics[step]
        assert metrics["srpo/frac_shown_nothing"] == metrics["srpo/frac_sdpo"] > 0
        check_sums(metrics)
        questions = {question for question, *_ in rollouts(run, step)}
        prompts = {len(f"0user\n{question}1\n0assistant\n") for question in questions}  # 0, 1: special tokens
        assert min(prompts) <= metrics["srpo/reprompt_tokens_mean"] <= max(prompts)
    divergences = [run.metrics[step]["srpo/student_teacher_divergence"] for step in (1, 2, 3)]
    assert abs(divergences[0]) < 1e-6 > abs(divergences[1])
    assert divergences[2] > divergences[1]
    assert remembering.metrics[1]["srpo/student_teacher_divergence"] > 1e-4


# --- a routing of one's own, the data's solutions, a schedule --------------------------------------------------------

OWN = '''
from srpo_verl.functional import Rows, Shares


def quarter(rows: Rows) -> Shares:
    """A quarter of SRPO on hard prompts, and the whole GRPO loss."""
    d_B = 0.25 * rows.failed_with_teacher_B * (rows.pass_rate_B <= 0.5)
    return Shares(grpo_B=0 * d_B + 1, sdpo_B=d_B)
'''


def test_a_routing_of_the_user_s_own_module_with_references_and_a_schedule(small, tmp_path):
    arguments, solutions = small
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "my_routings.py").write_text(OWN)
    overrides = [
        *TINY_SRPO,
        "srpo.routing=my_routings:quarter",
        "srpo.demonstration.sources=[reference]",
        "srpo.demonstration.reference_column=solution",
        "srpo.schedule.kind=linear",
        "srpo.schedule.start=1",
        "srpo.schedule.end=3",
        dumped(tmp_path),
        "trainer.total_training_steps=3",
    ]
    path = os.pathsep.join([str(tmp_path / "mine"), os.environ.get("PYTHONPATH", "")])
    command = ["--config-path", "pkg://srpo_verl.config", "--config-name", "srpo", *arguments, *overrides]
    run = run_main_ppo(command, timeout=400, cwd=tmp_path, env={"PYTHONPATH": path})
    assert run.returncode == 0, run.tail()
    added = len("\n\nCorrect solution:\n\n" + "\n\nCorrectly solve the original question.\n")
    for step, coefficient in ((1, 1.0), (2, 0.5), (3, 0.0)):
        metrics, rows = run.metrics[step], rollouts(run, step)
        hard = [
            not correct and pass_rate <= 0.5 and bool(solutions[question])
            for (question, *_), (correct, _, pass_rate) in zip(rows, facts(rows, 0.12), strict=True)
        ]
        assert any(hard)
        assert metrics["srpo/distillation_coefficient"] == coefficient
        assert metrics["srpo/sdpo_share_mean"] == pytest.approx(0.25 * coefficient * mean(hard), rel=1e-6)
        assert metrics["srpo/grpo_share_mean"] == 1.0
        distilled = mean(hard) if coefficient else 0.0
        assert metrics["srpo/frac_shown_reference"] == metrics["srpo/frac_sdpo"] == pytest.approx(distilled)
        assert metrics["srpo/without_teacher"] == (coefficient == 0)
        assert (metrics["srpo/teacher_forward_tokens"] > 0) == (coefficient > 0)
        assert ("srpo/reprompt_tokens_mean" in metrics) == (coefficient > 0)
        if coefficient:
            lengths = [
                len(f"0user\n{question}{solutions[question]}1\n0assistant\n") + added
                for (question, *_), row_is_hard in zip(rows, hard, strict=True)
                if row_is_hard
            ]
            assert metrics["srpo/reprompt_tokens_mean"] == pytest.approx(mean(lengths))
        check_sums(metrics)


# --- without a divergence --------------------------------------------------------------------------------------------


def test_the_advantages_of_fixed_negative(small, tmp_path):
    """Larger than any advantage of the group, so that the smallest of the step is the constant."""
    constant = ["srpo.routing=fixed_negative", "srpo.fixed_negative.advantage=1.25", TINY_SRPO[0]]
    run = train(small[0], tmp_path, *constant, dumped(tmp_path))
    for step in (1, 2):
        metrics, rows = run.metrics[step], rollouts(run, step)
        scores = {}
        for question, _, score in rows:
            scores.setdefault(question, []).append(score)
        blamed = [not correct and has_sibling for correct, has_sibling, _ in facts(rows, 0.12)]
        assert any(blamed)
        left = [
            score - mean(scores[question])
            for (question, _, score), is_blamed in zip(rows, blamed, strict=True)
            if not is_blamed
        ]
        assert metrics["critic/advantages/min"] == -1.25
        assert metrics["critic/advantages/max"] == pytest.approx(max(left), abs=1e-6)
        assert (metrics["srpo/frac_sdpo"], metrics["srpo/frac_grpo"], metrics["srpo/without_teacher"]) == (0, 1, 1)
        assert not [name for name in metrics if name.startswith("srpo/teacher_") or name == "timing_s/srpo_teacher"]
        assert metrics["srpo/sdpo_loss"] == 0
        check_sums(metrics)


def test_credit_by_siblings_and_references(small, tmp_path):
    arguments, solutions = small
    sources = ["srpo.demonstration.sources=[sibling,reference]", "srpo.demonstration.reference_column=solution"]
    run = train(arguments, tmp_path, TINY_SRPO[0], TINY_SRPO[2], *sources, dumped(tmp_path), name="rlsd")
    for step in (1, 2):
        metrics, rows = run.metrics[step], rollouts(run, step)
        sibling = [has_sibling for _, has_sibling, _ in facts(rows, 0.12)]
        available = [has or bool(solutions[question]) for has, (question, *_) in zip(sibling, rows, strict=True)]
        assert metrics["srpo/frac_credit"] == pytest.approx(mean(available))
        assert metrics["srpo/frac_shown_sibling"] == pytest.approx(mean(sibling))
        assert metrics["srpo/frac_sdpo"] == metrics["srpo/sdpo_loss"] == 0
        assert 0.5 <= metrics["srpo/credit_mean"] <= 1.5
        assert 0 <= metrics["srpo/frac_credit_clipped"] <= 1
        assert metrics["srpo/teacher_forward_tokens"] > 0
        check_sums(metrics)
