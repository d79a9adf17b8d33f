"""The end of a run that failed all the same: its cause in the last line."""

from __future__ import annotations

import sys
import traceback
from typing import NoReturn

from srpo_verl.errors import RunStopped


def root_cause(error: BaseException) -> BaseException:
    """What was raised first; Ray wraps what its workers raise, once for every process on the way."""
    seen = [error]
    while True:
        inner = getattr(seen[-1], "cause", None) or seen[-1].__cause__
        if not isinstance(inner, BaseException) or inner in seen:
            return seen[-1]
        seen.append(inner)


MEANING = {
    "no materializable trajectories": "every rollout of a step failed, for a reward function or a tool that raises; "
    "the traceback is in the output, after 'failed'",
    "inline_container.cc": "a file of a checkpoint could not be written: is the disk full? The checkpoint before it "
    "is whole",
}
"""What a message of veRL's means here, by a part of it."""


def in_one_line(error: BaseException) -> str:
    """Kind and message. Ray's own exceptions hold a traceback, or a report of a process that died: its last line."""
    if type(error).__module__.partition(".")[0] == "ray":
        lines = [line for line in str(error).splitlines() if line.strip()]
        return lines[-1].strip() if lines else type(error).__name__
    return " ".join(f"{type(error).__name__}: {error}".split())


def end_with_cause(error: BaseException, last_words: str | None = None) -> NoReturn:
    """Print the traceback, wait for what Ray's processes still have to say, and end with the cause as last line.

    Args:
        error: what the run failed with.
        last_words: of a process that ended itself, of which Ray knows no more than that it died.
    """
    cause = root_cause(error)
    if not isinstance(cause, RunStopped):
        traceback.print_exception(error)
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        ray.shutdown()
    sys.stdout.flush()
    if isinstance(cause, RunStopped):
        print(f"srpo_verl: the run {cause.reason}", file=sys.stderr, flush=True)
        sys.exit(cause.status)
    line = last_words or in_one_line(cause)
    meaning = next((meaning for part, meaning in MEANING.items() if part in line), None)
    sys.exit(f"srpo_verl: the run failed: {line if meaning is None else f'{meaning} ({line})'}")
