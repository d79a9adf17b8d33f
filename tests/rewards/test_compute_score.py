"""What holds for every rule: the shape of the result, hostile responses, veRL's use of both."""

import json
import random
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from srpo_verl.rewards import DATA_SOURCES, compute_score, math, sciknoweval, tooluse, validate_ground_truth
from srpo_verl.rewards.result import MAX_PRED_CHARS
from tests.data.samples import tooluse_answer
from tests.rewards import hostile

GOLD = {"sciknoweval": "B", "tooluse": tooluse_answer(("search", {"query": "cats"})), "math": "117"}
KEYS = {"score": float, "acc": float, "pred": str, "format_ok": bool, "feedback": str}
FEEDBACKS = {
    "sciknoweval": {sciknoweval.FEEDBACK_FORMAT, sciknoweval.FEEDBACK_WRONG},
    "tooluse": {
        tooluse.FEEDBACK_FORMAT,
        tooluse.FEEDBACK_NO_JSON,
        tooluse.FEEDBACK_NAMES,
        tooluse.FEEDBACK_INPUTS,
    },
    "math": {math.FEEDBACK_FORMAT, math.FEEDBACK_WRONG},
}


def check(result, data_source):
    """Plain types, the same keys always, strings that can be written, feedback from a fixed list."""
    assert {key: type(value) for key, value in result.items()} == KEYS
    assert result["score"] == result["acc"]
    assert result["score"] in (0.0, 1.0)
    assert len(result["pred"]) <= MAX_PRED_CHARS
    json.dumps(result, ensure_ascii=False).encode("utf-8")
    if result["score"] == 1.0:
        assert result["feedback"] == ""
    else:
        assert result["feedback"] in FEEDBACKS[data_source]


@pytest.mark.parametrize("data_source", DATA_SOURCES)
def test_a_benchmark_name_after_a_slash_is_accepted(data_source):
    for name in (data_source, f"{data_source}/chemistry", f"{data_source}/a/b"):
        check(compute_score(name, "response", GOLD[data_source]), data_source)
        validate_ground_truth(name, GOLD[data_source])


@pytest.mark.parametrize("data_source", ["", "maths", "math500", "sciknoweval-x", "/math", None, 3])
def test_an_unknown_data_source_is_an_error_that_names_the_known(data_source):
    with pytest.raises(ValueError, match="sciknoweval, tooluse, math"):
        compute_score(data_source, "", "")
    with pytest.raises(ValueError, match="sciknoweval, tooluse, math"):
        validate_ground_truth(data_source, "")


def test_an_unknown_keyword_is_an_error_and_verls_own_are_not():
    with pytest.raises(ValueError, match="strct"):
        compute_score("math", "", "", strct=True)
    compute_score("math", "", "", reward_router_address="x", reward_model_tokenizer=None)


def test_a_response_that_is_no_text_scores_0():
    for data_source in DATA_SOURCES:
        assert compute_score(data_source, None, GOLD[data_source])["score"] == 0.0


def test_the_feedback_holds_nothing_of_the_gold_answer():
    """The sentences are constants, so it suffices that they are free of any answer; options are named by no letter."""
    for sentences in FEEDBACKS.values():
        for sentence in sentences:
            assert GOLD["math"] not in sentence
            assert "search" not in sentence
            assert not {"A", "B", "C", "D"} & set(sentence.replace("(", " ").replace(".", " ").split())


def test_there_are_a_hundred_hostile_responses():
    assert len(set(hostile.RESPONSES)) >= 100


@pytest.mark.parametrize("data_source", ["sciknoweval", "tooluse"])
def test_hostile_responses(data_source):
    for number, response in enumerate(hostile.RESPONSES):
        start = time.thread_time()  # whatever else the machine does
        result = compute_score(data_source, response, GOLD[data_source], strict=number % 2 == 0)
        assert time.thread_time() - start < 5.0, number
        check(result, data_source)
        assert result["score"] == 0.0, number


def test_hostile_responses_in_mathematics():
    """In threads, as veRL scores: the few comparisons that have to be stopped would take minutes in a row."""

    def timed(response):
        start = time.monotonic()
        return compute_score("math", response, GOLD["math"]), time.monotonic() - start

    timed("\\boxed{0.5}")  # starts the worker
    with ThreadPoolExecutor(8) as pool:
        for number, (result, seconds) in enumerate(pool.map(timed, hostile.RESPONSES)):
            check(result, "math")
            assert result["score"] == 0.0, number
            assert seconds < math.WAIT_SECONDS + 3.0, number


def test_memory_stays_in_proportion_to_the_response():
    for unit in ("Action: a\n", 'Action Input: {"a": 1}', "Action Input: {", "\\boxed{", "{"):
        response = unit * (250_000 // len(unit))
        for data_source in DATA_SOURCES:
            tracemalloc.start()
            compute_score(data_source, response, GOLD[data_source])
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < 50_000_000, (unit, data_source, peak)


PIECES = [
    *(
        "<answer>",
        "</answer>",
        "A",
        "B",
        " ",
        "\n",
        "Action:",
        "Action Input:",
        "search",
        "[Optional]",
        "{",
        "}",
        "[",
        "]",
    ),
    *('"', ":", ",", "\\", "1", "null", '{"query": "cats"}', "\\boxed{", "\\frac{1}{2}", "117", "\0", "\ud800", "$"),
]
TEXTS = st.one_of(
    st.text(st.characters(), max_size=200),
    st.lists(st.sampled_from(PIECES), max_size=40).map("".join),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=10,
    ).map(lambda value: f"Action: search\nAction Input: {json.dumps(value)}"),
)


def never_raises(data_source, response, strict):
    check(compute_score(data_source, response, GOLD[data_source], strict=strict), data_source)


RULES = st.sampled_from(["sciknoweval", "tooluse"])


@given(RULES, TEXTS, st.booleans())
@settings(max_examples=300)
def test_any_text(data_source, response, strict):
    never_raises(data_source, response, strict)


@given(st.one_of(st.text(max_size=8), st.lists(st.sampled_from(PIECES), max_size=6).map("".join)))
@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
def test_any_boxed_text(content):
    never_raises("math", f"\\boxed{{{content}}}", False)


@pytest.mark.slow
@given(RULES, TEXTS, st.booleans())
@settings(max_examples=10_000)
def test_any_text_at_length(data_source, response, strict):
    never_raises(data_source, response, strict)


@pytest.mark.slow
@given(TEXTS)
@settings(max_examples=2_000, suppress_health_check=[HealthCheck.too_slow])
def test_any_boxed_text_at_length(response):
    never_raises("math", f"\\boxed{{{response}}}", False)


JSON_OBJECTS = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    ),
    max_size=4,
)
CALLS = st.lists(st.tuples(st.from_regex(r"[a-z]\w{0,8}", fullmatch=True), JSON_OBJECTS), min_size=1, max_size=4)


@given(CALLS, st.randoms(use_true_random=False))
@settings(max_examples=200)
def test_any_answer_in_the_asked_form_is_right_under_both_tool_use_rules(calls, order):
    gold = tooluse_answer(*calls)
    said = [f"Thought: now\nAction: {name}\nAction Input: {json.dumps(value)}" for name, value in calls]
    response = "\n".join(said)
    if "Action:" in json.dumps([value for _, value in calls]):
        return
    assert compute_score("tooluse", response, gold)["score"] == 1.0
    assert compute_score("tooluse", response, gold, strict=True)["score"] == 1.0
    order.shuffle(said)
    assert compute_score("tooluse", "\n".join(said), gold, strict=True)["score"] in (0.0, 1.0)
    assert compute_score("tooluse", response + "\nAction: zzzzzzzzzzzz", gold)["score"] == 0.0


@given(st.text(max_size=100), st.sampled_from("ABCD"), st.sampled_from("ABCD"))
@settings(max_examples=200)
def test_the_last_letter_in_tags_decides(reasoning, letter, gold):
    result = compute_score("sciknoweval", f"{reasoning}<answer>\n{letter}\n</answer>", gold)
    assert result["format_ok"] is True
    assert result["score"] == float(letter == gold)


class TestVerl:
    """The function as veRL loads, calls and averages it."""

    def test_the_path_that_a_config_names(self):
        from omegaconf import OmegaConf
        from verl.trainer.ppo.reward import get_custom_reward_fn

        config = OmegaConf.create(
            {
                "reward": {
                    "custom_reward_function": {
                        "path": "pkg://srpo_verl.rewards",
                        "name": "compute_score",
                        "reward_kwargs": {"strict": True},
                    }
                }
            }
        )
        function = get_custom_reward_fn(config)
        gold = tooluse_answer(("a", {"x": 1}), ("b", {"y": 2}))
        exchanged = 'Action: a\nAction Input: {"y": 2}\nAction: b\nAction Input: {"x": 1}'
        arguments = {"data_source": "tooluse", "solution_str": exchanged, "ground_truth": gold, "extra_info": {}}
        assert function(**arguments)["score"] == 0.0
        del config.reward.custom_reward_function.reward_kwargs
        assert get_custom_reward_fn(config)(**arguments)["score"] == 1.0

    def test_validation_metrics_per_benchmark(self):
        from verl.trainer.ppo.metric_utils import process_validation_metrics

        sources = ["sciknoweval/chemistry"] * 4 + ["sciknoweval/physics"] * 4
        uids = [f"{index // 2}" for index in range(8)]
        responses = ["<answer>B</answer>", "A", "<answer>B</answer>", "<answer>B</answer>", "", "B", "B", "b"]
        scored = [compute_score(source, response, "B") for source, response in zip(sources, responses, strict=True)]
        infos = {key: [result[key] for result in scored] for key in KEYS}
        metrics = process_validation_metrics(sources, uids, infos)
        assert metrics["sciknoweval/chemistry"]["acc"]["mean@2"] == 0.75
        assert metrics["sciknoweval/chemistry"]["format_ok"]["mean@2"] == 0.75
        assert metrics["sciknoweval/physics"]["acc"]["mean@2"] == 0.5
        assert set(metrics["sciknoweval/physics"]) == {"score", "acc", "format_ok"}
        assert "maj@2/mean" in metrics["sciknoweval/physics"]["acc"]


@pytest.mark.slow
def test_random_cuts_of_a_right_answer():
    """Every prefix of a right response, and the response with any span cut out, is scored without an error."""
    generator = random.Random(0)
    right = 'Thought: x\nAction: search\nAction Input: {"query": "cats", "deep": {"a": [1, "}"]}}'
    for _ in range(10_000):
        first, last = sorted(generator.sample(range(len(right) + 1), 2))
        never_raises("tooluse", right[:first] + right[last:], generator.random() < 0.5)
