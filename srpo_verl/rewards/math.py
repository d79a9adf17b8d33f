r"""Mathematics: the last ``\boxed{...}`` of the response, equal to the gold answer as text or by math-verify."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import select
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from srpo_verl.rewards.result import make_result, shorten

CPU_SECONDS = 3  # of processor time for one comparison, so that a busy machine does not change a score
WAIT_SECONDS = 5.0  # of wall time until a comparison counts as failed
START_SECONDS = 120.0  # for the worker to import math-verify, once per process
MAX_ANSWER_CHARS = 1000  # a longer answer is compared as text only

FEEDBACK_WRONG = "The final answer is not correct."
FEEDBACK_FORMAT = "The final answer must be given as \\boxed{...}."

_INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
_TOKEN = re.compile(r"\\boxed\{|\\\\(?!boxed\{)|\\[{}]|[{}]")


def extract_boxed(response: str) -> str | None:
    r"""The content of the last ``\boxed{...}`` whose braces are balanced; None where there is none.

    "Last" goes by where a box begins. Escaped braces (``\{``) are text. One pass: a response may consist of nothing
    but openings.
    """
    open_braces: list[int] = []  # where the content of a box begins, -1 for any other brace
    start = end = -1
    for match in _TOKEN.finditer(response):
        token = match.group()
        if token == "\\boxed{":
            open_braces.append(match.end())
        elif token == "{":
            open_braces.append(-1)
        elif token == "}" and open_braces:
            content = open_braces.pop()
            if content > start:
                start, end = content, match.start()
    return None if start < 0 else response[start:end]


class _Worker:
    """The math-verify process of this process; see `srpo_verl.rewards.math_worker`."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.control: socket.socket | None = None

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        program = "import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
        file = str(Path(__file__).with_name("math_worker.py"))
        search_path = os.pathsep.join(entry for entry in sys.path if entry)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", program, file, str(theirs.fileno()), str(CPU_SECONDS)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": search_path},
                start_new_session=True,  # an interrupt from the keyboard is for the training process alone
            )
        ours.settimeout(START_SECONDS)
        try:
            message = ours.recv(65536)
        except OSError as error:
            message = str(error).encode()
        if message != b"R":
            self.control = ours
            self.stop()
            reason = message.decode("utf-8", "replace").strip() or "it ended without a word"
            raise RuntimeError(f"the math-verify worker could not be started: {reason}")
        self.control = ours
        return ours

    def ask(self, gold: str, answer: str) -> bool:
        """Whether math-verify takes the two for equal; False as well where a limit stopped it."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                self._send(theirs)
            deadline = time.monotonic() + WAIT_SECONDS
            ours.settimeout(WAIT_SECONDS)
            try:
                ours.sendall(json.dumps([gold, answer]).encode("ascii"))
                ours.shutdown(socket.SHUT_WR)
                ours.settimeout(max(0.01, deadline - time.monotonic()))
                return ours.recv(1) == b"1"
            except OSError:
                return False

    def _send(self, connection: socket.socket) -> None:
        with self.lock:
            if self.control is not None:
                # The worker never writes after its greeting, so a readable control socket is a closed one.
                if not select.select([self.control], [], [], 0)[0]:
                    with contextlib.suppress(OSError):
                        socket.send_fds(self.control, [b"?"], [connection.fileno()])
                        return
                self.stop()
            socket.send_fds(self._start(), [b"?"], [connection.fileno()])

    def stop(self) -> None:
        """End the worker. Closing its control socket is enough; it is not waited for beyond a second."""
        if self.control is not None:
            self.control.close()
        if self.process is not None:
            try:
                self.process.wait(1.0)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process = self.control = None

    def forget(self) -> None:
        """In a forked child: the worker belongs to the parent, and the lock may be held by a thread left behind."""
        if self.control is not None:
            self.control.close()
        if self.process is not None:
            self.process.returncode = 0  # not ours to wait for
        self.lock = threading.Lock()
        self.process = self.control = None


_WORKER = _Worker()
atexit.register(_WORKER.stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_WORKER.forget)


def is_equivalent(gold: str, answer: str) -> bool:
    """math-verify's judgement on two answers, from any thread, in bounded time and memory.

    Raises:
        RuntimeError: math-verify could not be started, whatever the answers are. Scoring on without it would turn
            right answers into wrong ones unnoticed.
    """
    if len(gold) > MAX_ANSWER_CHARS or len(answer) > MAX_ANSWER_CHARS or "\0" in answer:
        return False
    if _INTEGER.fullmatch(gold) and _INTEGER.fullmatch(answer):  # most answers; no need to ask
        return int(gold) == int(answer)
    return _WORKER.ask(gold, answer)


def compute_score(response: str, ground_truth: Any) -> dict[str, Any]:
    """1.0 where the boxed answer equals the gold answer, as text (outer white space aside) or by math-verify."""
    boxed = extract_boxed(response)
    answer = "" if boxed is None else boxed.strip()
    gold = _gold_text(ground_truth)
    correct = bool(answer) and bool(gold) and (answer == gold or is_equivalent(gold, answer))
    feedback = FEEDBACK_WRONG if answer else FEEDBACK_FORMAT
    return make_result(correct=correct, pred=answer, format_ok=bool(answer), feedback=feedback)


def _gold_text(ground_truth: Any) -> str:
    """The gold answer without a box around it. Numbers are accepted, since data files often hold them bare."""
    if isinstance(ground_truth, bool) or not isinstance(ground_truth, (str, int, float)):
        return ""
    text = ""
    with contextlib.suppress(ValueError):  # an integer of more than 4300 digits has no text
        text = str(ground_truth).strip()
    if text.startswith("\\boxed{") and text.endswith("}"):
        text = (extract_boxed(text) or "").strip()
    return text


def validate_ground_truth(ground_truth: Any) -> None:
    """Raise ValueError unless the gold answer is a number or a text of 1 to `MAX_ANSWER_CHARS` characters."""
    text = _gold_text(ground_truth)
    if not text:
        raise ValueError(f"the answer must be a number or a text that is not empty, got {shorten(ground_truth)}")
    if len(text) > MAX_ANSWER_CHARS:
        raise ValueError(f"the answer has {len(text)} characters, more than {MAX_ANSWER_CHARS}")
