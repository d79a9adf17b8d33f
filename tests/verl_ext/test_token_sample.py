"""Which rollouts are sampled, and that the texts of the tokens are the text of the response."""

import json

import pytest
from transformers import AutoTokenizer

from srpo_verl.config.schema import TokenSampleConfig, default_values, parse
from srpo_verl.run_files import sample_path, sample_paths, write_json
from srpo_verl.verl_ext.router import Router
from srpo_verl.verl_ext.token_sample import TokenSampler, forget_later, token_texts
from tests.support import tiny_model
from tests.verl_ext.batches import LIMIT, MIXED, TEXT, decode, render, rollouts


@pytest.fixture
def routed():
    values = default_values()
    values["demonstration"]["max_prompt_tokens"] = LIMIT
    batch = rollouts(MIXED)
    return batch, Router(parse(values), TEXT, render, seed=0).route(batch, 3)


def sampler(**settings):
    return TokenSampler(TokenSampleConfig(**{"every": 5, "rollouts": 4, "tokens": 8, **settings}), decode)


def test_the_first_step_every_fifth_and_the_last_one_are_sampled():
    assert [step for step in range(1, 13) if sampler().wants(step, 12)] == [1, 5, 10, 12]
    assert not any(sampler(every=0).wants(step, 12) for step in range(1, 13))


def test_groups_with_most_to_distil_come_first_and_the_number_of_rollouts_is_kept(routed):
    sample = sampler().choose(3, *routed)
    # Two of c are distilled, one of a, none of b.
    assert sample.keys == ["c_0_0", "c_1_0", "c_2_0", "a-1_0_0"]
    assert sample.numbers(["b_2_0_0", "c_2_0", "padding"]) == [-1, 2, -1]


def test_a_sample_is_written_with_its_demonstrations_and_what_the_ranks_recorded(routed, tmp_path):
    sample, log = sampler().choose(3, *routed), tmp_path / "run.jsonl"
    row = {"advantage": [0.123456] * 6, "divergence": [float("nan")] * 6}
    sampler().write(log, sample, [{0: row}, {}, {0: row}])
    written = json.loads(sample_path(log, 3).read_text())
    assert [len(prompt["rollouts"]) for prompt in written["prompts"]] == [3, 1]
    distilled, _, correct = written["prompts"][0]["rollouts"]
    assert "".join(distilled["tokens"]) == "c zero"
    assert distilled["demonstration"] == {"source": "sibling", "text": "c two", "rollout": 2, "shortened": False}
    assert (distilled["advantage"], distilled["divergence"]) == ([0.1235] * 6, [None] * 6)
    assert (correct["correct"], correct["grpo_share"], correct["demonstration"]) == (True, 1.0, None)
    (other,) = written["prompts"][1]["rollouts"]
    assert other["demonstration"]["rollout"] is None  # its sibling is beyond the number of rollouts
    assert written["prompts"][1]["messages"] == [{"role": "user", "content": "Question a-1"}]


def test_tokens_beyond_the_limit_are_counted_and_not_kept(routed):
    sample = sampler(tokens=3).choose(3, *routed)
    rollout = sample.prompts[0]["rollouts"][0]
    assert (rollout["tokens"], rollout["length"]) == (["c", " ", "z"], 6)


def test_samples_of_steps_that_are_made_again_are_removed(tmp_path):
    log = tmp_path / "run.jsonl"
    for step in (1, 20, 40):
        write_json(sample_path(log, step), {})
    forget_later(log, 20)
    assert list(sample_paths(log)) == [1, 20]


def test_the_texts_of_the_tokens_are_the_text_of_the_response(tmp_path):
    """Also where a character takes several tokens, and where it never gets complete."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model(tmp_path))

    def decode_bytes(ids):
        return bytes(ids).decode("utf-8", errors="replace")

    for text in ("12 + 3 =", " a  b\n"):
        ids = tokenizer(text)["input_ids"]
        assert "".join(token_texts(ids, tokenizer.decode)) == tokenizer.decode(ids)
    ids = list("π is 3, 你好 🙂!".encode())
    texts = token_texts(ids, decode_bytes)
    assert (len(texts), "".join(texts)) == (len(ids), decode_bytes(ids))
    assert texts[:3] == ["", "π", " "]
    broken = [0xF0, 0x9F, 0x41, 0x42, 0xE4, 0xBD]
    assert "".join(token_texts(broken, decode_bytes)) == decode_bytes(broken)
