"""The success memory: newest first, bounded, the same after a checkpoint."""

import json

import pytest

from srpo_verl.teacher.memory import FILE_NAME, SuccessMemory, prompt_id, remove_stale


def test_the_newest_first_and_never_the_own():
    memory = SuccessMemory(per_prompt=2, max_prompts=9)
    memory.add("p", ["one", "two"])
    assert memory.newest("p") == "two"
    assert memory.newest("p", other_than="two") == "one"
    memory.add("p", ["three"])
    assert memory.newest("p") == "three"
    assert memory.newest("p", other_than="three") == "two"
    assert memory.responses == 2
    assert memory.newest("q") is None
    assert memory.newest("p", other_than="one") == "three"


def test_a_text_that_comes_again_is_kept_once_and_new():
    memory = SuccessMemory(per_prompt=3, max_prompts=9)
    memory.add("p", ["one", "two", "one"])
    assert memory.responses == 2
    assert memory.newest("p") == "one"


def test_the_prompt_that_was_solved_longest_ago_is_forgotten():
    memory = SuccessMemory(per_prompt=1, max_prompts=2)
    assert memory.add("a", ["1"]) == memory.add("b", ["2"]) == memory.add("a", ["3"]) == 0
    assert memory.add("c", ["4"]) == 1
    assert ("a" in memory, "b" in memory, "c" in memory) == (True, False, True)
    assert (memory.prompts, memory.responses) == (2, 2)


def test_a_checkpoint_goes_on_as_if_nothing_had_happened(tmp_path):
    memory = SuccessMemory(per_prompt=2, max_prompts=2)
    memory.add("a", ["1", "2"])
    memory.add("b", ["\u00e4 \ud83d\ude00"])
    memory.add("a", ["3"])
    memory.save(tmp_path / "global_step_3")
    loaded = SuccessMemory(per_prompt=2, max_prompts=2)
    loaded.load(tmp_path / "global_step_3")
    for one in (memory, loaded):
        assert one.add("c", ["4"]) == 1
        assert "b" not in one
        assert one.newest("a", other_than="3") == "2"
    # A resumed run may have smaller bounds; the newest stay.
    small = SuccessMemory(per_prompt=1, max_prompts=1)
    small.load(tmp_path / "global_step_3")
    assert (small.prompts, small.newest("a")) == (1, "3")


def test_a_checkpoint_without_a_memory(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"without a success memory; resume without memory in srpo\.demonstr"):
        SuccessMemory(1, 1).load(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", json.dumps({"a": "text"}), json.dumps({"a": [1]})])
def test_a_damaged_memory(tmp_path, content):
    (tmp_path / FILE_NAME).write_text(content)
    with pytest.raises(ValueError, match="no success memory; resume"):
        SuccessMemory(1, 1).load(tmp_path)


def test_memories_go_with_the_checkpoints_that_verl_removes(tmp_path):
    for step, kept in ((1, False), (2, True), (3, True)):
        SuccessMemory(1, 1).save(tmp_path / f"global_step_{step}")
        if kept:
            (tmp_path / f"global_step_{step}" / "actor").mkdir()
    remove_stale(tmp_path)
    assert sorted(path.parent.name for path in tmp_path.rglob(FILE_NAME)) == ["global_step_2", "global_step_3"]


def test_a_prompt_is_its_conversation():
    one = [{"role": "user", "content": "x"}]
    assert prompt_id(one) == prompt_id([{"content": "x", "role": "user"}])
    assert prompt_id(one) != prompt_id([{"role": "system", "content": "s"}, *one])
    assert prompt_id(one) != prompt_id([{"role": "user", "content": "y"}])
    # A response that calls a tool is no demonstration for a prompt without it.
    add, negate = ({"type": "function", "function": {"name": name}} for name in ("add", "negate"))
    assert len({prompt_id(one), prompt_id(one, [add]), prompt_id(one, [negate]), prompt_id(one, [add, negate])}) == 4
