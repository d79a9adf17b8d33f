"""The embedded default: verifier, splits, tokenizer, data files and a short warm-up."""

import json
import random
import subprocess
import sys
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipes.quickstart import task
from recipes.quickstart.make_data import make_data
from recipes.quickstart.make_model import (
    RECORD_NAME,
    Settings,
    draw_example,
    encode_batch,
    evaluate,
    make_model,
    read_finished,
    sample_responses,
    warm_up,
)
from recipes.quickstart.tokenizer import build_tokenizer

QUESTION = "3*7+4*8+2*9"
QUESTIONS = (QUESTION, "9*9+9*9+9*9", "2*5+5*4+3*3+8*7", "2*3+4*5")


def score(response: str, ground_truth: str = "1") -> dict:
    return task.compute_score(task.DATA_SOURCE, response, ground_truth, {"index": 0})


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """One thread is fastest for so small a model, and gives the same sums every time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


# Responses and verifier


def test_the_documented_responses_are_the_rendered_ones():
    rendered = {style: task.render_response(QUESTION, style) for style in task.STYLES}
    assert rendered == {
        "partial": "3*7=1;4*8=2;2*9=8;1+2=3;3+8=1;#1",
        "interleaved": "3*7=1;4*8=2;1+2=3;2*9=8;3+8=1;#1",
        "running": "3*7=1;1+4*8=3;3+2*9=1;#1",
        "terse": "#1",
    }
    assert all(f"``{response}``" in task.__doc__ for response in rendered.values())
    assert task.render_response(QUESTION, "running", "|", backwards=True) == "2*9=8|8+4*8=0|0+3*7=1|#1"


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_right_response_scores_and_its_arithmetic_holds(question):
    responses = list(task.right_responses(question))
    if question != "9*9+9*9+9*9" and question.count("+") > 1:  # else some forms coincide
        assert len(set(responses)) == 19
    expected = str(eval(question) % 10)
    for response in responses:
        assert score(response, expected) == {"score": 1.0, "acc": 1.0, "pred": expected, "format_ok": True}
        assert len(response) <= 12 * (question.count("+") + 1) - 4
        *steps, last = next(response.split(s) for s in (*task.SEPARATORS, "#") if s in response)
        assert last == (expected if response.startswith("#") else f"#{expected}")
        for step in filter(None, steps):
            left, digit = step.split("=")
            assert eval(left) % 10 == int(digit)


@pytest.mark.parametrize(
    ("response", "pred", "format_ok"),
    [
        ("3*7=1;4*8=2;2*9=8;1+2=3;3+8=1;#2", "2", True),
        ("#1#7", "7", True),
        ("#11", "", False),
        ("#1;", "", False),
        ("#1\n", "", False),
        ("#1#", "", False),
        ("# 1", "", False),
        ("1", "", False),
        ("#\u0661", "", False),  # a digit, but of another script
        ("", "", False),
        ("#", "", False),
        ("\x00\ud800" * 1000, "", False),
    ],
)
def test_wrong_answers_and_wrong_formats_score_zero(response, pred, format_ok):
    assert score(response) == {"score": 0.0, "acc": 0.0, "pred": pred, "format_ok": format_ok}


def test_what_follows_the_last_hash_counts():
    assert score("#7;#1")["acc"] == 1.0


@pytest.mark.parametrize("question", QUESTIONS)
def test_no_truncated_response_scores(question):
    for response in task.right_responses(question):
        for length in range(len(response)):
            assert score(response[:length], task.answer(question))["format_ok"] is False


def test_noise_slips_and_goes_on_from_the_slip():
    rng = random.Random(0)
    responses = [task.render_response(QUESTION, noise=0.1, rng=rng) for _ in range(2000)]
    accuracy = sum(score(response)["acc"] for response in responses) / len(responses)
    # A slip in any of five steps moves the answer with probability 0.9, so 0.91 ** 5 = 0.624 stay right; two slips
    # can cancel, which adds less than 0.02.
    assert 0.59 < accuracy < 0.68
    for response in responses[:100]:
        *steps, last = response.split(";")
        assert last == f"#{steps[-1][-1]}"
        assert steps[3][0] == steps[0][-1]
        assert steps[4][0] == steps[3][-1]


@pytest.mark.parametrize(
    ("response", "error"),
    [
        ("3*7=1;4*8=2;1+2=3;2*9=8;3+8=1;#1", None),
        ("#1", None),
        ("#2", (1, "answer")),
        ("3*7=1;4*8=3", (10, "result")),
        ("3*6=1", (2, "operand")),
        ("5*7", (0, "operand")),
        ("3*7=1;4*8", (9, "format")),
        ("3*7=1,4*8=2;", (11, "format")),
        ("#1;", (2, "format")),
        ("#", (1, "answer")),
        ("", (0, "format")),
    ],
)
def test_first_error(response, error):
    assert task.first_error(QUESTION, response) == error


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: task.parse_question("3*7+1*2"), "1\\*2"),
        (lambda: task.parse_question("3*7"), "at least two"),
        (lambda: task.render_response(QUESTION, "verbose"), "verbose"),
        (lambda: task.render_response(QUESTION, separator=":"), "':'"),
        (lambda: task.render_response(QUESTION, noise=0.1), "rng"),
        (lambda: task.sample_questions("dev", 1, 0), "dev"),
        (lambda: task.sample_questions("test", 10**6, 0), "at most 8192"),
        (lambda: task.sample_questions("test", 1, 0, products=1), "products"),
    ],
)
def test_bad_arguments_are_named(call, match):
    with pytest.raises(ValueError, match=match):
        call()


# Splits and data files


def test_splits_are_disjoint_also_under_rearrangement():
    sets = {split: set(task.sample_questions(split, 2000, seed=0)) for split in task.SPLITS}
    for split, questions in sets.items():
        assert len(questions) == 2000
        for question in list(questions)[:50]:
            for terms in permutations(question.split("+")):
                assert task.split_of("+".join(term[::-1] for term in terms)) == split
                assert task.split_of("+".join(terms)) == split
    assert task.sample_questions("test", 5, seed=0) == task.sample_questions("test", 5, seed=0)
    assert task.sample_questions("test", 5, seed=0) != task.sample_questions("test", 5, seed=1)


def test_the_splits_have_their_shares():
    rng = random.Random(0)
    questions = [
        task.question_text(tuple((rng.choice(task.FACTORS), rng.choice(task.FACTORS)) for _ in range(3)))
        for _ in range(8000)
    ]
    shares = {split: sum(task.split_of(q) == split for q in questions) / len(questions) for split in task.SPLITS}
    assert shares == pytest.approx({"warmup": 10 / 16, "train": 5 / 16, "test": 1 / 16}, abs=0.02)


def test_warm_up_draws_from_its_own_split_and_demonstrations_are_right():
    rng = random.Random(0)
    given = repeated = 0
    for _ in range(500):
        chat, response = draw_example(Settings(), rng)
        question, *rest = chat[1]["content"].split("\n\n")
        assert task.split_of(question) == "warmup"
        if rest:
            given += 1
            demonstration = rest[1]
            repeated += demonstration == response
            assert task.first_error(question, demonstration) is None
            assert task.first_error(question, response) is None
    assert 150 < given < 250
    assert 0.4 < repeated / given < 0.7


def test_data_files(tmp_path):
    make_data(tmp_path, train=200, test=50)
    for split, count in (("train", 200), ("test", 50)):
        frame = pd.read_parquet(tmp_path / f"{split}.parquet")
        assert list(frame) == ["data_source", "prompt", "ability", "reward_model", "extra_info"]
        assert len(frame) == count
        for index, row in frame.iterrows():
            question = row.prompt[1]["content"]
            assert [message["role"] for message in row.prompt] == ["system", "user"]
            assert row.prompt[0]["content"] == task.SYSTEM_PROMPT
            assert task.split_of(question) == split
            assert row.reward_model == {"style": "rule", "ground_truth": str(eval(question) % 10)}
            assert row.extra_info == {"index": index, "split": split}


def test_task_file_needs_only_the_standard_library():
    """veRL's reward workers load it by path, where neither the repository nor its packages need be importable."""
    code = (
        "import runpy, sys; runpy.run_path(sys.argv[1]); sys.exit('torch' in sys.modules or 'recipes' in sys.modules)"
    )
    subprocess.run([sys.executable, "-I", "-S", "-c", code, str(Path(task.__file__))], check=True)


# Tokenizer


def test_vocabulary(tokenizer):
    assert len(tokenizer) == 27
    assert sorted(tokenizer.get_vocab().values()) == list(range(27))
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)


@pytest.mark.parametrize("question", QUESTIONS)
def test_responses_round_trip_one_token_a_character(tokenizer, question):
    for response in task.right_responses(question):
        ids = tokenizer.encode(response, add_special_tokens=False)
        assert len(ids) == len(response)
        assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == response
        assert tokenizer.decode([*ids, tokenizer.eos_token_id]) == response + "<|im_end|>"


def test_prompt_tokens(tokenizer):
    tokens = tokenizer.convert_ids_to_tokens(
        tokenizer.apply_chat_template(task.messages(QUESTION), add_generation_prompt=True, return_dict=False)
    )
    assert tokens == ["<|system|>", task.SYSTEM_PROMPT, "<|user|>", *QUESTION, "<|assistant|>"]


def test_a_whole_chat_extends_its_prompt(tokenizer):
    chat = task.messages(QUESTION)
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template([*chat, {"role": "assistant", "content": "#1"}], return_dict=False)
    assert whole == [*prompt, *tokenizer.encode("#1", add_special_tokens=False), tokenizer.eos_token_id]


@pytest.mark.parametrize(
    "layout",
    [
        "{q}\n\nCorrect solution:\n\n{d}\n\nCorrectly solve the original question.\n",
        "{q}\nCorrect solution:\n{d}\n\n\nCorrectly solve the original question.",
        "  {q} Correct solution: {d} Correctly solve the original question. \n\n",
        "\n{q}\r\n\r\nCorrect solution:\t{d}\r\n\r\nCorrectly solve the original question.",
    ],
)
def test_teacher_prompt_tokens_do_not_depend_on_white_space(tokenizer, layout):
    demonstration = "3*7=1;1+4*8=3;3+2*9=1;#1"
    chat = task.messages(QUESTION)
    chat[1]["content"] = layout.format(q=QUESTION, d=demonstration)
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert tokenizer.convert_ids_to_tokens(ids) == [
        *("<|system|>", task.SYSTEM_PROMPT, "<|user|>", *QUESTION, task.DEMONSTRATION_PHRASE, *demonstration),
        *(task.RETRY_PHRASE, "<|assistant|>"),
    ]
    assert ids == tokenizer.apply_chat_template(
        task.messages(QUESTION, demonstration), add_generation_prompt=True, return_dict=False
    )


def test_decoding_shows_phrases_and_newlines(tokenizer):
    """The verifier would otherwise accept a response that holds text of the prompt."""
    ids = tokenizer.convert_tokens_to_ids(["#", "1", task.RETRY_PHRASE])
    assert score(tokenizer.decode(ids, skip_special_tokens=True))["format_ok"] is False
    ids = tokenizer.convert_tokens_to_ids(["#", "1", "\n"])
    assert score(tokenizer.decode(ids, skip_special_tokens=True))["format_ok"] is False


def test_verl_accepts_the_tokenizer_as_a_qwen_chat(tokenizer):
    wiring = pytest.importorskip("verl.utils.tokenizer.continuous_token_wiring")
    builder = wiring.create_continuous_token_builder(tokenizer, hf_model_type="qwen3")
    ids = builder.build_initial_tokens(task.messages(QUESTION))
    expected = tokenizer.apply_chat_template(task.messages(QUESTION), add_generation_prompt=True, return_dict=False)
    assert list(ids) == expected


# Warm-up


def test_labels_cover_the_response_and_its_end(tokenizer):
    examples = [(task.messages(QUESTION), "#1"), (task.messages(QUESTION, "#1"), "3*7=1;1+4*8=3;3+2*9=1;#1")] * 3
    chunks = encode_batch(tokenizer, examples, parts=2)
    seen = []
    for ids_BL, labels_BL in chunks:
        assert ids_BL.shape == labels_BL.shape
        for ids, labels in zip(ids_BL, labels_BL, strict=True):
            kept = labels != -100
            assert (labels[kept] == ids[kept]).all()
            prompt = ids[: int(kept.nonzero()[0])]
            assert tokenizer.convert_ids_to_tokens(int(prompt[-1])) == "<|assistant|>"
            assert (ids[int(kept.nonzero()[-1]) + 1 :] == tokenizer.pad_token_id).all()
            seen.append(tokenizer.decode(labels[kept]))
    assert seen == ["#1<|im_end|>"] * 3 + ["3*7=1;1+4*8=3;3+2*9=1;#1<|im_end|>"] * 3


SHORT = Settings(steps=20, batch_size=16, learning_rate_warmup=5)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("model")
    return out, make_model(SHORT, out, evaluation_questions=16)


def test_a_short_warm_up_lowers_the_loss():
    state = torch.random.get_rng_state()
    _, _, losses = warm_up(SHORT, progress=False)
    assert len(losses) == 20
    assert losses[0] == pytest.approx(torch.tensor(27.0).log().item(), abs=0.3)  # an untrained model knows nothing
    assert sum(losses[-3:]) / 3 < losses[0] - 0.8
    assert torch.equal(state, torch.random.get_rng_state())


def test_warm_up_is_determined_by_its_seed():
    short = replace(SHORT, steps=3)
    first, second, other = (warm_up(s, progress=False) for s in (short, short, replace(short, seed=1)))
    assert first[2] == second[2] != other[2]
    assert all(torch.equal(a, b) for a, b in zip(first[0].parameters(), second[0].parameters(), strict=True))


def test_the_model_folder_loads_and_agrees_with_its_record(finished):
    out, record = finished
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert json.loads((out / RECORD_NAME).read_text()) == record
    assert model.dtype == torch.float32
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert model.num_parameters() == record["parameters"] == 496_064
    assert model.config.vocab_size == len(tokenizer) == 27
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.get_vocab() == build_tokenizer().get_vocab()
    assert tokenizer.apply_chat_template(task.messages(QUESTION, "#1"), return_dict=False) == (
        build_tokenizer().apply_chat_template(task.messages(QUESTION, "#1"), return_dict=False)
    )
    again = evaluate(model, tokenizer, questions=16)
    assert again == {name: record[name] for name in ("accuracy_plain", "accuracy_demonstration")}


def test_batched_sampling_does_not_depend_on_the_padding(finished):
    """Greedy, so that the comparison is of the model and not of the draws."""
    out, _ = finished
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    model.generation_config.update(do_sample=False, temperature=None, top_k=None, top_p=None)
    chats = [task.messages(QUESTION), task.messages(QUESTION, "3*7=1;1+4*8=3;3+2*9=1;#1")]
    together = sample_responses(model, tokenizer, chats, max_new_tokens=12)
    alone = [sample_responses(model, tokenizer, [chat], max_new_tokens=12)[0] for chat in chats]
    assert together == alone


def test_a_finished_model_is_kept_and_other_settings_are_not(finished, capsys):
    out, record = finished
    written = (out / "model.safetensors").stat().st_mtime_ns
    assert make_model(SHORT, out, evaluation_questions=16) == record
    assert "already holds" in capsys.readouterr().out
    assert (out / "model.safetensors").stat().st_mtime_ns == written
    assert read_finished(out, replace(SHORT, seed=1)) is None
    assert read_finished(out / "nowhere", SHORT) is None
