"""Files and rows: each clause is a case, with the words a user reads."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from srpo_verl.preflight import data as preflight_data
from srpo_verl.preflight.findings import ERROR, NOTE, errors
from srpo_verl.preflight.lengths import SLACK
from srpo_verl.rewards import FEEDBACK_TEXTS
from tests.preflight import BARE, GOOD, LIMIT, TOY, only_error, row, write


def at(position, bad):
    """Five rows of which one is bad."""
    return [bad if index == position else row() for index in range(5)]


def messages(*pairs):
    return row(prompt=[{"role": role, "content": content} for role, content in pairs])


LONG = "x" * 60
"""79 tokens, over the limit of 64: one per character, and 19 of the template."""

ROWS = {
    "an unknown data source": (
        row(source="gsm8k"),
        "ground truth",
        "data_source='gsm8k': unknown; known are",
        "correct",
    ),
    "no data source": (row(source=""), "ground truth", "data_source=''", "correct these rows"),
    "a gold letter that is none": (
        row(answer="E"),
        "ground truth",
        "must be one of A, B, C, D, got 'E'",
        "leave them out",
    ),
    "no gold answer": (row(answer=None), "ground truth", "must be one of A, B, C, D, got None", "correct"),
    "no reward model": (row(reward_model=None), "ground truth", "reward_model=None", "correct"),
    "gold calls that are no JSON": (
        row(answer="[{", source="tooluse"),
        "ground truth",
        "the answer is not valid JSON",
        "correct",
    ),
    "an empty gold answer": (row(answer=" ", source="math"), "ground truth", "a text that is not empty", "correct"),
    "no message": (row(prompt=[]), "prompt", "the prompt holds no message", "a list of messages"),
    "no prompt": (row(prompt=None), "prompt", "the prompt holds no message", "a list of messages"),
    "a message without a role": (messages((None, "?")), "prompt", "message 0 has the role None", "a list of messages"),
    "an empty question": (
        messages(("system", "x"), ("user", "")),
        "prompt",
        "message 1, of role user, is empty",
        "list",
    ),
    "an answer at the end": (
        messages(("user", "?"), ("assistant", "!")),
        "prompt",
        "the last message is the assistant's",
        "the last of them not the assistant's",
    ),
    "a system message at the end": (
        messages(("user", "?"), ("system", "!")),
        "last message",
        "the last message is of role 'system'",
        "--config-name grpo",
    ),
}


@pytest.mark.parametrize("case", ROWS)
def test_a_bad_row(look, case):
    """Each is named by file and row; the four good ones make a batch."""
    bad, kind, message, remedy = ROWS[case]
    error = only_error(look(train=at(2, bad)))
    assert (error.subject, error.row) == (f"data.train_files, {kind}", 2)
    assert error.file.endswith("/train.parquet")
    assert message in error.message
    assert remedy in error.remedy


def test_a_bad_row_of_the_other_split(look):
    error = only_error(look(val=[row(), row(answer="E")]))
    assert (error.subject, error.row) == ("data.val_files, ground truth", 1)
    assert error.file.endswith("/val.parquet")


def test_only_distilled_rows_need_a_user_s_message_at_the_end(look):
    bad = ROWS["a system message at the end"][0]
    assert errors(look(val=[bad])) == []
    assert errors(look(train=at(2, bad), name="grpo")) == []
    # Nothing is added to the last message.
    assert errors(look("srpo.demonstration.show=false", train=at(2, bad))) == []


def test_every_bad_row_is_listed(look):
    """More than one batch of rows, so that their numbers are counted over batches."""
    train = [row(answer="E" if index % 100 == 50 else "A") for index in range(2300)]
    wrong = errors(look(train=train))
    assert [error.row for error in wrong] == list(range(50, 2300, 100))


def test_messages_with_parts_have_no_teacher(look):
    parts = row(prompt=[{"role": "user", "content": [{"type": "text", "text": "?"}]}])
    findings = look(train=[parts] * 4)
    assert [error.row for error in errors(findings)[:4]] == [0, 1, 2, 3]
    assert errors(findings)[0].message == "the last message is not plain text"
    findings = look(train=[parts] * 4, name="grpo")
    assert errors(findings) == []
    assert any("4 rows with images" in finding.message and finding.level == NOTE for finding in findings)


def test_a_verifier_that_cannot_be_asked(look):
    """One line, and no row is judged."""
    findings = look(TOY, train=[row(source="toy", answer=None)] * 4, val=[row(source="toy")])
    assert errors(findings) == []
    (note,) = (finding for finding in findings if finding.subject == "reward function")
    assert note.level == NOTE
    assert note.message.endswith("toy_reward.py defines no validate_ground_truth: ground truths are unchecked")


def test_a_verifier_of_one_s_own_that_can_be_asked(look, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "def compute_score(data_source, solution_str, ground_truth, extra_info=None):\n    return 0.0\n"
        "def validate_ground_truth(data_source, ground_truth):\n"
        "    if not ground_truth.isdigit():\n        raise ValueError(f'{ground_truth} is no number')\n"
    )
    train = at(3, row(answer="seven", source="mine"))
    for good in (0, 1, 2, 4):
        train[good] = row(answer="7", source="mine")
    error = only_error(look(f"reward.custom_reward_function.path={file}", train=train, val=[row(answer="7")]))
    assert (error.row, error.message) == (3, "seven is no number")


def test_a_reward_manager_of_one_s_own_reads_what_it_likes(look):
    own = ["reward.reward_manager.source=importlib", "reward.reward_manager.module.path=mine.py"]
    train = [{key: value for key, value in row().items() if key == "prompt"} for _ in range(4)]
    findings = look(*own, train=train)
    assert errors(findings) == []
    assert any(finding.subject == "reward.reward_manager" and "unchecked" in finding.message for finding in findings)


# --- lengths ---------------------------------------------------------------------------------------------------------


def test_long_prompts_are_counted_where_verl_drops_them(look):
    findings = look(train=at(1, row(LONG)))
    assert errors(findings) == []
    (note,) = (finding for finding in findings if finding.row is not None)
    assert (note.level, note.subject, note.row) == (NOTE, "data.train_files, dropped as too long", 1)
    assert note.message == "79 tokens"
    assert "data.max_prompt_length=64" in note.remedy
    assert "5 rows in 1 file, 1 of them not usable, prompts of 28 to 79 tokens" in str(findings)


@pytest.mark.parametrize("truncation", ["error", "right"])
def test_long_prompts_that_verl_would_cut_on_the_left(look, truncation):
    """veRL 0.9.1 does so whatever data.truncation says (AgentLoopBase._cap_text_prompt_length)."""
    keep = ["data.filter_overlong_prompts=false", f"data.truncation={truncation}"]
    error = only_error(look(*keep, train=at(1, row(LONG))))
    assert (error.subject, error.row, error.message) == ("data.train_files, prompt too long", 1, "79 tokens")
    assert "set data.filter_overlong_prompts=true" in error.remedy


def test_long_prompts_that_are_meant_to_be_cut_on_the_left(look):
    findings = look("data.filter_overlong_prompts=false", "data.truncation=left", train=at(1, row(LONG)))
    assert errors(findings) == []
    assert any(finding.level == NOTE and finding.row == 1 for finding in findings)


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (BARE - 1, f"question and closing instruction take {BARE} tokens"),  # would end the run
        (BARE + 1, f"question and closing instruction take {BARE} tokens and leave 1 for a demonstration"),
    ],
)
def test_a_teacher_s_prompt_without_room(look, limit, message):
    wrong = errors(look(f"{LIMIT}={limit}", train=[*GOOD, row("?")]))
    assert [error.row for error in wrong] == [0, 1, 2, 3, 4]  # the shorter question has room
    assert {error.subject for error in wrong} == {"data.train_files, teacher's prompt"}
    assert {error.message for error in wrong} == {message}
    assert f"raise {LIMIT}={limit}: it has to leave 2 tokens for a demonstration, 1/8 of" in wrong[0].remedy


def test_room_for_a_part_of_the_longest_responses_is_a_note(look):
    findings = look(f"{LIMIT}={BARE + 15}")
    assert errors(findings) == []
    (note,) = (finding for finding in findings if finding.subject == LIMIT)
    assert "leaves 15 tokens for a demonstration; longer ones are shortened" in note.message
    assert not any(finding.subject == LIMIT for finding in look(f"{LIMIT}={BARE + 16}"))


def test_feedback_takes_room(look):
    """Its longest text counts: the verifier says what it can say."""
    feedback = "srpo.demonstration.environment_feedback=true"
    error = errors(look(feedback, f"{LIMIT}=200"))[0]
    header = "\n\nFeedback on an earlier, unsuccessful attempt:\n\n"
    longest = max(map(len, FEEDBACK_TEXTS))
    assert error.message == f"question, feedback and closing instruction take {BARE + len(header) + longest} tokens"
    assert errors(look(feedback, f"{LIMIT}={BARE + len(header) + longest + 2}")) == []


def test_feedback_of_unknown_length_is_unchecked(look):
    findings = look(TOY, "srpo.demonstration.environment_feedback=true")
    assert errors(findings) == []
    assert any("no FEEDBACK_TEXTS" in finding.message for finding in findings)


def test_without_siblings_there_is_no_demonstration(look):
    alone = ["actor_rollout_ref.rollout.n=1", "srpo.demonstration.environment_feedback=true", TOY]
    assert errors(look(*alone, f"{LIMIT}={BARE}")) == []
    assert len(errors(look(*alone, f"{LIMIT}={BARE - 1}"))) == 4


# --- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "rows", "message"),
    [
        ([], 3, "3 usable rows, fewer than data.train_batch_size=4: there is no step"),
        (
            ["data.train_max_samples=3"],
            4,
            "3 usable rows (with data.train_max_samples=3), fewer than data.train_batch",
        ),
        (["data.gen_batch_size=8"], 5, "5 usable rows, fewer than data.gen_batch_size=8"),
        (["data.gen_batch_size=2"], 3, "3 usable rows, fewer than data.train_batch_size=4"),
    ],
)
def test_too_few_rows_for_a_batch(look, overrides, rows, message):
    error = only_error(look(*overrides, train=[row()] * rows))
    assert error.subject == "data.train_files"
    assert error.message.startswith(message)
    assert "give more rows" in error.remedy


def test_dropped_rows_do_not_count(look):
    assert "3 usable rows" in only_error(look(train=[*[row()] * 3, row(LONG)])).message
    assert "no usable row" in only_error(look(val=[row(LONG)])).message


def test_with_a_number_of_steps_fewer_rows_are_drawn_again(look):
    assert errors(look("data.gen_batch_size=2", "trainer.total_training_steps=3", train=[row()] * 3)) == []


@pytest.mark.parametrize(
    ("overrides", "unused"),
    [
        (["trainer.total_training_steps=1"], True),
        (["trainer.total_training_steps=2"], False),
        (["trainer.total_training_steps=2", "trainer.total_epochs=1"], True),
        (["trainer.total_epochs=1"], True),
        (["trainer.total_epochs=2"], False),
        (["trainer.total_training_steps=1", "srpo.demonstration.sources=[sibling]"], False),
    ],
)
def test_a_memory_that_no_prompt_asks(look, overrides, unused):
    """Four rows, four a step."""
    found = look("srpo.demonstration.sources=[sibling, memory]", *overrides)
    notes = [finding for finding in found if finding.subject == "srpo.demonstration.sources"]
    assert [finding.level for finding in notes] == [NOTE] * unused
    if unused:
        assert "takes 4 prompts from 4 rows: none comes twice" in notes[0].message
        assert "data.train_max_samples" in notes[0].remedy
    assert not errors(found)


def test_rows_that_a_run_cannot_see_are_not_judged(look):
    train = [*GOOD, row(answer="E")]
    few = "data.train_max_samples=5"
    assert errors(look(few, "data.shuffle=false", train=train)) == []
    assert only_error(look(few, train=train)).row == 5  # veRL draws them


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_file_that_does_not_exist(look):
    error = only_error(look("data.train_files=/no/train.parquet"))
    assert (error.subject, error.file, error.message) == ("data.train_files", "/no/train.parquet", "no such file")
    assert "python -m srpo_verl data" in error.remedy
    assert only_error(look("data.val_files=null")).message == "no file"


def test_a_file_that_is_no_parquet(look, tmp_path):
    file = tmp_path / "broken.parquet"
    file.write_text("not parquet")
    error = only_error(look(f"data.train_files={file}"))
    assert (error.file, error.remedy) == (str(file), "write it again")
    assert error.message.startswith("is no readable parquet: ")
    (tmp_path / "rows.csv").write_text("a,b\n")
    assert "veRL reads .parquet" in only_error(look(f"data.train_files={tmp_path}/rows.csv")).message


def test_json_lines_are_read_as_verl_does(look, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f"{json.dumps(each)}\n" for each in at(4, row(answer="E"))))
    error = only_error(look(f"data.train_files={file}"))
    assert (error.file, error.row) == (str(file), 4)


def test_files_elsewhere_are_unchecked(look):
    findings = look("data.train_files=hdfs://there/train.parquet")
    assert errors(findings) == []
    (note,) = (finding for finding in findings if finding.file == "hdfs://there/train.parquet")
    assert note.message == "not a local file: its rows are unchecked"


def test_several_files(look, tmp_path):
    """Rows are numbered in their own file; batches are made of all."""
    one, two = write(tmp_path / "one.parquet", GOOD[:2]), write(tmp_path / "two.parquet", [row(), row(answer="E")])
    error = only_error(look(f"data.train_files=[{one},{two}]"))
    assert (error.file, error.row) == (str(two), 1)
    assert only_error(look(f"data.train_files={tmp_path}/t*o.parquet", "data.train_batch_size=2")).file == str(two)


def test_several_files_with_different_types(look, tmp_path):
    one = write(tmp_path / "one.parquet", [row()] * 2)
    two = write(tmp_path / "two.parquet", [row(answer=7)] * 2)
    wrong = errors(look(TOY, f"data.train_files=[{one},{two}]"))
    assert wrong[0].file == str(two)
    assert wrong[0].message.startswith("column 'reward_model' is struct<")
    assert f"in {one}" in wrong[0].message


def changed(**columns):
    """Good rows with columns replaced; None leaves one out."""
    rows = [{**each, **{name: value for name, value in columns.items() if value is not None}} for each in GOOD]
    return [{name: value for name, value in each.items() if columns.get(name, 0) is not None} for each in rows]


@pytest.mark.parametrize(
    ("columns", "message", "remedy"),
    [
        ({"prompt": None}, "no column 'prompt' (it has data_source, reward_model, extra_info)", "data.prompt_key"),
        ({"prompt": "1 + 1 = ?"}, "column 'prompt' is string", "[{'role': 'user', 'content': ...}]"),
        ({"prompt": [{"from": "user", "value": "?"}]}, "messages of 'prompt' have no content and no role", "'role'"),
        ({"data_source": None}, "no column 'data_source'", "name the verifier's data source"),
        ({"data_source": 3}, "column 'data_source' is int64", "a text"),
        ({"reward_model": None}, "no column 'reward_model'", "{'ground_truth': ...}"),
        ({"reward_model": "A"}, "column 'reward_model' is string", "{'ground_truth': ...}"),
        ({"reward_model": {"style": "rule"}}, "column 'reward_model' has no ground_truth", "{'ground_truth': ...}"),
        ({"extra_info": "x"}, "column 'extra_info' is string", "named values"),
    ],
)
def test_columns(look, columns, message, remedy):
    error = only_error(look(train=changed(**columns)))
    assert error.file.endswith("/train.parquet")
    assert error.message.startswith(message), error.message
    assert remedy in error.remedy


def test_columns_that_nobody_needs(look):
    assert errors(look(train=changed(extra_info=None))) == []


def test_another_name_for_the_prompts(look):
    train = [{"question" if name == "prompt" else name: value for name, value in each.items()} for each in GOOD]
    findings = look("data.prompt_key=question", train=train, val=train)
    assert errors(findings) == []


# --- a data set class of one's own -----------------------------------------------------------------------------------


def test_a_data_set_class_is_loaded_and_its_rows_are_unchecked(look, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("from torch.utils.data import Dataset\n\nclass Mine(Dataset):\n    pass\n")
    own = [f"data.custom_cls.path={file}", "data.custom_cls.name=Mine", "data.train_files=null"]
    findings = look(*own)
    assert errors(findings) == []
    assert any(finding.message == "data.custom_cls=Mine: files and rows are unchecked" for finding in findings)
    error = only_error(look(*own, "data.custom_cls.name=Other"))
    assert ".name='Other'" in error.message


def test_types_of_other_writers(look, tmp_path):
    """Large strings, large lists and categories are what polars and pandas write."""
    table = pa.Table.from_pylist(GOOD)
    message = pa.struct([("role", pa.large_string()), ("content", pa.large_string())])
    types = {"prompt": pa.large_list(message), "data_source": pa.dictionary(pa.int32(), pa.string())}
    for name, kind in types.items():
        place = table.schema.get_field_index(name)
        column = pa.array(table.column(name).to_pylist(), kind if name == "prompt" else None)
        table = table.set_column(place, name, column if name == "prompt" else column.dictionary_encode())
    file = tmp_path / "other.parquet"
    pq.write_table(table, file)
    assert errors(look(f"data.train_files={file}")) == []


def test_a_run_in_order(look):
    findings = look(train=GOOD)
    assert [finding.level for finding in findings if finding.level != "ok"] == []
    assert [finding.subject for finding in findings] == ["GPUs", "model", "data.train_files", "data.val_files"]
    assert findings[2].message == "5 rows in 1 file, prompts of 28 to 28 tokens"
    assert ERROR not in {finding.level for finding in findings}


def test_teacher_s_prompts_are_only_measured_where_they_could_be_too_long(look, monkeypatch):
    measured = []
    lengths = preflight_data.bare_lengths
    monkeypatch.setattr(
        preflight_data,
        "bare_lengths",
        lambda prompts, *rest: measured.append(len(prompts)) or lengths(prompts, *rest),
    )
    train = [*GOOD, row("x" * 40)]
    far = BARE + 16 + SLACK  # for GOOD; ASCII has a byte per token
    assert errors(look(f"{LIMIT}={far}", train=train)) == []
    assert errors(look(f"{LIMIT}={far - 1}", train=train)) == []
    assert errors(look(f"{LIMIT}={far + 40}", train=train)) == []
    assert [rows for rows in measured if rows] == [1, 6]
