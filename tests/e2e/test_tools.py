"""SRPO with veRL's tool agent loop: a model that calls a calculator, from the entry point that users run."""

import json
import math
import re

import pytest
import torch

from recipes.quickstart import task
from tests import tool_task
from tests.support import run_main_ppo

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the CPU platform is not active here")

STEPS, PROMPTS, ROLLOUTS = 2, 4, 6
# As veRL writes responses to trainer.rollout_data_dir, that is without special tokens.
CALL, CALLED = re.escape(tool_task.CALL), re.escape(tool_task.CALLED)
DIALOGUE = re.compile(rf"{CALL}(?P<expression>.*?){CALLED}\ntool\n(?P<said>.*?)\nassistant\n")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("tools")
    arguments = [
        "--config-path",
        "pkg://srpo_verl.config",
        "--config-name",
        "srpo",
        "platform=cpu",
        f"actor_rollout_ref.model.path={tool_task.calling_model(root / 'model')}",
        "actor_rollout_ref.model.enable_gradient_checkpointing=false",
        f"data.train_files={tool_task.write_rows(root, PROMPTS * STEPS)}",
        f"data.val_files={root}/train.parquet",
        f"reward.custom_reward_function.path={tool_task.REWARD_FILE}",
        f"data.train_batch_size={PROMPTS}",
        "data.max_prompt_length=96",
        "data.max_response_length=72",
        "srpo.distillation.top_k=20",
        "srpo.demonstration.max_prompt_tokens=400",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={PROMPTS}",
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=2048",
        f"actor_rollout_ref.rollout.n={ROLLOUTS}",
        "actor_rollout_ref.rollout.agent.default_agent_loop=tool_agent",
        "actor_rollout_ref.rollout.multi_turn.enable=true",
        f"actor_rollout_ref.rollout.multi_turn.function_tool_path={tool_task.tool_file(root)}",
        "actor_rollout_ref.rollout.multi_turn.max_assistant_turns=3",
        f"trainer.rollout_data_dir={root}/rollouts",
        "trainer.project_name=test",
        "trainer.test_freq=-1",
        "trainer.save_freq=-1",
        "trainer.val_before_train=false",
        "trainer.resume_mode=disable",
        f"trainer.total_training_steps={STEPS}",
    ]
    done = run_main_ppo(arguments, timeout=400, cwd=root / "run")
    assert done.returncode == 0, done.tail()
    return done


@pytest.fixture(scope="module")
def rollouts(run):
    """The responses of each step, as text."""
    folder = run.cwd.parent / "rollouts"
    lines = {step: (folder / f"{step}.jsonl").read_text().splitlines() for step in range(1, STEPS + 1)}
    assert all(len(rows) == PROMPTS * ROLLOUTS for rows in lines.values())
    return {step: [json.loads(line) for line in rows] for step, rows in lines.items()}


def result(expression):
    """What the calculator says; a model may call it with anything."""
    if not re.fullmatch(r"\d+([+*]\d+)*", expression):
        return f"not a sum of products: {expression}"
    return str(sum(math.prod(map(int, term.split("*"))) for term in expression.split("+")))


def test_the_tool_was_called_and_what_it_said_is_in_the_response(rollouts):
    for rows in rollouts.values():
        calls = [found for row in rows for found in DIALOGUE.finditer(row["output"])]
        assert len(calls) > len(rows) // 2
        assert [call["said"] for call in calls] == [result(call["expression"]) for call in calls]
        # ... and some rollouts answered at once.
        assert any(not DIALOGUE.search(row["output"]) for row in rows)
        # The tool is in the student's prompt.
        assert all("tools\ncalculator" in row["input"] for row in rows)
        assert all(row["score"] == task.compute_score("", row["output"], row["gts"])["score"] for row in rows)


def test_what_the_tool_said_counts_nowhere(run, rollouts):
    """Tokens of the loss and tokens of the responses differ by what the tool and the template wrote, exactly."""
    made = tool_task.tokenizer()
    for step, rows in rollouts.items():
        metrics = run.metrics[step]
        contexts = [tool_task.context_of(found["said"]) for row in rows for found in DIALOGUE.finditer(row["output"])]
        masked = sum(len(made(text)["input_ids"]) for text in contexts)
        everything = metrics["response_length/mean"] * len(rows)
        assert masked > 100
        assert metrics["srpo/sdpo_tokens"] + metrics["srpo/grpo_tokens"] == pytest.approx(everything - masked, abs=0.1)


def test_both_branches_train_on_dialogues(run):
    for step in range(1, STEPS + 1):
        metrics = run.metrics[step]
        assert 0 < metrics["srpo/frac_correct"] < 1
        assert metrics["srpo/frac_sdpo"] > 0
        assert metrics["srpo/frac_sdpo"] + metrics["srpo/frac_grpo"] == pytest.approx(1.0)
        assert metrics["srpo/sdpo_loss"] > 0
        assert metrics["srpo/weight_mean"] == pytest.approx(1.0, abs=1e-5)
        assert metrics["srpo/frac_reprompt_truncated"] == 0
        # The engine's log-probs of what the model wrote are the trainer's: turns stand where they stood.
        assert metrics["training/rollout_probs_diff_max"] < 1e-5
        assert metrics["num_turns/max"] >= 3
