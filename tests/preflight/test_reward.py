"""The reward function is found without running it, and asked if it can be."""

import pytest

from srpo_verl import rewards
from srpo_verl.preflight.findings import NOTE
from srpo_verl.preflight.reward import find_verifier

NAME = "compute_score"


def test_our_own_can_be_asked():
    for path in ("pkg://srpo_verl.rewards", "pkg://srpo_verl/rewards", rewards.__file__, f"file://{rewards.__file__}"):
        verifier, findings = find_verifier(path, NAME)
        assert findings == []
        assert verifier.feedback_texts == rewards.FEEDBACK_TEXTS
        with pytest.raises(ValueError, match="one of A, B, C, D"):
            verifier.validate("sciknoweval", "E")


def test_feedback_texts_are_all_that_our_verifiers_say():
    modules = (rewards.sciknoweval, rewards.tooluse, rewards.math)
    said = [value for module in modules for name, value in vars(module).items() if name.startswith("FEEDBACK_")]
    assert sorted(said) == sorted(rewards.FEEDBACK_TEXTS)


def test_a_module_that_offers_nothing_is_not_imported(tmp_path):
    file = tmp_path / "judge.py"
    file.write_text("raise SystemExit('a judge model would be loaded here')\nasync def compute_score(): pass\n")
    verifier, (finding,) = find_verifier(str(file), NAME)
    assert (verifier.validate, verifier.feedback_texts, finding.level) == (None, None, NOTE)
    assert finding.message == f"{file} defines no validate_ground_truth: ground truths are unchecked"


def test_verl_s_own_is_unchecked():
    _, (finding,) = find_verifier(None, NAME)
    assert finding.level == NOTE
    assert "unchecked" in finding.message


@pytest.mark.parametrize(
    "source",
    [
        "from elsewhere import compute_score",
        "from elsewhere import score as compute_score",
        "from elsewhere import *",
        "compute_score = print",
        "compute_score: object = print",
        "if True:\n    def compute_score(): pass",
        "try:\n    import x\nexcept ImportError:\n    compute_score = None",
        "a, compute_score = 1, 2",
    ],
)
def test_every_way_to_define_it(tmp_path, source):
    file = tmp_path / "mine.py"
    file.write_text(source)
    assert [finding.level for finding in find_verifier(str(file), NAME)[1]] == [NOTE]


@pytest.mark.parametrize(
    "source", ["", "def other():\n    compute_score = 1", "class A:\n    def compute_score(self): pass"]
)
def test_a_function_that_is_not_there(tmp_path, source):
    file = tmp_path / "mine.py"
    file.write_text(source)
    _, (finding,) = find_verifier(str(file), NAME)
    assert str(finding).startswith(
        f"reward function: reward.custom_reward_function.name='compute_score': not in {file}"
    )


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/no/mine.py", "no such file"),
        ("pkg://no.such.package", "No module named 'no'"),
        ("pkg://srpo_verl.nothing", "there is no module srpo_verl.nothing"),
    ],
)
def test_a_file_that_is_not_there(path, reason):
    _, (finding,) = find_verifier(path, NAME)
    assert finding.message == f"reward.custom_reward_function.path={path!r}: {reason}"


def test_a_file_that_does_not_parse_or_import(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def compute_score(:\n")
    assert find_verifier(str(file), NAME)[1][0].level == "error"
    file.write_text("import no_such_thing\ndef compute_score(): pass\ndef validate_ground_truth(a, b): pass\n")
    _, (finding,) = find_verifier(str(file), NAME)
    assert "No module named 'no_such_thing'" in finding.message
