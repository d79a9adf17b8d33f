"""The teacher's prompt comes out of the student's own template, with every argument and tool the student's has."""

import asyncio
import json

import pytest
import torch
from transformers import AutoTokenizer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from srpo_verl.config.schema import parse
from srpo_verl.progress import Progress
from srpo_verl.verl_ext.trainer import SrpoTrainer
from tests.config import compose
from tests.support import tiny_model

QUESTION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1 ="}]


TOOLS = '''
from verl.tools.function_tool import function_tool


@function_tool
def add(a: int, b: int) -> int:
    """Adds.

    Args:
        a: One number.
        b: Another.
    """
    return a + b


@function_tool
def negate(a: int) -> int:
    """Negates.

    Args:
        a: A number.
    """
    return -a
'''


@pytest.fixture(scope="module")
def tool_file(tmp_path_factory):
    """One file for all tests: veRL registers a tool once in a process."""
    path = tmp_path_factory.mktemp("tools") / "tools.py"
    path.write_text(TOOLS)
    return path


TEACHER_SIDE = ["srpo.distillation.top_k=20", "srpo.demonstration.max_prompt_tokens=8192"]


@pytest.fixture
def make_trainer(tmp_path, tool_file, monkeypatch):
    """Makes trainers whose tokenizer is set up as in a run, without Ray."""
    path = tiny_model(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.chat_template = "({{ mood }}){% if tools %}{{ tools | tojson }}{% endif %}" + tokenizer.chat_template
    tokenizer.save_pretrained(path)
    settings = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**settings, "max_position_embeddings": 16384}))  # schemas are long
    monkeypatch.setattr(PPOTrainerSync, "_init_tokenizer", lambda self: setattr(self, "tokenizer", tokenizer))

    def make(name, *overrides):
        config = compose(
            name,
            "platform=cpu",
            f"actor_rollout_ref.model.path={path}",
            "+data.apply_chat_template_kwargs.mood=calm",
            f"actor_rollout_ref.rollout.multi_turn.function_tool_path={tool_file}",
            "data.max_prompt_length=4096",
            "data.max_response_length=64",
            *overrides,
        )
        trainer = object.__new__(SrpoTrainer)
        trainer.config, trainer.srpo, trainer.progress = config, parse(config.srpo), Progress()
        trainer._init_tokenizer()
        return trainer

    return make


@pytest.fixture
def trainer(make_trainer):
    return make_trainer("srpo", *TEACHER_SIDE)


def test_template_arguments_and_system_prompt_reach_the_teacher(trainer):
    text = trainer.tokenizer.decode(trainer.router.render(QUESTION))
    assert text == (
        "(calm)<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1 + 1 =<|im_end|>\n<|im_start|>assistant\n"
    )


def test_demonstrations_are_decoded_without_special_tokens(trainer):
    ids = trainer.tokenizer("2<|im_end|>")["input_ids"]
    assert trainer.router.text.of_response(ids, [1] * len(ids), without_thinking=False) == "2"


def test_everything_special_to_the_tokenizer_or_used_by_the_template_is_structure(trainer):
    assert trainer.prompts.structure() == {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}
    # Not special, but it opens the assistant's turn.
    trainer.tokenizer.add_tokens(["<assistant>", "<other>"])
    trainer.tokenizer.chat_template += "<assistant>"
    assert trainer.prompts.structure() == {"<|endoftext|>", "<|im_start|>", "<|im_end|>", "<assistant>"}


# --- tools -----------------------------------------------------------------------------------------------------------


def student_prompt(trainer, agent_loop, extra_info=None):
    """The prompt that veRL's own agent loop makes, up to the request to the rollout engine."""
    from verl.experimental.agent_loop.agent_loop import DictConfigWrap, ToolListWrap
    from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
    from verl.experimental.agent_loop.tool_agent_loop import ToolAgentLoop
    from verl.tools.function_tool import load_function_tools_from_path

    class Asked(Exception):
        """Carries the prompt."""

    class Server:
        async def generate(self, *, prompt_ids, **kwargs):
            raise Asked(prompt_ids)

    async def run():
        loop = {"single_turn_agent": SingleTurnAgentLoop, "tool_agent": ToolAgentLoop}[agent_loop](
            trainer_config=DictConfigWrap(trainer.config),
            server_manager=Server(),
            tokenizer=trainer.tokenizer,
            processor=None,
            dataset_cls=None,
            data_config=DictConfigWrap(trainer.config.data),
            hf_model_type="qwen3",
            tools=ToolListWrap(
                load_function_tools_from_path(trainer.config.actor_rollout_ref.rollout.multi_turn.function_tool_path)
            ),
        )
        await loop.run({}, raw_prompt=QUESTION, extra_info=extra_info or {})

    with pytest.raises(Asked) as asked:
        asyncio.run(run())
    return asked.value.args[0]


def names(tools):
    return [tool["function"]["name"] for tool in tools]


@pytest.mark.parametrize(
    ("agent_loop", "extra_info", "shown"),
    [
        ("tool_agent", {}, ["add", "negate"]),
        ("tool_agent", {"tool_selection": ["negate"]}, ["negate"]),
        ("tool_agent", {"tool_selection": []}, ["add", "negate"]),
        ("single_turn_agent", {}, []),
    ],
)
def test_the_teacher_sees_the_tools_that_the_student_sees(trainer, agent_loop, extra_info, shown):
    """Which loop made a prompt is not in veRL's batch; the prompt says it."""
    ids = student_prompt(trainer, agent_loop, extra_info)
    tools = trainer.prompts.tools_shown(QUESTION, ids, extra_info)
    assert names(tools) == shown
    assert trainer.router.render(QUESTION, tools) == ids
    text = trainer.tokenizer.decode(ids)
    assert names(json.loads(text[len("(calm)") : text.index("<|im_start|>")] or "[]")) == shown


def test_a_prompt_that_verl_cut_is_recognised(trainer):
    """It keeps the end; by length alone this one would pass for a prompt without tools."""
    trainer.prompts.max_prompt_length = trainer.config.actor_rollout_ref.rollout.prompt_length = 100
    ids = student_prompt(trainer, "tool_agent")
    assert len(ids) == 100
    assert names(trainer.prompts.tools_shown(QUESTION, ids, {})) == ["add", "negate"]


def test_a_prompt_that_no_template_makes_is_warned_of_once(trainer, capsys):
    for agent_loop, shown in (("tool_agent", ["add", "negate"]), ("single_turn_agent", [])):
        ids = student_prompt(trainer, agent_loop)
        ids[0] = 5
        assert names(trainer.prompts.tools_shown(QUESTION, ids, {})) == shown
    assert capsys.readouterr().out.count("is not what the chat template makes of its messages") == 1


def test_a_run_without_a_teacher_renders_nothing(make_trainer, monkeypatch):
    trainer = make_trainer("grpo")
    monkeypatch.setattr(trainer.prompts, "render", None)
    assert trainer.prompts.tools_of_rows(["a"], [QUESTION], [torch.tensor([1])], [{}]) == [()]


def test_rows_of_a_group_share_their_tools_and_groups_do_not(trainer):
    with_tools, without = (torch.tensor(student_prompt(trainer, name)) for name in ("tool_agent", "single_turn_agent"))
    rows = trainer.prompts.tools_of_rows(["a", "b", "a"], [QUESTION] * 3, [with_tools, without, with_tools], [{}] * 3)
    assert [names(tools) for tools in rows] == [["add", "negate"], [], ["add", "negate"]]
