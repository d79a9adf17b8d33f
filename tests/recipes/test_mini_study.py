"""The study: logs, statistics, verdicts and the findings page, on made-up curves; a small study from end to end."""

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from recipes.mini import (
    claims,
    details,
    figures,
    findings,
    in_short,
    logs,
    on_gpu,
    plan,
    run,
    statistics,
    study,
    verdicts,
)
from recipes.mini.best import ACCURACY, Study, best_within, choose_rates, first_and_last, last_within, low_since
from recipes.mini.logs import Log
from recipes.mini.plan import Cell
from recipes.mini.run import command_of
from srpo_verl.config.check import check_run
from srpo_verl.launch.checks import compose_command

RATES = dict.fromkeys(plan.MAIN, 3e-4)
START = {"accuracy_plain": 0.2, "accuracy_demonstration": 0.5, "seconds": 200.0}
HEADER = {"commit": "0" * 40, "versions": {"verl": "0.9.1"}, "hardware": "2 x a processor", "start": START}


def training_step(cell, step):
    """Metrics of a step: SDPO's responses become longer and its teacher less certain, SRPO distils ever less and takes
    less time; steps with an evaluation take longest."""
    longer = (cell.method == "sdpo") * step / 10
    metrics = {"response_length/mean": 20.0 + longer, "srpo/frac_at_length_limit": longer / 200}
    change = 0.0 if cell.method == "grpo" else 0.2 - 0.002 * step + 0.01 * cell.seed
    metrics["timing_s/step"] = 60.0 if step % plan.TEST_EVERY == 0 else 2.0 * (1 + change)
    metrics["timing_s/update_actor"] = metrics["timing_s/step"] / 2
    if plan.METHODS[cell.method].distils:
        metrics["srpo/teacher_entropy_mean"] = 0.1 + 1e-3 * step * (1 if cell.method == "sdpo" else -0.1)
        metrics["srpo/frac_sdpo"] = 0.5 - 1e-3 * step
    return metrics


def log_of(cell, curve, validation=None):
    """A run whose test accuracy at each evaluated step is given by a function."""
    steps = {step: training_step(cell, step) for step in range(1, cell.steps + 1)}
    every = plan.LONG_TEST_EVERY if cell.steps == plan.LONG_STEPS else plan.TEST_EVERY
    for step in range(0, cell.steps + 1, every):
        values = steps.setdefault(step, {})
        values[ACCURACY.format(source=f"mini/{cell.task}/test")] = curve(step)
        values[ACCURACY.format(source=f"mini/{cell.task}")] = (validation or curve)(step)
    return Log(cell, HEADER, steps)


# --- logs ------------------------------------------------------------------------------------------------------------


def test_a_log_comes_back_in_four_digits_and_without_what_is_not_finite(tmp_path):
    cell = Cell("A", "desk", "srpo", 3e-4, 1)
    steps = {
        step: {"critic/score/mean": step / 7, "actor/grad_norm": math.nan if step == 2 else 1.0, "perf/mfu": 1.0}
        for step in range(1, 151)
    }
    steps[10]["val-core/mini/desk/acc/mean@1"] = 0.5
    path = tmp_path / f"{cell.name}.jsonl"
    logs.write(path, cell, HEADER, steps)
    (read,) = logs.read_all(tmp_path)
    assert (read.cell, read.header) == (cell, HEADER)
    assert read.steps[7]["critic/score/mean"] == 1.0
    assert read.steps[3]["critic/score/mean"] == pytest.approx(3 / 7, rel=5e-4)
    assert "actor/grad_norm" not in read.steps[2]
    assert "perf/mfu" not in read.steps[1]
    assert {step for step in read.steps if "val-core/mini/desk/acc/mean@1" in read.steps[step]} == {10}
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"seed1\.jsonl is not a log of the study"):
        logs.read(path)


# --- plan ------------------------------------------------------------------------------------------------------------


def test_the_plan_keeps_its_promises():
    cells = [cell for make in plan.PARTS.values() for cell in make(RATES)]
    graded = {cell.seed for cell in cells if cell.part == "grid"}
    assert not graded & {cell.seed for cell in cells if cell.part != "grid"}
    # Paired: in the comparison every method of a task has the same seeds.
    for task in plan.TASKS:
        seeds = {m: {c.seed for c in cells if (c.part, c.task, c.method) == ("A", task, m)} for m in plan.MAIN}
        assert len(seeds[plan.MAIN[0]]) == 5
        assert len(set(map(frozenset, seeds.values()))) == 1
    assert all(budget % plan.TEST_EVERY == 0 for budget in plan.BUDGETS.values())
    assert plan.LONG_STEPS % plan.LONG_TEST_EVERY == 0
    assert {cell.method for cell in cells} == set(plan.METHODS)


def test_a_rate_is_repeated_only_where_it_differs():
    assert not list(plan.at_srpos_rate(RATES))
    repeated = list(plan.at_srpos_rate({**RATES, "sdpo": 1e-4}))
    assert {(cell.method, cell.learning_rate) for cell in repeated} == {("sdpo", 3e-4)}


# --- judging one run -------------------------------------------------------------------------------------------------


def test_validation_chooses_and_test_is_reported():
    cell = Cell("A", "sums4", "sdpo", 3e-4, 0)
    log = log_of(cell, lambda step: step / 1000, validation=lambda step: -abs(step - 45))
    assert low_since(log, 0.10) is None
    dips = log_of(cell, lambda step: 0.7 if step in (50, 130, 140, 150) else 0.9, validation=lambda step: 0.5)
    assert (low_since(dips, 0.10), low_since(dips, 0.25)) == (130, None)
    # 40 and 50 are equals: the earlier one.
    assert best_within(log, 150) == 0.040
    assert best_within(log, 20) == 0.020
    assert last_within(log, 150) == 0.150
    assert last_within(log, 65) == 0.060


def test_the_rate_of_the_best_mean_is_chosen_the_smaller_of_equals():
    def grid(rate, height):
        return log_of(Cell("grid", "sums4", "grpo", rate, 100, plan.GRID_STEPS), lambda step: height)

    assert choose_rates([grid(1e-3, 0.5), grid(1e-4, 0.4), grid(5e-4, 0.5)]) == {"grpo": 5e-4}


# --- statistics ------------------------------------------------------------------------------------------------------

X = [[0.91, 0.62, 0.78, 0.85], [0.88, 0.70, 0.74, 0.88], [0.95, 0.55, 0.81, 0.79], [0.90, 0.66, 0.69, 0.93], [0.97, 0.59, 0.77, 0.82]]  # fmt: skip  # noqa: E501
Y = [[0.89, 0.52, 0.80, 0.81], [0.90, 0.61, 0.72, 0.86], [0.85, 0.57, 0.75, 0.80], [0.93, 0.50, 0.70, 0.90], [0.86, 0.64, 0.73, 0.82]]  # fmt: skip  # noqa: E501


def by_task(rows):
    return {str(task): dict(enumerate(values)) for task, values in enumerate(np.array(rows).T)}


def test_statistics_are_rliables():
    """Values of rliable 1.2.0 with 20,000 resamples; intervals to the noise of two bootstraps."""
    aggregate = statistics.aggregate(by_task(X))
    assert aggregate.value == pytest.approx(0.802, abs=5e-4)
    assert (aggregate.low, aggregate.high) == pytest.approx((0.778, 0.827), abs=4e-3)
    chance = statistics.probability_of_improvement(by_task(X), by_task(Y))
    assert chance.value == pytest.approx(0.69)
    assert (chance.low, chance.high) == pytest.approx((0.51, 0.85), abs=0.02)


def test_the_difference_of_one_task_is_students():
    one, other = ({"t": dict(enumerate(np.array(rows)[:, 1]))} for rows in (X, Y))
    differences = statistics.paired(one, other)
    estimate = statistics.mean_difference(differences)
    expected = stats.ttest_1samp(differences["t"], 0.0).confidence_interval(0.95)
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high))


def test_the_interval_over_tasks_covers():
    """Of 1,000 studies of three tasks and four seeds with unlike spreads, 95 % hold the truth; binomial sd 0.7 %."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        differences = {str(task): rng.normal(0.1, spread, 4) for task, spread in enumerate((0.02, 0.1, 0.3))}
        estimate = statistics.mean_difference(differences)
        held += estimate.low <= 0.1 <= estimate.high
    assert 0.93 <= held / 1000 <= 0.985


def test_only_seeds_of_both_are_paired():
    differences = statistics.paired({"a": {0: 0.5, 1: 0.7}, "b": {0: 0.1}}, {"a": {1: 0.6, 2: 0.9}})
    assert {task: values.tolist() for task, values in differences.items()} == {"a": [pytest.approx(0.1)]}


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([0.05, 0.06, 0.07], "better"),
        ([-0.05, -0.06, -0.07], "worse"),
        ([0.001, -0.001, 0.002], "a tie"),
        ([0.2, -0.2, 0.1], "cannot be said"),
        ([0.05, 0.05], "cannot be said"),  # two seeds
    ],
)
def test_verdicts(differences, expected):
    assert statistics.verdict({"t": np.array(differences)}) == expected


def test_one_seed_has_no_interval():
    assert str(statistics.aggregate({"t": {0: 0.5}})) == "0.500 (one seed: no interval)"
    assert verdicts.signed(statistics.mean_difference({"t": np.array([0.1])})) == "+0.100 (no interval from one seed)"
    assert statistics.verdict({}) == "not run"


# --- hypotheses and page ---------------------------------------------------------------------------------------------

ENDS = {
    "grpo": 0.80,
    "sdpo": 0.50,
    "srpo": 0.90,
    "handover": 0.90,
    "srpo_no_dw": 0.90,
    "advantage_mix": 0.70,
    "sdpo_correct_only": 0.55,
    "keep_negative": 0.95,
}


def as_claimed(cell):
    """A run in which every claim of the paper holds, with a spread over seeds that is the same for all methods."""
    noise = 0.01 * (cell.seed % 5)

    def curve(step):
        if cell.method == "sdpo" and step <= 20:
            return 0.30 + noise + step / 100
        if cell.method == "sdpo" and step > plan.STEPS:
            return 0.2
        return 0.20 + noise + (ENDS.get(cell.method, 0.6) - 0.25) * min(1.0, step / 60)

    # Methods differ a little in every pair, as runs do.
    jitter = 0.002 * ((cell.seed * 7 + len(cell.method)) % 3)
    return log_of(cell, lambda step: curve(step) + jitter)


@pytest.fixture(scope="module")
def made_up():
    best = dict.fromkeys(plan.MAIN, plan.GRID[0])
    cells = {cell.name: cell for part, make in plan.PARTS.items() if part != plan.ALONE for cell in make(best)}
    return Study.of(map(as_claimed, cells.values()), map(as_claimed, plan.timed(best)))


def test_hypotheses_are_judged(made_up):
    outcomes = {judged.name: judged.outcome for judged in verdicts.judge_all(made_up)}
    assert outcomes == {
        "H1": "confirmed",
        "H2": "confirmed",
        "H3": "falsified",  # no difference is a tie
        "H4": "confirmed",
        "H5": "confirmed",
        "H6": "confirmed",
        "H7": "confirmed",
        "H8": "confirmed",
        "H9": "confirmed",
        "H10": "confirmed",
    }


def test_runs_that_suggested_a_hypothesis_do_not_judge_it(made_up):
    def spoilt(which):
        logs = (
            log_of(log.cell, lambda step: 0.1 if step else 0.5) if which(log.cell) else log for log in made_up.logs
        )
        judged = {judged.name: judged for judged in verdicts.judge_all(Study.of(logs))}
        return [judged[name].outcome for name in ("H8", "H9", "H10")], judged["H8"].grounds[0]

    def seen(cell):
        return cell.method == plan.KEPT and (cell.part == "B" or (cell.part == "G" and cell.seed == 0))

    outcomes, grounds = spoilt(seen)
    assert outcomes == ["confirmed"] * 3
    assert ", 22 pairs: " in grounds
    assert spoilt(lambda cell: cell.method == plan.KEPT and cell.part in "GH")[0] == ["falsified"] * 3
    assert spoilt(lambda cell: (cell.part, cell.method, cell.seed) == ("G", plan.KEPT, 1))[0][2] == "cannot be said"


def test_claims_of_the_paper_are_judged(made_up):
    outcomes = {claim.text: claim.judge(made_up)[0] for claim in claims.CLAIMS}
    others = {
        "entropy weights help": claims.FAILS,  # a tie
        "SRPO has the early speed of SDPO": claims.FAILS,  # SDPO is above it up to step 20
        "responses of moderate length": claims.OPEN,
    }
    assert outcomes == {text: others.get(text, claims.HOLDS) for text in outcomes}
    turned = Study.of(*(map(reverse, runs) for runs in (made_up.logs, made_up.alone)))
    for beginning in ("ever fewer", "steps become cheaper"):
        (claim,) = (claim for claim in claims.CLAIMS if claim.text.startswith(beginning))
        assert claim.judge(turned)[0] == claims.FAILS
    assert {claim.judge(Study.of(()))[0] for claim in claims.CLAIMS} == {"not run"}
    assert {claim.judge(two_seeds_of(made_up))[0] for claim in claims.CLAIMS} == {claims.OPEN}


def reverse(log):
    """The same metrics, from the last step to the first."""
    steps = {step: log.steps.get(log.cell.steps + 1 - step, log.steps[step]) for step in log.steps}
    return replace(log, steps=steps)


def two_seeds_of(whole):
    """The same study with two seeds."""
    runs = (log for log in whole.logs if log.cell.part == "grid" or log.cell.seed < 2)
    return Study.of(runs, (log for log in whole.alone if log.cell.seed < 2))


def test_what_a_step_takes_leaves_evaluations_out(made_up):
    """2 s of GRPO; SRPO's at step s and seed k are longer by 0.2 - 0.002 s + 0.01 k."""
    assert set(made_up.seconds("grpo", "timing_s/step", 131, 150)["sums4"].values()) == {2.0}
    # Of 17 steps without an evaluation the ninth.
    assert made_up.seconds("srpo", "timing_s/step", 2, 20)["sums4"][2] == pytest.approx(2.0 * (1.22 - 0.002 * 11))
    (claim,) = (claim for claim in claims.CLAIMS if claim.text.startswith("steps become cheaper"))
    assert "steps 131 to 150: -0.070 (-0.095 to -0.045), 3 pairs: below 0" in claim.judge(made_up)[1][1]


def test_a_metric_changes_from_the_first_steps_to_the_last_that_have_it():
    cell = Cell("A", "sums4", "srpo", 3e-4, 0)
    steps = {step: {"some": float(step)} for step in range(1, 151) if step != 150} | {150: {}}
    assert first_and_last(Log(cell, HEADER, steps), "some") == (5.5, 145.0)
    assert first_and_last(Log(cell, HEADER, steps), "other") is None


def test_half_a_study_says_so(made_up):
    """With two seeds per task nothing is decided, and nothing that is missing is taken for a zero."""
    half = two_seeds_of(made_up)
    outcomes = {judged.outcome for judged in verdicts.judge_all(half) if judged.name not in ("H6", "H10")}
    assert outcomes == {"cannot be said"}
    without = Study.of(log for log in made_up.logs if log.cell.task != "desk")
    assert {judged.name: judged.outcome for judged in verdicts.judge_all(without)}["H2"] == "cannot be said"
    assert verdicts.compare(without, "srpo", "grpo", "best", 60).difference is None  # a task lacks
    assert verdicts.compare(without, "srpo", "grpo", "best", 60, ["sums4"]).outcome == "better"
    assert {judged.outcome for judged in verdicts.judge_all(Study.of(()))} == {"not run"}


def test_a_claim_is_falsified_by_its_opposite(made_up):
    swapped = {"grpo": "srpo", "srpo": "grpo"}
    turned = Study.of(
        replace(log, cell=replace(log.cell, method=swapped.get(log.cell.method, log.cell.method)))
        for log in made_up.logs
    )
    assert {judged.name: judged.outcome for judged in verdicts.judge_all(turned)}["H2"] == "falsified"


def test_every_hypothesis_is_judged_and_no_other():
    assert list(findings.hypotheses()) == [judged.name for judged in verdicts.judge_all(Study.of(()))]


def test_the_page_has_the_numbers_of_the_logs(made_up, tmp_path):
    text, tables = findings.page(made_up), details.page(made_up)
    scores = list(made_up.scores("srpo", "best", 60, tasks=["desk"])["desk"].values())
    assert f"{np.mean(scores):.3f} ± {np.std(scores, ddof=1):.3f} (5)" in tables
    assert "| A | 95 | 95 |" in text
    assert "| SDPO | 0.458 ± 0.008 (2) | 0.458 ± 0.008 (2) | 0.203 ± 0.001 (2) | 2 of 2 (180, 180) |" in text
    long_runs = (
        "GRPO 0 of 3; SRPO 0 of 3; SDPO 2 of 2; hand-over 0 of 2; SRPO, annealed 0 of 3; SRPO, negatives kept 0 of 3"
    )
    assert f"below their best: {long_runs}\n" in text
    assert re.search(r"^\* SRPO - GRPO, last\(1500\): \+0\.10\d .*, 3 pairs: better$", text, re.MULTILINE)
    assert max(len(page.encode()) for page in (text, tables)) < 24_000
    one_task = replace(made_up, logs=tuple(log for log in made_up.logs if log.cell.task == "desk"))
    first = figures.curves(one_task, tmp_path / "a").read_bytes()
    assert first == figures.curves(one_task, tmp_path / "b").read_bytes()
    assert figures.long_curves(one_task, tmp_path) is None
    assert {draw(Study.of(()), tmp_path) for draw in figures.ALL} == {None}
    for draw in figures.ALL:
        drawn = draw(made_up, tmp_path)
        assert drawn.read_bytes() == draw(made_up, tmp_path / "b").read_bytes()


def test_the_page_in_the_repository_is_made_from_the_logs_in_it():
    found = Study.read(study.RESULTS)
    remedy = "run python -m recipes.mini.findings"
    assert findings.PAGE.read_text() == findings.page(found), remedy
    assert findings.PAGE.with_name(findings.TABLES).read_text() == details.page(found), remedy
    readme = findings.README.read_text()
    assert in_short.with_lines(readme, in_short.lines(found)) == readme, remedy
    for name in (f"images/{figure}" for figure in (figures.CURVES, figures.DIFFERENCES, figures.LONG)):
        assert (findings.PAGE.parent / name).is_file() == (name in findings.PAGE.read_text())
    assert sum(path.stat().st_size for path in study.RESULTS.rglob("*.jsonl")) < 20e6
    runs = (*found.logs, *found.alone)
    assert not [log.cell.name for log in runs if log.header["commit"].endswith("+changes")]


def test_runs_made_again_for_their_times_are_the_same_runs():
    """Made at another commit and another hour: every other metric agrees in all four digits."""
    found = Study.read(study.RESULTS)
    before = {log.cell.name: log.steps for log in found.logs}
    assert len(found.alone) == 6
    for log in found.alone:
        for step, metrics in log.steps.items():
            shared = metrics.keys() & before[log.cell.name][step].keys()
            assert "critic/score/mean" in shared or step == 0
            differ = [name for name in shared if metrics[name] != before[log.cell.name][step][name]]
            assert all(name.startswith("timing_s/") for name in differ)


# --- running ---------------------------------------------------------------------------------------------------------


def test_what_has_its_log_is_not_made_again_and_what_fails_is_tried_again(tmp_path, monkeypatch, capsys):
    cells = [Cell("A", "desk", "srpo", 3e-4, seed) for seed in range(4)]
    (tmp_path / f"{cells[0].name}.jsonl").touch()
    tried = []

    def run_cell(cell, *_):
        tried.append(cell.seed)
        if cell.seed == 3:
            raise run.RunFailed(f"{cell.name}: no start")
        if (cell.seed == 1 and tried.count(1) == 1) or cell.seed == 2:
            raise run.RunFailed(f"{cell.name}: broken", reached=7)
        return 1.0

    monkeypatch.setattr(study, "run_cell", run_cell)
    failed = study.run_all(cells, tmp_path, tmp_path, at_once=1)
    assert tried == [1, 1, 2, 2, *[3] * study.START_TRIES]
    assert failed == [f"{cells[2].name}: broken", f"{cells[3].name}: no start"]
    assert "3 of 4 runs to make" in capsys.readouterr().out


@pytest.mark.parametrize(("last", "whole"), [({"val-core/mini/sums4/acc/mean@1": 0.5}, True), ({}, False)])
def test_a_run_is_whole_with_its_last_evaluation_however_its_process_ends(last, whole, tmp_path, monkeypatch):
    cell = plan.Cell("grid", "sums4", "grpo", 1e-4, 0, steps=2)
    model = tmp_path / "model"
    model.mkdir()
    start = {"accuracy_plain": 0.2, "accuracy_demonstration": 0.6, "seconds": 1.0}
    (model / "warmup.json").write_text(json.dumps(start))

    def crash_at_the_end(command, folder):
        folder.mkdir(parents=True)
        entries = [
            {"step": 1, "data": {"critic/score/mean": 0.1}},
            {"step": 2, "data": {"critic/score/mean": 0.2, **last}},
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        (folder / "output.log").write_text("Segmentation fault")
        return -11

    monkeypatch.setattr(run, "starting_model", lambda *_: model)
    monkeypatch.setattr(run, "data_of", lambda *_: tmp_path)
    monkeypatch.setattr(run, "run_command", crash_at_the_end)
    if whole:
        run.run_cell(cell, tmp_path / "work", tmp_path / "results", {"commit": "x"}, 1)
        (log,) = logs.read_all(tmp_path / "results")
        assert log.header["exit_code"] == -11
    else:
        with pytest.raises(run.RunFailed, match="exit code -11, 2 of 2 steps"):
            run.run_cell(cell, tmp_path / "work", tmp_path / "results", {"commit": "x"}, 1)


def test_parts_after_the_grid_wait_for_its_rates(tmp_path):
    with pytest.raises(ValueError, match="no learning rate is chosen yet for grpo, sdpo, srpo, handover"):
        study.cells_of("A", tmp_path)
    assert len(study.cells_of("grid", tmp_path)) == 20


def test_a_process_that_logs_nothing_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "TICK_SECONDS", 0.05)
    progress = tmp_path / "metrics.jsonl"
    with subprocess.Popen(["sleep", "60"]) as hanging:
        assert run.wait(hanging, progress, stall_seconds=0.2) is None
        hanging.kill()
    command = f"for i in 1 2 3 4 5 6; do echo >> {progress}; sleep 0.1; done; exit 3"
    with subprocess.Popen(["sh", "-c", command]) as working:
        assert run.wait(working, progress, stall_seconds=0.4) == 3


@pytest.mark.timeout(1800)
def test_a_small_study_from_nothing(tmp_path):
    """Two methods, one task, few steps: starting model, data, veRL, logs."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VERL_")}
    arguments = ["--part", "grid", "--only", "(grpo|srpo)-lr0.0005", "--steps", "2", "--warmup-steps", "40"]
    places = ["--work", tmp_path / "work", "--results", tmp_path / "results"]
    command = [sys.executable, "-W", "ignore", "-m", "recipes.mini.study", *arguments, *places]
    subprocess.run(command, cwd=run.ROOT, env=environment, check=True, timeout=1500)
    made = list(logs.read_all(tmp_path / "results"))
    assert sorted(log.cell.method for log in made) == ["grpo", "srpo"]
    for log in made:
        assert {"critic/score/mean", "response_length/mean"} <= set(log.steps[2])
        assert ACCURACY.format(source="mini/sums4/test") in log.steps[0]
        assert "verl.trainer.main_ppo" in log.header["command"]
    assert "srpo/frac_sdpo" in next(log for log in made if log.cell.method == "srpo").steps[1]
    again = subprocess.run(
        command, cwd=run.ROOT, env=environment, check=True, timeout=60, capture_output=True, text=True
    )
    assert "0 of 2 runs to make" in again.stdout


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_a_run_on_a_gpu_is_the_study_s_but_for_the_engine(engine, tmp_path):
    cell = Cell("A", "sums4", "srpo", 3e-4, 0, 60)
    command = command_of(cell, tmp_path / "model", tmp_path / "data", tmp_path / "run")
    there, here = compose_command([*command, *on_gpu.overrides(engine)]), compose_command(command)
    check_run(there)
    assert (there.trainer.device, here.trainer.device) == ("cuda", "cpu")
    assert there.actor_rollout_ref.rollout.name == engine
    # A processor reads its rows in the trainer's own process.
    there.data.dataloader_num_workers = here.data.dataloader_num_workers
    for part in ("data", "srpo", "algorithm"):
        assert there[part] == here[part]
    assert there.actor_rollout_ref.actor.optim == here.actor_rollout_ref.actor.optim
