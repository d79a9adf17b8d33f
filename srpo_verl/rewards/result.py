"""What every verifier returns.

veRL puts each key of a reward function's dictionary into a column next to the scores, over rows of all data
sources, averages the numeric columns and leaves out those whose first value is a string. So every call has the
same keys, plain types and no None; and the strings must survive UTF-8, because veRL writes them to JSON lines.
"""

from __future__ import annotations

from typing import Any

MAX_PRED_CHARS = 500  # `pred` is for logs and majority votes; a response may be a megabyte


def make_result(*, correct: bool, pred: str, format_ok: bool, feedback: str) -> dict[str, Any]:
    """The dictionary of one scored response.

    Args:
        correct: decides ``score`` and ``acc``, 1.0 or 0.0.
        pred: the answer as it was read, '' where none was found; cut to `MAX_PRED_CHARS` characters.
        format_ok: the response has the form the prompt asks for. No rule takes anything off for a wrong one.
        feedback: a fixed sentence of the verifier for a wrong response; '' goes with every correct one.
    """
    score = 1.0 if correct else 0.0
    return {
        "score": score,
        "acc": score,
        "pred": pred[:MAX_PRED_CHARS].encode("utf-8", "replace").decode("utf-8"),
        "format_ok": format_ok,
        "feedback": "" if correct else feedback,
    }


def shorten(value: Any) -> str:
    """A value in an error message: its beginning, whatever it is (the text of a very long integer is an error)."""
    try:
        return repr(value)[:80]
    except (ValueError, RecursionError):
        return f"a {type(value).__name__}"
