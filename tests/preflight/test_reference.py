"""Demonstrations that are no sibling's: the data's own solutions, and the memory."""

import pytest

from srpo_verl.preflight.findings import ERROR, NOTE, errors
from tests.preflight import BARE, GOOD, LIMIT, only_error, row

SOURCES = "srpo.demonstration.sources"
REFERENCE = [f"{SOURCES}=[reference]", "srpo.demonstration.reference_column=solution"]


def solved(*solutions):
    return [row(solution=solution) for solution in solutions]


def about_references(findings):
    return [finding for finding in findings if finding.subject == "data.train_files, reference"]


def test_rows_without_a_reference_are_named(look):
    findings = look(*REFERENCE, train=solved("2", "", "2", None, " \n", "2"))
    missing = about_references(findings)
    assert [(finding.row, finding.level) for finding in missing] == [(1, NOTE), (3, NOTE), (4, NOTE)]
    assert all(finding.file.endswith("/train.parquet") for finding in missing)
    assert missing[0].message == "no text in srpo.demonstration.reference_column=solution"
    assert "only where another source or feedback has something" in missing[0].remedy
    assert errors(findings) == []


def test_a_column_without_any_text_is_refused(look):
    error = only_error(look(*REFERENCE, train=solved("", None, "", "")))
    assert error.message == "srpo.demonstration.reference_column=solution holds no text in any row"


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("answer", "no column 'answer' (it has prompt, data_source, reward_model, extra_info, solution)"),
        ("reward_model.solution", "column 'reward_model.solution': no 'solution' in struct<"),
        ("solution.text", "column 'solution.text': no 'text' in string"),
        ("reward_model", "column 'reward_model' is struct<"),
        ("prompt", "column 'prompt' is list<"),
    ],
)
def test_a_column_that_holds_no_texts(look, column, message):
    error = only_error(look(REFERENCE[0], f"srpo.demonstration.reference_column={column}", train=solved(*"2222")))
    assert message in error.message
    assert error.file.endswith("/train.parquet")


def test_a_key_inside_a_column_and_a_number_are_texts_too(look):
    inside = [REFERENCE[0], "srpo.demonstration.reference_column=reward_model.ground_truth"]
    assert errors(look(*inside)) == []
    assert about_references(look(*REFERENCE, train=solved(2, 2, 2, 2))) == []


def test_the_validation_files_need_no_references(look):
    assert about_references(look(*REFERENCE, train=solved(*"2222"), val=[row()])) == []


@pytest.mark.parametrize(
    ("fitting", "level"), [(15, NOTE), (2, NOTE), (1, ERROR)], ids=["nearly all", "an eighth", "less than an eighth"]
)
def test_references_that_are_cut_are_named_with_what_is_left_of_them(look, fitting, level):
    findings = look(*REFERENCE, f"{LIMIT}={BARE + fitting}", train=solved("2", "x" * 16, "2", "2"))
    (cut,) = about_references(findings)
    assert (cut.row, cut.level) == (1, level)
    assert cut.message == f"{fitting} of the reference's 16 tokens fit into the teacher's prompt, its end is cut off"
    assert cut.remedy == f"raise {LIMIT}={BARE + fitting}"
    assert [error.subject for error in errors(findings)] == ([cut.subject] if level == ERROR else [])


def test_references_alone_need_no_room_for_a_response(look):
    assert errors(look(*REFERENCE, f"{LIMIT}={BARE + 1}", train=solved(*"2222"))) == []
    both = [f"{SOURCES}=[sibling,reference]", REFERENCE[1]]
    assert len(errors(look(*both, f"{LIMIT}={BARE + 1}", train=solved(*"2222")))) == 4


def test_a_memory_demonstrates_where_there_are_no_siblings(look):
    alone = ["actor_rollout_ref.rollout.n=1", f"{SOURCES}=[memory]"]
    (error, *_) = errors(look(*alone, f"{LIMIT}={BARE + 1}", train=GOOD))
    assert "leave 1 for a demonstration" in error.message
    assert errors(look(*alone, f"{LIMIT}={BARE + 2}", train=GOOD)) == []
