"""The mini suite: questions, right responses, slips, splits, verifier, tokenizers and a short warm-up."""

import json
import random
import re
from dataclasses import replace

import pandas as pd
import pytest
import torch

from recipes.mini import chain_sum, desk, rewriting
from recipes.mini.make_data import make_data
from recipes.mini.make_model import Settings, draw_example, make_model, tokenizer_of
from recipes.mini.task import SPLITS, Slip, no_slip, split_of
from recipes.mini.tasks import TASKS
from recipes.mini.verifier import compute_score

DRAWS = 200


@pytest.fixture(params=TASKS, scope="module")
def task(request):
    return TASKS[request.param]


@pytest.fixture(scope="module")
def tokenizer(task):
    return tokenizer_of(task)


def draws(task, split="train", seed=1):
    """Questions, each with a form."""
    rng = random.Random(seed)
    return [(task.sample(split, rng), task.draw_form(rng)) for _ in range(DRAWS)]


def acc(task, response, question):
    return compute_score(task.data_source, response, question.ground_truth)["acc"]


def test_every_right_response_scores(task):
    for question, form in draws(task):
        response = task.respond(question.text, slip=no_slip(), **form)
        assert acc(task, response, question) == 1.0, (question, form, response)


def test_questions_have_several_right_responses(task):
    rng = random.Random(0)
    question = task.sample("train", rng)
    assert len({task.respond(question.text, slip=no_slip(), **task.draw_form(rng)) for _ in range(100)}) >= 6


def test_slips_make_some_responses_wrong_and_leave_their_form(task):
    """A slip now and then, or the starting model would have nothing to learn; never in the format."""
    rng = random.Random(2)
    scores = []
    for question, form in draws(task):
        result = compute_score(
            task.data_source, task.respond(question.text, slip=Slip(0.15, rng), **form), question.ground_truth
        )
        assert result["format_ok"]
        scores.append(result["acc"])
    assert 0.2 < sum(scores) / len(scores) < 0.9


def test_cut_responses_never_score_in_the_room_they_have(task, tokenizer):
    """Room for every right response and its end, so that a response at the limit is one that went on."""
    for question, form in draws(task):
        ids = tokenizer(task.respond(question.text, slip=no_slip(), **form), add_special_tokens=False)["input_ids"]
        assert len(ids) + 1 < task.max_response_tokens


def test_responses_and_prompts_are_made_of_known_tokens(task, tokenizer):
    for question, form in draws(task):
        response = task.respond(question.text, slip=no_slip(), **form)
        ids = tokenizer(response, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == response
        plain = tokenizer.apply_chat_template(
            task.messages(question.text), add_generation_prompt=True, return_dict=False
        )
        shown = tokenizer.apply_chat_template(
            task.messages(question.text, response), add_generation_prompt=True, return_dict=False
        )
        assert tokenizer.unk_token_id not in [*plain, *shown]
        assert len(plain) <= task.max_prompt_tokens
        # The demonstration stands in the teacher's prompt with the tokens of a response.
        assert any(shown[start : start + len(ids)] == ids for start in range(len(shown)))


def test_splits_share_no_question_and_no_rearrangement(task):
    seen = {split: {task.canonical(q.text) for q in task.questions(split, 64, seed=3)} for split in SPLITS}
    assert all({split_of(text) for text in texts} == {split} for split, texts in seen.items())
    assert sum(map(len, seen.values())) == len(set.union(*seen.values()))


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("sums3", "3*7+4*8+2*9", "9*2+7*3+4*8"),
        ("chain_sum", "47-12+35", "35+47-12"),
        ("rewriting", "AabBA", "BbaAB"),  # A and B exchanged
        ("rewriting", "AabBA", "abBAa"),  # read backwards, looking the other way
        ("desk", "alarm 9:47+25;pay bob 13+28", "pay bob 28+13;alarm 9:47+25"),
    ],
)
def test_rearrangements_count_as_one_question(name, one, other):
    assert TASKS[name].canonical(one) == TASKS[name].canonical(other)


def test_questions_are_those_of_their_seed(task):
    first, again, other = (task.questions("test", 20, seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    assert len({question.text for question in first}) == 20


def test_a_split_that_does_not_exist_is_named(task):
    with pytest.raises(ValueError, match="split must be one of warmup, train, validation, test, got 'dev'"):
        task.sample("dev", random.Random(0))


# --- each task's own words -------------------------------------------------------------------------------------------


def test_rewriting_is_reasoning_gyms():
    """The rules, the ground truth and the score are the library's."""
    from reasoning_gym.algorithmic.ab import ABConfig, ABDataset

    programs = ABDataset(ABConfig(seed=5, size=300, length=7))
    spelled = {letter: token for token, letter in rewriting.LETTERS.items()}
    for entry in programs:
        program = re.findall(r"[AB]#|#[AB]", entry["question"].split("program:\n\n")[1])
        text = "".join(rewriting.LETTERS[token] for token in program)
        for order in rewriting.ORDERS:
            response = TASKS["rewriting"].respond(text, slip=no_slip(), order=order, separator=">")
            answer = response.rpartition("#")[2]
            assert programs.score_answer(" ".join(spelled[letter] for letter in answer), entry) == 1.0


def test_rewriting_shows_its_states():
    respond = TASKS["rewriting"].respond
    assert respond("AabBA", slip=no_slip(), order="leftmost", separator=">") == "bBA#bBA"
    assert respond("ABab", slip=no_slip(), order="all", separator="/") == "AaBb/#"
    assert respond("ABab", slip=no_slip(), order="leftmost", separator="/") == "AaBb/Bb/#"
    assert respond("ABab", slip=no_slip(), order="none", separator="/") == "#"


def test_chain_sums_are_reasoning_gyms():
    from reasoning_gym.arithmetic.chain_sum import ChainSumConfig, ChainSumDataset

    problems = ChainSumDataset(ChainSumConfig(seed=5, size=200, min_terms=3, max_terms=4, max_digits=2))
    for entry in problems:
        text = entry["question"].partition(": ")[2].removesuffix("=").replace(" ", "")
        for style in chain_sum.STYLES:
            response = TASKS["chain_sum"].respond(text, slip=no_slip(), style=style, separator=";")
            for step in response.split(";")[:-1]:
                expression, total = step.split("=")
                assert sum(chain_sum.terms(expression)) == int(total)
            assert problems.score_answer(response.rpartition("#")[2], entry) == 1.0


def test_chain_sum_shows_its_steps():
    shown = {
        style: TASKS["chain_sum"].respond("47-12+35", slip=no_slip(), style=style, separator=";")
        for style in chain_sum.STYLES
    }
    assert shown == {
        "left": "47-12=35;35+35=70;#70",
        "right": "-12+35=23;47+23=70;#70",
        "signs": "47+35=82;82-12=70;#70",
        "terse": "#70",
    }


def test_desk_calls_are_those_of_the_tool_use_benchmark():
    form = {"style": "each", "exchanged": False, "keys_exchanged": False}
    response = TASKS["desk"].respond("alarm 23:47+25;pay bob 13+28", slip=no_slip(), **form)
    assert response == (
        'Thought:23:47+25=0:12\nAction:alarm\nAction Input:{"hour":0,"minute":12}\n'
        'Thought:13+28=41\nAction:pay\nAction Input:{"to":"bob","sum":41}'
    )
    gold = json.dumps(
        [
            {"Action": "pay", "Action_Input": {"to": "bob", "sum": 41}},
            {"Action": "alarm", "Action_Input": {"hour": 0, "minute": 12}},
        ]
    )
    assert compute_score("mini/desk", response, gold)["acc"] == 1.0
    assert compute_score("mini/desk", response.replace("41}", "42}"), gold)["acc"] == 0.0
    assert compute_score("mini/desk", response.replace(":12}", ":13}"), gold)["acc"] == 0.0
    assert compute_score("mini/desk", response.rpartition("\nAction:")[0], gold)["acc"] == 0.0


@pytest.mark.parametrize("question", ["alarm 9:05+7;pay dan 5+6", "pay dan 5+6;alarm 9:05+7"])
def test_desk_questions_are_read_in_either_order(question):
    assert desk.parse(question) == ((9, 5, 7), ("dan", 5, 6), question.startswith("alarm"))


# --- verifier --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "response", "truth", "pred", "format_ok", "right"),
    [
        ("mini/sums4", "#1", "1", "1", True, 1.0),
        ("mini/sums4", "#12", "1", "", False, 0.0),
        ("mini/chain_sum", "4-9=-5;#-5", "-5", "-5", True, 1.0),
        ("mini/chain_sum", "#5;#-5", "-5", "-5", True, 1.0),  # the last one counts
        ("mini/chain_sum", "#-5;", "-5", "", False, 0.0),
        ("mini/chain_sum", "-5", "-5", "", False, 0.0),
        ("mini/rewriting", "#", "", "", True, 1.0),
        ("mini/rewriting", "", "", "", False, 0.0),
        ("mini/rewriting", "#aA>", "aA", "", False, 0.0),
    ],
)
def test_what_follows_the_last_sign_is_the_answer(source, response, truth, pred, format_ok, right):
    assert compute_score(source, response, truth) == {
        "score": right,
        "acc": right,
        "pred": pred,
        "format_ok": format_ok,
    }


def test_a_foreign_data_source_is_named():
    with pytest.raises(ValueError, match="data_source='math' is not of the mini suite"):
        compute_score("math", "#1", "1")


# --- data and models -------------------------------------------------------------------------------------------------


def test_data_files(task, tmp_path):
    make_data(task, tmp_path, counts={"train": 8, "validation": 4, "test": 6})
    rows = pd.read_parquet(tmp_path / "test.parquet")
    assert len(rows) == 6
    for row in rows.to_dict("records"):
        question = row["prompt"][-1]["content"]
        assert split_of(task.canonical(question)) == "test"
        response = task.respond(question, slip=no_slip(), **task.draw_form(random.Random(0)))
        assert compute_score(row["data_source"], response, row["reward_model"]["ground_truth"])["acc"] == 1.0


def test_warm_up_examples_come_from_their_split_and_demonstrations_are_right(task):
    settings, rng = Settings(task.name), random.Random(4)
    for _ in range(60):
        messages, response = draw_example(task, settings, rng)
        question, shown, rest = messages[-1]["content"].partition("\n\nCorrect solution:\n\n")
        assert split_of(task.canonical(question)) == "warmup"
        if shown:
            form = task.draw_form(rng)
            truth = task.respond(question, slip=no_slip(), **form)
            demonstration = rest.partition("\n\nCorrectly solve")[0]
            # Both end in the same answer, or make the same calls.
            for text in (demonstration, response):
                if task.data_source == "mini/desk":
                    assert sorted(re.findall(r'"\w+":"?\w+', text)) == sorted(re.findall(r'"\w+":"?\w+', truth))
                else:
                    assert text.rpartition("#")[2] == truth.rpartition("#")[2]


def test_a_short_warm_up_makes_a_model_once(tmp_path, capsys):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        settings = Settings("desk", steps=3, batch_size=4, learning_rate_warmup=1)
        record = make_model(settings, tmp_path, evaluation_questions=4)
        assert make_model(settings, tmp_path, evaluation_questions=4) == record
        assert "already holds" in capsys.readouterr().out
        assert make_model(replace(settings, seed=1), tmp_path, evaluation_questions=4) != record
    finally:
        torch.set_num_threads(threads)
