"""veRL's tool agent loop on the CPU rollout engine, in one process: several turns, the same in every run.

The loop, the tool and its parser are veRL's and the document's; the engine is the plugin's. Only Ray is left out.
"""

import asyncio
from dataclasses import replace

import pytest
import torch
from transformers import AutoTokenizer
from verl.experimental.agent_loop.agent_loop import DictConfigWrap, ToolListWrap
from verl.experimental.agent_loop.tool_agent_loop import ToolAgentLoop
from verl.tools.function_tool import load_function_tools_from_path

from recipes.quickstart import task
from srpo_verl.config.schema import parse
from srpo_verl.cpu.rollout import HFServer
from srpo_verl.teacher.dialogue import DialogueText
from srpo_verl.verl_ext.router import Rollouts, Router
from srpo_verl.verl_ext.student_prompts import StudentPrompts, configured_tools
from tests import tool_task
from tests.config import compose

QUESTIONS = task.sample_questions("test", 4, 0, products=2)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("tool_loop")
    return compose(
        "srpo",
        "platform=cpu",
        f"actor_rollout_ref.model.path={tool_task.calling_model(root / 'model')}",
        "data.max_prompt_length=96",
        "data.max_response_length=72",
        "srpo.demonstration.max_prompt_tokens=400",
        "actor_rollout_ref.rollout.load_format=auto",
        "actor_rollout_ref.rollout.agent.default_agent_loop=tool_agent",
        f"actor_rollout_ref.rollout.multi_turn.function_tool_path={tool_task.tool_file(root)}",
        "actor_rollout_ref.rollout.multi_turn.max_assistant_turns=3",
    )


@pytest.fixture(scope="module")
def tokenizer(config):
    return AutoTokenizer.from_pretrained(config.actor_rollout_ref.model.path)


class Client:
    """Stands where veRL's client hands a request to a server's actor."""

    def __init__(self, server):
        self.server = server

    async def generate(self, request_id, *, prompt_ids, sampling_params, image_data=None, video_data=None, **_):
        return await self.server.generate(prompt_ids, sampling_params, request_id, image_data, video_data)


def run(config, tokenizer, sessions, waves=64):
    """One output per (question, session), all at the same time, on a server of its own."""
    rollout = config.actor_rollout_ref.rollout.copy()
    rollout.max_num_seqs = waves

    async def all_sessions():
        client = Client(HFServer(rollout, config.actor_rollout_ref.model, replica_rank=0))
        tools = load_function_tools_from_path(rollout.multi_turn.function_tool_path)

        def session(question, seed):
            loop = ToolAgentLoop(
                trainer_config=DictConfigWrap(config),
                server_manager=client,
                tokenizer=tokenizer,
                processor=None,
                dataset_cls=None,
                data_config=DictConfigWrap(config.data),
                hf_model_type="qwen3",
                tools=ToolListWrap(tools),
            )
            sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0, "logprobs": True}
            return loop.run({**sampling, "seed": seed}, raw_prompt=[{"role": "user", "content": question}])

        return await asyncio.gather(*[session(question, seed) for question, seed in sessions])

    return asyncio.run(all_sessions())


SESSIONS = [(question, session) for question in QUESTIONS for session in range(6)]


@pytest.fixture(scope="module")
def outputs(config, tokenizer):
    return run(config, tokenizer, SESSIONS)


def test_the_mask_is_on_what_the_model_wrote(outputs, tokenizer):
    """What is masked is what the template makes of the tool's words, and nothing else."""
    called = 0
    for (question, _), output in zip(SESSIONS, outputs, strict=True):
        assert len(output.response_ids) == len(output.response_mask) == len(output.response_logprobs)
        mask = torch.tensor(output.response_mask).bool()
        masked = tokenizer.decode(torch.tensor(output.response_ids)[~mask])
        written = tokenizer.decode(torch.tensor(output.response_ids)[mask])
        call = f"{tool_task.CALL}{question}{tool_task.CALLED}<|im_end|>"
        if written.startswith(call):
            called += 1
            assert masked == tool_task.context_of(sum(a * b for a, b in task.parse_question(question)))
        elif tool_task.CALL not in written:
            assert masked == ""
        # Log-probs of the engine stand at what it sampled.
        assert all((value == 0.0) == (not flag) for value, flag in zip(output.response_logprobs, mask, strict=True))
    assert called > len(SESSIONS) // 2


def test_the_second_turn_continues_the_whole_dialogue(config, outputs):
    """Prompt, call and tool output are what the engine was given: its log-probs are the model's own of the whole."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(config.actor_rollout_ref.model.path)
    for output in outputs[:8]:
        ids = torch.tensor([output.prompt_ids + output.response_ids])
        with torch.no_grad():
            logits = model(ids).logits[0, len(output.prompt_ids) - 1 : -1]
        mask = torch.tensor(output.response_mask).bool()
        own = logits.log_softmax(-1)[torch.arange(len(mask)), torch.tensor(output.response_ids)]
        # fp32, with another batch and a cache.
        torch.testing.assert_close(torch.tensor(output.response_logprobs)[mask], own[mask], atol=1e-4, rtol=0)


@pytest.mark.parametrize("waves", [64, 5])
def test_a_session_samples_the_same_dialogue_whatever_runs_beside_it(config, tokenizer, outputs, waves):
    """All turns of a session share one seed; that their prompts differ makes their streams differ."""
    order = torch.randperm(len(SESSIONS), generator=torch.Generator().manual_seed(waves)).tolist()
    half = order[: len(order) // 2] if waves == 5 else order
    again = run(config, tokenizer, [SESSIONS[index] for index in half], waves)
    for index, output in zip(half, again, strict=True):
        assert output.response_ids == outputs[index].response_ids
        assert output.response_mask == outputs[index].response_mask
    assert len({tuple(output.response_ids) for output in outputs[:6]}) > 1


def test_the_teacher_is_shown_the_sibling_s_dialogue_and_the_tools(config, tokenizer, outputs):
    """From veRL's own outputs to the teacher's prompt."""
    texts = [tokenizer.decode(output.response_ids, skip_special_tokens=True) for output in outputs]
    answers = [task.answer(question) for question, _ in SESSIONS]
    scores = [task.compute_score("", text, gold)["score"] for text, gold in zip(texts, answers, strict=True)]
    prompts = StudentPrompts(tokenizer, "qwen3", {}, configured_tools(config), 96)
    router = Router(parse(config.srpo), DialogueText(prompts.decode, prompts.structure()), prompts.render, 0)
    uids = [question for question, _ in SESSIONS]
    messages = [[{"role": "user", "content": question}] for question in uids]
    ids = [torch.tensor(output.prompt_ids) for output in outputs]
    rollouts = Rollouts(
        keys=[f"{question}_{session}_0" for question, session in SESSIONS],
        uids=uids,
        rewards_B=torch.tensor(scores),
        responses=[torch.tensor(output.response_ids) for output in outputs],
        response_masks=[torch.tensor(output.response_mask) for output in outputs],
        messages=messages,
        tools=prompts.tools_of_rows(uids, messages, ids, [{}] * len(uids)),
        feedback=[""] * len(uids),
    )
    routed = router.route(rollouts, 0)
    dialogues = 0
    for row, reprompt in enumerate(routed.reprompts):
        if reprompt is None:
            continue
        text = tokenizer.decode(reprompt.token_ids)
        question, sibling = uids[row], int(routed.routing.sibling_B[row])
        prompt = tokenizer.decode(outputs[row].prompt_ids)
        start = prompt.removesuffix("<|im_end|>\n<|im_start|>assistant\n")
        assert start.startswith("<|im_start|>tools\ncalculator<|im_end|>\n")
        assert text.startswith(start + "\n\nCorrect solution:\n\n")
        assert text.count("<|im_start|>") == prompt.count("<|im_start|>")
        if 0 in outputs[sibling].response_mask:
            dialogues += 1
            result = sum(a * b for a, b in task.parse_question(question))
            said = f"< |im_end|>\n< |im_start|>tool\n{result}< |im_end|>\n< |im_start|>assistant\n"
            shown = f"{tool_task.CALL}{question}{tool_task.CALLED}{said}#{task.answer(question)}"
            assert f"Correct solution:\n\n{shown}\n\nCorrectly solve" in text
    assert dialogues > 3
    # What does not fit is cut at the end of the dialogue.
    srpo = parse(config.srpo)
    limit = max(len(reprompt.token_ids) for reprompt in routed.reprompts if reprompt is not None) - 20
    short = replace(srpo, demonstration=replace(srpo.demonstration, max_prompt_tokens=limit))
    cut = Router(short, router.text, router.render, 0).route(rollouts, 0).reprompts
    truncated = [reprompt for reprompt in cut if reprompt is not None and reprompt.truncated]
    assert truncated
    ending = "\n\nCorrectly solve the original question.\n<|im_end|>\n<|im_start|>assistant\n"
    assert all(tokenizer.decode(reprompt.token_ids).endswith(ending) for reprompt in truncated)
