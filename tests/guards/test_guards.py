"""Guards on made-up histories: quiet on healthy ones with noise, an alarm in each that goes wrong, in time."""

import json
import random
from dataclasses import replace

import pytest

from srpo_verl.guards import RULES, History, Settings, Watch, review
from srpo_verl.guards.history import VALIDATION
from srpo_verl.guards.responses import compression, response_metrics

KNOWN = Settings(success_threshold=0.5, failed_only=True, teacher_kind="ema")


def healthy(step, rng, steps=200):
    """A run that learns: accuracy from 0.4 to 0.95, responses a third longer, entropy from 0.5 to 0.06 nats."""
    done = min(1.0, step / 120)
    accuracy = min(1.0, 0.4 + 0.55 * done + rng.gauss(0, 0.04))
    metrics = {
        "srpo/frac_correct": accuracy,
        "srpo/accuracy": accuracy,
        "srpo/frac_false_success": max(0.0, rng.gauss(0.02, 0.02)),
        "srpo/frac_format_ok": min(1.0, 0.9 + 0.1 * done + rng.gauss(0, 0.01)),
        "response_length/mean": 300 * (1 + done / 3) * (1 + rng.gauss(0, 0.05)),
        "srpo/frac_at_length_limit": max(0.0, rng.gauss(0.02, 0.01)),
        "srpo/response_compression": 2.0 * (1 + 0.1 * done) * (1 + rng.gauss(0, 0.03)),
        "actor/entropy": (0.5 - 0.44 * done) * (1 + rng.gauss(0, 0.08)),
        "actor/lr": 5e-6 * min(1, step / 10),
        "actor/grad_norm": abs(rng.gauss(1, 0.3)),
        "critic/score/max": 1.0,
        "critic/score/min": 0.0,
        "srpo/frac_sdpo": max(0.01, 1 - accuracy),
        "srpo/frac_grpo": accuracy,
        "srpo/frac_credit": 0.0,
        "srpo/frac_teacher_available": 0.9,
        "srpo/frac_shown_feedback": 0.0,
        "srpo/frac_all_correct_groups": done / 2,
        "srpo/frac_all_failed_groups": 0.05,
        "srpo/distillation_coefficient": 1.0,
        "srpo/teacher_forward_tokens": 1000.0,
        "srpo/teacher_distance": 0.01 * (1 - 0.9**step),
        "srpo/nonfinite_steps": 0,
    }
    if step % 5 == 0:
        metrics["val-core/math/acc/mean@16"] = accuracy - 0.03 + rng.gauss(0, 0.02)
    return metrics


def run(change=lambda step, metrics: {}, seed=0, steps=200):
    rng = random.Random(seed)
    return [(step, (metrics := healthy(step, rng)) | change(step, metrics)) for step in range(1, steps + 1)]


def ramp(step, start, low, high, over=40):
    return low + (high - low) * min(1.0, max(0.0, (step - start) / over))


@pytest.mark.parametrize("seed", range(20))
def test_quiet_in_a_healthy_run(seed):
    assert [str(alarm) for alarm in review(run(seed=seed), KNOWN)] == []


def spoilt(name, function):
    """A change of one metric from step 80 on."""
    return lambda step, metrics: {name: function(step, metrics[name])} if step >= 80 else {}


FROM_THE_START = {"distillation", "success", "teacher", "reward"}
CASES = {
    "nonfinite": spoilt("srpo/nonfinite_steps", lambda step, value: step - 79),
    "length": spoilt("response_length/mean", lambda step, value: value * ramp(step, 80, 1, 5)),
    "length, shrinking": spoilt("response_length/mean", lambda step, value: value * ramp(step, 80, 1, 0.07)),
    "length, at the limit": spoilt("srpo/frac_at_length_limit", lambda step, value: ramp(step, 80, 0.02, 0.8)),
    "repetition": spoilt("srpo/response_compression", lambda step, value: value * ramp(step, 80, 1, 20)),
    "entropy": spoilt("actor/entropy", lambda step, value: value * ramp(step, 80, 1, 0.001)),
    "entropy, rising": spoilt("actor/entropy", lambda step, value: value + ramp(step, 80, 0, 4)),
    "format": spoilt("srpo/frac_format_ok", lambda step, value: ramp(step, 80, 0.97, 0.3)),
    "success": lambda step, metrics: {"srpo/frac_false_success": 0.3},
    "accuracy, slowly": spoilt("srpo/accuracy", lambda step, value: value - ramp(step, 80, 0, 0.6, over=60)),
    "accuracy": spoilt("srpo/accuracy", lambda step, value: value - ramp(step, 80, 0, 0.6)),
    "overfitting": lambda step, metrics: (
        {"val-core/math/acc/mean@16": metrics["val-core/math/acc/mean@16"] - ramp(step, 80, 0, 0.4)}
        if step % 5 == 0
        else {}
    ),
    "distillation": lambda step, metrics: {
        "srpo/frac_sdpo": 0.0,
        "srpo/frac_correct": 0.0,
        "srpo/frac_teacher_available": 0.0,
    },
    "distillation, everything": spoilt("srpo/frac_sdpo", lambda step, value: 1.0),
    "teacher": lambda step, metrics: {"srpo/teacher_distance": 0.0},
    "teacher, far away": spoilt("srpo/teacher_distance", lambda step, value: ramp(step, 80, 0.01, 0.5)),
    "teacher, strides": spoilt("srpo/teacher_distance", lambda step, value: min(0.027, 0.01 + 0.008 * (step - 79))),
    "reward": lambda step, metrics: {"critic/score/max": 0.0, "srpo/frac_correct": 0.0},
}


def test_every_guard_has_a_case():
    assert {name.partition(",")[0] for name in CASES} == set(RULES)


@pytest.mark.parametrize("name", CASES)
def test_alarm_in_a_run_that_goes_wrong(name):
    guard = name.partition(",")[0]
    alarms = [alarm for alarm in review(run(CASES[name]), KNOWN) if alarm.guard == guard]
    assert len(alarms) == 1, "one alarm for one episode"
    (alarm,) = alarms
    begins = 1 if name in FROM_THE_START else 80
    assert begins <= alarm.since <= alarm.step <= begins + 40
    assert f"since step {alarm.since}" in str(alarm)
    assert "What to do:" in str(alarm)
    assert [a for a in review(run(CASES[name]), replace(KNOWN, levels={guard: "off"})) if a.guard == guard] == []


@pytest.mark.parametrize(
    ("metrics", "why"),
    [
        ({"critic/score/max": 0.4}, "no reward reaches srpo.success_threshold=0.5, the best is 0.4"),
        ({"critic/score/max": 0.0}, "no response is correct"),
        ({"srpo/frac_at_length_limit": 1.0}, "all responses are cut off"),
        ({"srpo/frac_correct": 0.1}, "no response has a correct sibling"),
        ({"srpo/frac_correct": 1.0, "srpo/frac_all_correct_groups": 1.0}, "every response is correct"),
    ],
)
def test_the_reason_for_distilling_nothing(metrics, why):
    none = {"srpo/frac_sdpo": 0.0, "srpo/frac_correct": 0.0, "srpo/frac_teacher_available": 0.0}
    (alarm,) = [a for a in review(run(lambda *_: none | metrics, steps=60), KNOWN) if a.guard == "distillation"]
    assert why in alarm.seen
    assert alarm.since == 1


def test_what_is_meant_is_no_alarm():
    none = {"srpo/frac_sdpo": 0.0}
    intended = [{"srpo/distillation_coefficient": 0.0}, {"srpo/teacher_forward_tokens": None}]
    for metrics in intended:  # a schedule that has ended; a method without a teacher
        found = review(run(lambda step, _, metrics=metrics: none | metrics), KNOWN)
        assert [alarm for alarm in found if alarm.guard == "distillation"] == []
    live = replace(KNOWN, teacher_kind="live")
    assert review(run(CASES["teacher"]), live) == []


def test_an_episode_that_comes_back_is_told_again():
    def twice(step, metrics):
        return {"srpo/response_compression": 30.0} if 60 <= step < 80 or step >= 150 else {}

    assert [alarm.guard for alarm in review(run(twice), KNOWN)] == ["repetition", "repetition"]


def test_a_resumed_watch_goes_on():
    log = run(CASES["length"])
    whole, first = Watch(KNOWN), Watch(KNOWN)
    expected = [alarm for step, metrics in log for alarm in whole.observe(step, metrics)]
    found = [alarm for step, metrics in log[:85] for alarm in first.observe(step, metrics)]
    resumed = Watch(KNOWN)
    resumed.restore(json.loads(json.dumps(first.to_dict())))
    # The run was killed after step 85 and its checkpoint is that of step 85; the steps before are not told again.
    found += [alarm for step, metrics in log[85:] for alarm in resumed.observe(step, metrics)]
    assert found == expected
    assert resumed.to_dict() == whole.to_dict()


def test_steps_trained_again_replace_the_first_ones():
    history = History()
    for step, value in [(1, 1.0), (2, 2.0), (3, 3.0), (2, 20.0)]:
        history.add(step, {"response_length/mean": value})
    assert history["response_length/mean"].steps == [1, 2]
    assert history["response_length/mean"].values == [1.0, 20.0]
    # A validation by itself, after a resumption, takes nothing away.
    assert history.add(1, {"val-core/math/acc/mean@16": 0.5}) is False
    assert history["response_length/mean"].steps == [1, 2]
    assert history[VALIDATION].values == [0.5]


def test_what_was_not_measured_is_no_value():
    history = History()
    history.add(1, {"actor/grad_norm": float("nan"), "actor/entropy": None, "response_length/mean": 3})
    assert [len(history[name]) for name in ("actor/grad_norm", "actor/entropy", "response_length/mean")] == [0, 0, 1]


def test_compression_tells_repetition_from_text():
    rng = random.Random(0)
    text = [[rng.randrange(50_000) for _ in range(2000)] for _ in range(8)]
    loop = [text[0][:20] * 100]
    assert compression(text) < 2.5
    assert compression(loop) > 40
    assert compression([[], *loop]) == compression(loop)
    assert compression([]) is None


def test_the_verifiers_words_count_only_where_every_row_has_them():
    verdicts = [{"acc": 1.0, "format_ok": True}, {"acc": 0.0, "format_ok": False}]
    metrics = response_metrics([[1, 2], [3]], verdicts, [True, True], 2)
    assert metrics["srpo/frac_at_length_limit"] == 0.5
    assert (metrics["srpo/accuracy"], metrics["srpo/frac_format_ok"]) == (0.5, 0.5)
    assert metrics["srpo/frac_false_success"] == 0.5
    assert response_metrics([[1, 2], [3]], verdicts, [True, False], 2)["srpo/frac_false_success"] == 0
    assert "srpo/frac_false_success" not in response_metrics([[1, 2], [3]], verdicts, [False, False], 2)
    assert response_metrics([[1, 2], [3]], [{"acc": 1.0}, {}], [True, True], 2).keys() == {
        "srpo/response_compression",
        "srpo/frac_at_length_limit",
    }
