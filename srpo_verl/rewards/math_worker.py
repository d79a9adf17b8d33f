"""The process that runs math-verify, so that nothing a model writes can stop or starve the training process.

SymPy has no upper bound on time or memory: ``10**10**10`` alone takes all of both. math-verify's own limit rests
on ``signal.alarm``, which works in a main thread only, and veRL scores rewards in threads. So this file, started
once per training process by `srpo_verl.rewards.math`, imports math-verify, waits, and *forks* for every question:
a fork costs milliseconds, has its own limits on processor time, wall time and memory, and can be lost without
loss. Nothing here runs threads, so forking is safe.

Protocol: on the control socket arrives one byte with one file descriptor per question. The question is read from
that descriptor until its end, and one byte is answered: "1" equal, "0" not. An end without answer means that the
fork was stopped by a limit. End of the control socket (the training process is gone) ends this process.

This file is run by path and imports nothing of the package: it starts faster, and the directory it lies in holds a
module named ``math``, which must not hide the standard library's.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import signal
import socket
import sys
import time
import traceback
from typing import Any

READY = b"R"
MEMORY_BYTES = 1 << 30  # of address space, over what the process has when it starts
WALL_EXTRA_SECONDS = 1.5  # processor time is the limit that decides; this one stops a fork that sleeps


def parse_answer(text: str) -> list[Any]:
    """Read an answer as LaTeX.

    It must be wrapped for that: bare, math-verify looks for the first number and takes ``3\\sqrt{2}`` for 3.
    """
    from math_verify import parse

    bare = text.strip()
    if len(bare) >= 2 and bare[0] == bare[-1] == "$":
        bare = bare.strip("$")
    wrapped = f"\\boxed{{{bare}}}" if "$" in bare else f"${bare}$"
    return parse(wrapped, parsing_timeout=None)


def is_equal(gold: str, answer: str) -> bool:
    """math-verify's judgement, without its own time limits."""
    from math_verify import verify

    return bool(verify(parse_answer(gold), parse_answer(answer), timeout_seconds=None))


def _limit_process(cpu_seconds: int) -> None:
    """From here on, more than this kills the process (time) or raises MemoryError in it (memory)."""
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, cpu_seconds + WALL_EXTRA_SECONDS)
    used = 0
    with contextlib.suppress(OSError, ValueError), open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    with contextlib.suppress(OSError, ValueError):  # not every system has this limit
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))


def _answer(descriptor: int, cpu_seconds: int) -> None:
    """In the fork: read the question, answer it."""
    _limit_process(cpu_seconds)
    with socket.socket(fileno=descriptor) as connection:
        question = b""
        while chunk := connection.recv(65536):
            question += chunk
        gold, answer = json.loads(question)
        try:
            verdict = is_equal(gold, answer)
        except BaseException:  # math-verify's own timeout error is no Exception, nor is an exhausted stack
            verdict = False
        connection.sendall(b"1" if verdict else b"0")


def _fork_with_patience() -> int:
    """Fork; a machine that is short of processes for a moment gets a second."""
    for _ in range(10):
        try:
            return os.fork()
        except OSError:
            time.sleep(0.1)
    return -1


def serve(control: socket.socket, cpu_seconds: int) -> None:
    """Answer questions until the other end of `control` is closed."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # forks end unattended
    while True:
        data, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not data:
            return
        for descriptor in descriptors:
            if _fork_with_patience() == 0:
                control.close()
                try:
                    _answer(descriptor, cpu_seconds)
                finally:
                    os._exit(0)
            os.close(descriptor)


def main() -> None:
    """Arguments: the number of the control socket's descriptor, the limit on processor time in seconds."""
    control = socket.socket(fileno=int(sys.argv[1]))
    try:
        for gold, answer in (("\\frac{1}{2}", "0.5"), ("\\sqrt{18}", "3\\sqrt{2}"), ("x^2-1", "(x-1)(x+1)")):
            is_equal(gold, answer)  # what the first questions build is inherited by all forks
        gc.freeze()  # a collection in a fork would copy every page it looks at
    except BaseException:
        control.sendall(traceback.format_exc().encode("utf-8", "replace"))
        return
    control.sendall(READY)
    serve(control, int(sys.argv[2]))


if __name__ == "__main__":
    main()
