"""The benchmark of the update phase: its arithmetic and its verdicts; and, slow, that it runs. No timing."""

import csv

import pytest

from scripts import bench_step
from scripts.bench.update_rounds import FORWARD, GRPO, STOCK, Sizes
from scripts.bench_step import summarize, summarize_ranks, violations


def rows(share_of_forward=0.2, zero=1.0, teacher=1.0):
    """Twice as slow a second round: ratios are of the same round, and do not notice."""
    forward = [share_of_forward, 2 * share_of_forward]
    times = {
        STOCK: [2.0, 4.0],
        GRPO: [1.0, 2.0],
        FORWARD: forward,
        "srpo 0": [zero, 2 * zero],
        "srpo 0.4": [1.0 + 0.4 * forward[0] * teacher, 2.0 + 0.4 * forward[1] * teacher],
        "srpo 1": [1.0 + forward[0] * teacher, 2.0 + forward[1] * teacher],
    }
    return summarize(64, times, [0.0, 0.4, 1.0])


def test_ratios_are_of_the_same_round_and_predictions_of_the_teacher_tokens():
    by_variant = {row["variant"]: row for row in rows()}
    assert by_variant["srpo 0.4"]["to_grpo"] == pytest.approx(1.08)
    assert by_variant["srpo 0.4"]["low"] == pytest.approx(by_variant["srpo 0.4"]["high"])
    assert by_variant["srpo 0.4"]["predicted"] == pytest.approx(1.08)
    assert by_variant["srpo 1"]["off"] == pytest.approx(0.0)
    assert by_variant["srpo 0"]["to_stock"] == pytest.approx(0.5)
    assert "predicted" not in by_variant["srpo 0"]
    assert violations(list(by_variant.values())) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"zero": 1.03}, "srpo 0 at 64 tokens takes 1.030, limit 1.02"),
        ({"share_of_forward": 0.7}, "srpo 0.4 at 64 tokens takes 1.280, limit 1.25"),
        ({"teacher": 2.0}, "srpo 1 at 64 tokens is +17% off its prediction"),
        ({"teacher": 0.3}, "srpo 1 at 64 tokens is -12% off its prediction"),
    ],
)
def test_a_missed_limit_is_named(change, message):
    assert any(message in line for line in violations(rows(**change)))


def test_a_rank_that_waits_is_named():
    result = summarize_ranks(64, {"balanced": [1.0, 2.0], "all on one rank": [1.2, 2.4]})
    assert result[1]["to_grpo"] == pytest.approx(1.2)
    assert "all on one rank" in violations(result)[0]
    assert violations(summarize_ranks(64, {"balanced": [1.0], "all on one rank": [1.1]})) == []


def test_the_teacher_reads_the_question_a_demonstration_and_the_response():
    sizes = Sizes(rows=5, response=100, micro_batch=1, top_k=10, vocabulary=2000)
    assert sizes.teacher_prompt == 64 + 100 + 16


def test_sizes_that_do_not_divide_are_refused(capsys):
    for arguments in (["--rows", "7"], ["--rows", "10", "--micro-batch", "3"], ["--hidden", "100"]):
        with pytest.raises(SystemExit):
            bench_step.main(arguments)
        assert "multiple" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_runs(tmp_path):
    sizes = ["--responses", "16", "--rows", "5", "--micro-batch", "1", "--hidden", "64", "--layers", "2"]
    assert bench_step.main([*sizes, "--vocabulary", "2000", "--repeats", "1", "--out", str(tmp_path)]) == 0
    with (tmp_path / "bench_step.csv").open() as file:
        variants = [row["variant"] for row in csv.DictReader(file)]
    assert variants[-2:] == ["balanced", "all on one rank"]
    assert [name for name in variants if name.startswith("srpo ")] == ["srpo 0", "srpo 0.2", "srpo 0.4", "srpo 1"]
    assert (tmp_path / "bench_step.png").stat().st_size > 0
