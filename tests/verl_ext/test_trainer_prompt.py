"""The teacher's prompt comes out of the student's own template, with every argument the student's has."""

import pytest
from transformers import AutoTokenizer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from srpo_verl.config.schema import parse
from srpo_verl.verl_ext.trainer import SrpoTrainer
from tests.config import compose
from tests.support import tiny_model

QUESTION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1 ="}]


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    """A trainer whose tokenizer is set up as in a run, without Ray."""
    path = tiny_model(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.chat_template = "({{ mood }})" + tokenizer.chat_template
    tokenizer.save_pretrained(path)
    config = compose(
        "srpo",
        "platform=cpu",
        f"actor_rollout_ref.model.path={path}",
        "+data.apply_chat_template_kwargs.mood=calm",
        "data.max_prompt_length=64",
        "data.max_response_length=64",
        "srpo.distillation.top_k=20",
        "srpo.demonstration.max_prompt_tokens=200",
    )
    trainer = object.__new__(SrpoTrainer)
    trainer.config, trainer.srpo = config, parse(config.srpo)
    monkeypatch.setattr(PPOTrainerSync, "_init_tokenizer", lambda self: setattr(self, "tokenizer", tokenizer))
    trainer._init_tokenizer()
    return trainer


def test_template_arguments_and_system_prompt_reach_the_teacher(trainer):
    text = trainer.tokenizer.decode(trainer.router.render(QUESTION))
    assert text == (
        "(calm)<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1 + 1 =<|im_end|>\n<|im_start|>assistant\n"
    )


def test_demonstrations_are_decoded_without_special_tokens(trainer):
    ids = trainer.tokenizer("2<|im_end|>")["input_ids"]
    assert trainer.router.decode(ids) == "2"
