"""Tool Use (ToolAlpaca): ``Action:`` lines with tool names, ``Action Input:`` lines with JSON objects.

The rule is the published one, with two repairs without which a row can be impossible to solve:

* There, an input ends at its first "}". Here it is parsed as JSON, so objects may be nested and strings may
  hold braces.
* One gold name is written ``[Optional]updateUserProfile``, an annotation of the corpus; a name read from a
  response consists of word characters and can never equal that. Here the mark is dropped on both sides.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from srpo_verl.rewards.result import MAX_PRED_CHARS, make_result, shorten

FEEDBACK_FORMAT = (
    "The response must name a tool on a line 'Action: <tool>', followed by a line 'Action Input: <JSON object>'."
)
FEEDBACK_NO_JSON = "An action input is not a valid JSON object."
FEEDBACK_NAMES = "The actions are not the right ones: check which tools are needed, and how often."
FEEDBACK_INPUTS = "The actions are right, but their inputs are not: check the parameter names and values."

OPTIONAL_MARK = "[Optional]"
_NAME = re.compile(r"Action:\s*(?:\[Optional\]\s*)?(\w+)")
_INPUT = re.compile(r"Action Input:\s*(?={)")
_FIRST_WINDOW = 4096  # characters
_EDGE = 16  # characters: no JSON token that a window cuts in two fails further from the window's end
_MAX_INT_DIGITS = 4300  # Python's own limit, over which int() raises ValueError (since 3.10.7)

Call = tuple[str, dict[str, Any]]


class _HugeNumber:
    """Stands for an integer too long to be converted: equal to nothing but itself."""

    def __repr__(self) -> str:
        return "<number>"


def _parse_int(digits: str) -> Any:
    return int(digits) if len(digits) <= _MAX_INT_DIGITS else _HugeNumber()


_DECODER = json.JSONDecoder(parse_int=_parse_int)


def _decode_object(text: str, start: int) -> tuple[dict[str, Any], int] | None:
    """The JSON object that begins at ``text[start] == "{"`` and the index after it; None where there is none.

    `json` counts lines up to an error's position, so a failure costs time in proportion to all text before it:
    a megabyte of openings would take minutes. Hence the decoder sees a window, widened only when the object may
    go on beyond it.
    """
    size = _FIRST_WINDOW
    while True:
        window = text[start : start + size]
        try:
            value, end = _DECODER.raw_decode(window)
            return value, start + end
        except json.JSONDecodeError as error:
            cut = error.pos >= len(window) - _EDGE or error.msg.startswith("Unterminated string")
            if start + size >= len(text) or not cut:
                return None
            size *= 8
        except (RecursionError, ValueError):
            return None


def _names(response: str) -> Iterator[tuple[int, str]]:
    for match in _NAME.finditer(response):
        yield match.start(), match.group(1)


def _inputs(response: str) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Position and value of every object after ``Action Input:``; None where it does not parse."""
    position = 0
    while match := _INPUT.search(response, position):
        decoded = _decode_object(response, match.end())
        if decoded is None:
            position = match.end()
            yield match.start(), None
        else:
            value, position = decoded
            yield match.start(), value


def _has_right_format(response: str) -> bool:
    """An ``Action:`` and, on a later line, an ``Action Input:``, as the published scorer has it."""
    first = response.find("Action:")
    return first >= 0 and response.find("\nAction Input:", first) >= 0


def _gold_input(value: Any) -> dict[str, Any]:
    """A gold input is an object or a string of JSON; one that is no object counts as empty."""
    if isinstance(value, str):
        try:
            value = _DECODER.decode(value)
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}


def _load_gold(ground_truth: Any) -> Any:
    return _DECODER.decode(ground_truth) if isinstance(ground_truth, str) else ground_truth


def parse_ground_truth(ground_truth: Any) -> list[Call] | None:
    """The gold calls as (name, input); None where the gold answer is no list of them."""
    try:
        items = _load_gold(ground_truth)
    except (ValueError, RecursionError):
        return None
    if not isinstance(items, list):
        return None
    calls = []
    for item in items:
        if not isinstance(item, dict) or not isinstance(item.get("Action"), str):
            return None
        name = item["Action"].strip().removeprefix(OPTIONAL_MARK).strip()
        calls.append((name, _gold_input(item.get("Action_Input"))))
    return calls


def _union(inputs: list[dict[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for value in inputs:
        merged.update(value)
    return merged


def _pair_calls(names: list[tuple[int, str]], inputs: list[tuple[int, dict[str, Any] | None]]) -> list[Call]:
    """Give each name the first input between it and the next name, {} if none; an input left over is a call of ''."""
    events: list[tuple[int, str | None, dict[str, Any]]] = [(position, name, {}) for position, name in names]
    events += [(position, None, value or {}) for position, value in inputs]
    calls: list[Call] = []
    waiting: str | None = None
    for _, name, value in sorted(events, key=lambda event: event[0]):
        if name is None:
            calls.append((waiting or "", value))
            waiting = None
            continue
        if waiting is not None:
            calls.append((waiting, {}))
        waiting = name
    if waiting is not None:
        calls.append((waiting, {}))
    return calls


def _same_calls(predicted: list[Call], gold: list[Call]) -> bool:
    """Equal as multisets. Inputs are not hashable, so each gold call strikes out one equal predicted call."""
    if len(predicted) != len(gold):
        return False
    left = list(predicted)
    for call in gold:
        if call not in left:
            return False
        left.remove(call)
    return True


def _describe(names: list[str], union: dict[str, Any]) -> str:
    """The prediction in one canonical line, so that equal answers get the same majority vote."""
    listed = ", ".join(sorted(names[:MAX_PRED_CHARS]))
    try:
        inputs = json.dumps(union, sort_keys=True, default=repr) if union else "{}"
    except (ValueError, RecursionError):
        inputs = "<too deep>"
    return f"{listed[:200]} {inputs}" if names or union else ""


def compute_score(response: str, ground_truth: Any, *, strict: bool = False) -> dict[str, Any]:
    """1.0 where the names and the inputs are those of the gold answer.

    Names count as a multiset, inputs as the union of all objects, in which a later key wins; an input that does
    not parse is {}. Values compare as Python has it: 1 == 1.0 == True, "5" != 5.

    Args:
        response: the model's response.
        ground_truth: JSON list (or the list itself) of {"Action": name, "Action_Input": object or JSON string}.
        strict: compare call by call instead, so that two calls with their inputs exchanged are wrong. The order
            of the calls does not matter.
    """
    named = list(_names(response))
    found = list(_inputs(response))
    names = [name for _, name in named]
    union = _union([value for _, value in found if value])
    format_ok = _has_right_format(response)
    gold = parse_ground_truth(ground_truth)

    correct = False
    feedback = FEEDBACK_FORMAT
    if gold is not None:
        names_right = Counter(names) == Counter(name for name, _ in gold)
        try:
            inputs_right = union == _union([value for _, value in gold])
            if strict and names_right and inputs_right:
                inputs_right = _same_calls(_pair_calls(named, found), gold)
        except RecursionError:
            inputs_right = False
        correct = names_right and inputs_right
        if format_ok:
            if any(value is None for _, value in found):
                feedback = FEEDBACK_NO_JSON
            else:
                feedback = FEEDBACK_INPUTS if names_right else FEEDBACK_NAMES
    return make_result(correct=correct, pred=_describe(names, union), format_ok=format_ok, feedback=feedback)


def validate_ground_truth(ground_truth: Any) -> None:
    """Raise ValueError unless the gold answer is a list of calls."""
    try:
        value = _load_gold(ground_truth)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the answer is not valid JSON: {error}") from error
    if not isinstance(value, list):
        raise ValueError(f"the answer must be a JSON list of calls, got {shorten(ground_truth)}")
    for index, item in enumerate(value):
        if not isinstance(item, dict) or not isinstance(item.get("Action"), str):
            raise ValueError(f"call {index} of the answer must be an object with the string 'Action'")
        if not isinstance(item.get("Action_Input"), (str, dict)):
            raise ValueError(f"call {index} of the answer must have 'Action_Input', an object or a string of JSON")


def ground_truth_doubts(ground_truth: Any) -> list[str]:
    """What the rule makes of a valid gold answer against its looks: calls no response can match, lost inputs."""
    calls = parse_ground_truth(ground_truth) or []
    doubts = [] if calls else ["no call: a response without any action is right"]
    for (name, _), item in zip(calls, _load_gold(ground_truth), strict=True):
        if not re.fullmatch(r"\w+", name):
            doubts.append(f"no response can be right: a tool's name is read as word characters, not {name!r:.80}")
        given = item["Action_Input"]
        if isinstance(given, str):
            try:
                given = _DECODER.decode(given)
            except (ValueError, RecursionError):
                given = None
        if not isinstance(given, dict):
            doubts.append(f"the input of {name!r:.80} is no JSON object and counts as {{}}")
    return doubts
