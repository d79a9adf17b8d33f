"""What the teacher is shown: the prompt's text, how it is shortened, and what is left of a demonstration."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srpo_verl.teacher.reprompt import build_reprompt, strip_thinking, with_solution
from tests.support import tiny_tokenizer

SYSTEM = {"role": "system", "content": "You are exact."}
USER = {"role": "user", "content": "What is 6 x 7?"}
MESSAGES = [SYSTEM, USER]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{% if not enable_thinking %}[no thinking]{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def render(tokenizer):
    """One token per character, by a chat template with an argument that comes after the assistant header."""

    def rendered(messages):
        text = tokenizer.apply_chat_template(
            list(messages),
            chat_template=TEMPLATE,
            add_generation_prompt=True,
            tokenize=False,
            enable_thinking=False,
        )
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    return rendered


def by_words(messages):
    """A tokenizer whose tokens are of very different lengths."""
    return [hash(word) for message in messages for word in message["content"].split()]


# --- the text --------------------------------------------------------------------------------------------------------


def test_the_prompt_s_text(tokenizer, render):
    reprompt = build_reprompt(MESSAGES, "6 x 7 = 42", None, render=render, max_prompt_tokens=1000)
    assert tokenizer.decode(reprompt.token_ids) == (
        "<|im_start|>system\nYou are exact.<|im_end|>\n"
        "<|im_start|>user\nWhat is 6 x 7?\n\n"
        "Correct solution:\n\n"
        "6 x 7 = 42\n\n"
        "Correctly solve the original question.\n<|im_end|>\n"
        "<|im_start|>assistant\n[no thinking]"
    )
    assert not reprompt.truncated


def test_feedback_alone(tokenizer, render):
    reprompt = build_reprompt(MESSAGES, None, "The answer is wrong.", render=render, max_prompt_tokens=1000)
    text = tokenizer.decode(reprompt.token_ids)
    assert "Correct solution" not in text
    question, feedback, closing = (
        text.index(part)
        for part in ("What is 6 x 7?", "The answer is wrong.", "Correctly solve the original question.")
    )
    assert question < feedback < closing


def test_solution_and_feedback_in_this_order(tokenizer, render):
    text = with_solution(MESSAGES, "42", "Wrong.")[-1]["content"]
    parts = ("What is 6 x 7?", "Correct solution:", "42", "Wrong.", "Correctly solve the original question.")
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


def test_earlier_turns_stay_and_the_student_s_messages_are_not_touched():
    history = [SYSTEM, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, dict(USER)]
    before = [dict(message) for message in history]
    result = with_solution(history, "42")
    assert result[:-1] == before[:-1]
    assert history == before
    assert {key: result[-1][key] for key in result[-1] if key != "content"} == {"role": "user"}


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [SYSTEM],
        [USER, {"role": "assistant", "content": "42"}],
        [{"role": "user", "content": [{"type": "text", "text": "What?"}]}],
        [{"role": "user", "content": None}],
    ],
    ids=["empty", "system", "assistant", "parts", "none"],
)
def test_a_conversation_that_does_not_end_with_a_user_s_text(messages):
    with pytest.raises(ValueError, match="has to end with a user message of plain text"):
        with_solution(messages, "42")


# --- the limit -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slack", [0, 1, 5, 29])
def test_only_the_demonstration_is_shortened_and_the_limit_is_used_up(tokenizer, render, slack):
    demonstration = "abcdefghijklmnopqrstuvwxyzABCD"
    empty = len(render(with_solution(MESSAGES, "")))
    reprompt = build_reprompt(MESSAGES, demonstration, None, render=render, max_prompt_tokens=empty + slack)
    # One token per character: exactly the limit is used, and the text is that of the shorter demonstration.
    assert len(reprompt.token_ids) == empty + slack
    assert reprompt.token_ids == render(with_solution(MESSAGES, demonstration[:slack]))
    assert reprompt.truncated
    text = tokenizer.decode(reprompt.token_ids)
    assert "What is 6 x 7?" in text
    assert text.endswith("Correctly solve the original question.\n<|im_end|>\n<|im_start|>assistant\n[no thinking]")


def test_a_prompt_of_exactly_the_limit_is_whole(render):
    whole = render(with_solution(MESSAGES, "6 x 7 = 42"))
    reprompt = build_reprompt(MESSAGES, "6 x 7 = 42", None, render=render, max_prompt_tokens=len(whole))
    assert reprompt.token_ids == whole
    assert not reprompt.truncated
    assert build_reprompt(MESSAGES, "6 x 7 = 42", None, render=render, max_prompt_tokens=len(whole) - 1).truncated


@settings(max_examples=100)
@given(st.text(alphabet="ab \n", max_size=60), st.integers(min_value=0, max_value=40))
def test_no_longer_prefix_would_have_fitted(demonstration, slack):
    limit = len(by_words(with_solution(MESSAGES, ""))) + slack
    reprompt = build_reprompt(MESSAGES, demonstration, None, render=by_words, max_prompt_tokens=limit)
    lengths = [len(by_words(with_solution(MESSAGES, demonstration[:n]))) for n in range(len(demonstration) + 1)]
    fitting = [n for n in range(len(demonstration) + 1) if lengths[n] <= limit]
    assert reprompt.token_ids == by_words(with_solution(MESSAGES, demonstration[: max(fitting)]))
    assert reprompt.truncated == (max(fitting) < len(demonstration))


def test_feedback_is_kept_whole_when_the_demonstration_is_cut(tokenizer, render):
    limit = len(render(with_solution(MESSAGES, "", "Wrong unit."))) + 3
    text = tokenizer.decode(
        build_reprompt(MESSAGES, "abcdef", "Wrong unit.", render=render, max_prompt_tokens=limit).token_ids
    )
    assert "\n\nabc\n\n" in text
    assert "Wrong unit." in text


@pytest.mark.parametrize("demonstration", ["6 x 7 = 42", "4", "", None])
def test_a_limit_too_small_for_the_question_names_the_key(render, demonstration):
    feedback = "Wrong." if demonstration is None else None
    limit = len(render(with_solution(MESSAGES, demonstration and "", feedback))) - 1
    with pytest.raises(ValueError, match=rf"srpo\.demonstration\.max_prompt_tokens={limit}\b.*raise that limit"):
        build_reprompt(MESSAGES, demonstration, feedback, render=render, max_prompt_tokens=limit)


def test_the_number_of_renderings_is_logarithmic():
    calls = []

    def counting(messages):
        calls.append(1)
        return list(messages[-1]["content"])

    build_reprompt([USER], "x" * 50_000, None, render=counting, max_prompt_tokens=10_000)
    assert len(calls) < 20


# --- thinking --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<think>mull</think>42", "42"),
        ("<think>\nmull\n</think>\n\n42", "42"),
        ("  \n<think></think> 42 ", "42 "),
        ("mull</think>\n42", "42"),  # the opening tag stood in the prompt
        ("\nmull</think>42", "42"),
        ("42", "42"),
        (" 42\n", " 42\n"),
        ("", ""),
        ("<think>mull", "<think>mull"),  # never closed: nobody can say where the answer starts
        ("<think>a</think>b<think>c</think>d", "b<think>c</think>d"),  # one block only
        ("a</think>b</think>c", "b</think>c"),
        ("First <think>a</think> then 42", "First <think>a</think> then 42"),  # not leading: part of the answer
        ("<think>a < b </ think> c</think>42", "42"),
        ("<THINK>a</THINK>42", "<THINK>a</THINK>42"),
        ("<think>" + "x\n" * 1000 + "</think>42", "42"),
    ],
)
def test_one_leading_block_is_removed(text, left):
    assert strip_thinking(text) == left


def test_nested_thinking_never_costs_the_answer():
    assert strip_thinking("<think>a<think>b</think>c</think>42").endswith("c</think>42")


@settings(max_examples=300)
@given(st.lists(st.sampled_from(["<think>", "</think>", " ", "\n", "a", "<", "/"]), max_size=12).map("".join))
def test_what_is_left_is_an_end_of_the_text_and_what_went_ended_with_the_tag(text):
    left = strip_thinking(text)
    assert text.endswith(left)
    removed = text[: len(text) - len(left)]
    if removed:
        # One closing tag, the first; at most one opening tag, at the very start.
        assert removed.rstrip().endswith("</think>")
        assert removed.count("</think>") == 1
        assert "<think>" not in removed.lstrip()[len("<think>") :]
    else:
        before, tag, _ = text.partition("</think>")
        assert not tag or "<think>" in before.lstrip()[1:]


LONG = 200_000


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "text",
    [
        "x" * LONG,
        " " * LONG,
        "\n" * (LONG // 2) + "x" * (LONG // 2),
        "<" * LONG,
        "<think>" + "x" * LONG,
        "<think>" * (LONG // 7),
        "</think" * (LONG // 7),
        "<think>" + " " * LONG,
        " " * (LONG // 2) + "<think>" + "x" * (LONG // 2),
        "x" * LONG + "</think>" + " " * LONG,
    ],
    ids=["text", "blanks", "blanks-then-text", "<", "unclosed", "opens", "almost", "open-blanks", "blanks-open", "ok"],
)
def test_no_response_is_slow_to_strip(text):
    """A collapsed policy fills its whole response length with anything; this runs in the trainer, row after row."""
    started = time.perf_counter()
    strip_thinking(text)
    assert time.perf_counter() - started < 1.0
