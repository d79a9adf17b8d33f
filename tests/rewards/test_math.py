"""The rule of mathematics, and the worker that runs math-verify."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from srpo_verl.rewards import compute_score, math, validate_ground_truth
from srpo_verl.rewards.math import extract_boxed


def score(response, gold):
    return compute_score("math", response, gold)


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (r"so \boxed{5}.", "5"),
        (r"\boxed{4} no, \boxed{5}", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{4} and \boxed{5", "4"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{x \right.}", r"\left\{x \right."),
        (r"\boxed{a\\}", r"a\\"),
        (r"\boxed{1 \boxed{2}}", "2"),
        (r"\boxed{1 \boxed{2}", "2"),
        (r"} \boxed{3}", "3"),
        (r"{ \boxed{3}", "3"),
        (r"\\boxed{3}", "3"),
        (r"\boxed{}", ""),
        (r"\boxed{", None),
        (r"\boxed 5", None),
        (r"\fbox{5}", None),
        ("", None),
    ],
)
def test_the_last_balanced_box(response, expected):
    assert extract_boxed(response) == expected


def test_a_box_is_found_wherever_it_stands():
    """The published code reads only the last 100 characters."""
    assert score(r"\boxed{5}" + " because" * 100, "5")["score"] == 1.0


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [
        ("5", "5", 1.0),
        (" 5 ", "5", 1.0),
        ("05", "5", 1.0),
        ("-5", "5", 0.0),
        ("5", 5, 1.0),
        ("0.5", 0.5, 1.0),
        ("0.5", r"\frac{1}{2}", 1.0),
        (r"\dfrac{2}{4}", "1/2", 1.0),
        ("3", r"3\sqrt{2}", 0.0),  # math-verify takes both for 3 unless the answers are marked as LaTeX
        (r"\sqrt{18}", r"3\sqrt{2}", 1.0),
        ("2x+3y", "2x", 0.0),
        ("3y+2x", "2x+3y", 1.0),
        ("x=5", "5", 1.0),
        ("$5$", "5", 1.0),
        ("1,000", "1000", 1.0),
        ("5", r"\boxed{5}", 1.0),
        (r"\{1,2\}", r"\{2,1\}", 1.0),
        ("yes", "yes", 1.0),
        ("", "5", 0.0),
        ("5", "", 0.0),
        ("", "", 0.0),
        ("5", None, 0.0),
        ("1", True, 0.0),
        ("5", ["5"], 0.0),
    ],
)
def test_equality(answer, gold, expected):
    assert score(f"\\boxed{{{answer}}}", gold)["score"] == expected


def test_format_and_feedback():
    nothing = score("5", "5")
    assert (nothing["score"], nothing["format_ok"], nothing["pred"]) == (0.0, False, "")
    assert nothing["feedback"] == math.FEEDBACK_FORMAT
    wrong = score(r"\boxed{4}", "5")
    assert (wrong["score"], wrong["format_ok"], wrong["pred"]) == (0.0, True, "4")
    assert wrong["feedback"] == math.FEEDBACK_WRONG
    assert score(r"\boxed{5}", "5")["feedback"] == ""


def test_validation():
    for gold in ["5", 5, 0.5, r"\frac{1}{2}", r"\boxed{5}"]:
        validate_ground_truth("math", gold)
    for gold in ["", "  ", None, True, ["5"], r"\boxed{}", "x" * 2000, 10**5000]:
        with pytest.raises(ValueError, match="the answer"):
            validate_ground_truth("math", gold)


def test_threads():
    """veRL's reward managers score in a thread pool, where math-verify's own time limit raises."""
    questions = [(f"\\boxed{{\\frac{{{n}}}{{4}}}}", str(n / 4)) for n in range(24)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda question: score(*question)["score"], questions))
    assert results == [1.0] * len(questions)


def test_event_loop():
    async def both():
        loop = asyncio.get_running_loop()
        calls = [(r"\boxed{0.5}", "1/2"), (r"\boxed{0.25}", "1/2")]
        return await asyncio.gather(*(loop.run_in_executor(None, score, *call) for call in calls))

    assert [result["score"] for result in asyncio.run(both())] == [1.0, 0.0]


def test_a_comparison_without_end_is_stopped_and_does_not_hold_up_others():
    score(r"\boxed{0.5}", "1/2")  # starts the worker
    start = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        endless = [pool.submit(score, r"\boxed{10^{10^{10}}}", "5") for _ in range(2)]
        quick = pool.submit(score, r"\boxed{0.5}", "1/2").result()
        waited = time.monotonic() - start
        assert [future.result()["score"] for future in endless] == [0.0, 0.0]
    assert quick["score"] == 1.0
    assert waited < 5.0
    assert time.monotonic() - start < 8.0


def test_a_worker_that_died_is_replaced():
    assert score(r"\boxed{0.5}", "1/2")["score"] == 1.0
    process = math._WORKER.process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert score(r"\boxed{0.5}", "1/2")["score"] == 1.0
    assert math._WORKER.process is not process


def test_an_installation_without_math_verify_is_an_error_and_not_a_wrong_answer(monkeypatch, tmp_path):
    (tmp_path / "math_verify.py").write_text("raise ImportError('math_verify is not here')\n")
    monkeypatch.setattr(math, "_WORKER", math._Worker())
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RuntimeError, match="math_verify is not here"):
        score(r"\boxed{0.5}", "1/2")


def run_python(code):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120
    )


def test_processes_leave_nothing_behind():
    """The worker ends with its process, also with one that is killed; a forked child starts its own."""
    done = run_python(
        """
        import os, signal
        from srpo_verl.rewards import compute_score, math
        assert compute_score("math", "\\\\boxed{0.5}", "1/2")["score"] == 1.0
        worker = math._WORKER.process.pid
        child = os.fork()
        if child == 0:
            ok = compute_score("math", "\\\\boxed{0.5}", "1/2")["score"] == 1.0 and math._WORKER.process.pid != worker
            math._WORKER.stop()
            os._exit(0 if ok else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert compute_score("math", "\\\\boxed{0.75}", "3/4")["score"] == 1.0 and math._WORKER.process.pid == worker
        print(worker, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    assert done.stderr == ""
    worker = int(done.stdout)
    for _ in range(50):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            break
        with open(f"/proc/{worker}/stat") as stat:  # ended, but nobody has asked for its status
            if stat.read().rpartition(")")[2].split()[0] == "Z":
                break
        time.sleep(0.1)
    else:
        pytest.fail("the worker outlived the process that started it")


def test_a_normal_end_is_silent():
    done = run_python(
        """
        from srpo_verl.rewards import compute_score
        print(compute_score("math", "\\\\boxed{0.5}", "1/2")["score"])
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "1.0\n", "")
