"""Two requests at a desk, to be answered by two tool calls; scored by the verifier of the Tool Use benchmark.

A request sets an alarm a few minutes after a time, or pays somebody a sum:

    alarm 9:57+5;pay bob 13+8

and the calls name the time and the sum:

    Thought:9:57+5=10:02
    Action:alarm
    Action Input:{"hour":10,"minute":2}
    Thought:13+8=21
    Action:pay
    Action Input:{"to":"bob","sum":21}

The calls may come in either order, their keys as well, with the thoughts before each call, all of them first, or left
out. The verifier reads the calls alone, so that nothing keeps a response from thinking on: responses can grow.
"""

from __future__ import annotations

import json
import random
from typing import Any, ClassVar

from recipes.mini.task import Question, Slip, Task
from recipes.mini.verifier import TOOL_CALLS

NAMES = ("ann", "bob", "eve", "dan")
STYLES = ("each", "first", "none")


def later(hour: int, minute: int, minutes: int) -> tuple[int, int]:
    """The time so many minutes after another, on a clock of 24 hours."""
    total = (hour * 60 + minute + minutes) % (24 * 60)
    return total // 60, total % 60


def parse(question: str) -> tuple[tuple[int, int, int], tuple[str, int, int], bool]:
    """(hour, minute, minutes) of the alarm, (name, sum, sum) of the payment, whether the alarm is asked for first."""
    requests = question.split(";")
    alarm = next(request for request in requests if request.startswith("alarm"))
    pay = next(request for request in requests if request.startswith("pay"))
    time, minutes = alarm.removeprefix("alarm ").split("+")
    hour, minute = time.split(":")
    name, sums = pay.removeprefix("pay ").split(" ")
    one, other = sums.split("+")
    return (int(hour), int(minute), int(minutes)), (name, int(one), int(other)), requests[0] == alarm


class Desk(Task):
    """One alarm and one payment."""

    name, data_source = "desk", TOOL_CALLS
    system_prompt = "Call the tools."
    phrases = ("Thought:", "Action:", "Action Input:", "alarm", "pay", '"hour"', '"minute"', '"to"', '"sum"', *NAMES)
    characters = '0123456789+=:;,{}"'
    max_prompt_tokens, max_response_tokens = 40, 96
    noise = 0.15
    style_shares: ClassVar[tuple[float, ...]] = (0.45, 0.35, 0.20)

    def draw(self, rng: random.Random) -> Question:
        hour, minute, minutes = rng.randrange(24), rng.randrange(60), rng.randrange(2, 10)
        name, one, other = rng.choice(NAMES), rng.randrange(5, 60), rng.randrange(2, 10)
        requests = [f"alarm {hour}:{minute:02d}+{minutes}", f"pay {name} {one}+{other}"]
        rng.shuffle(requests)
        alarm_hour, alarm_minute = later(hour, minute, minutes)
        calls = [
            {"Action": "alarm", "Action_Input": {"hour": alarm_hour, "minute": alarm_minute}},
            {"Action": "pay", "Action_Input": {"to": name, "sum": one + other}},
        ]
        return Question(";".join(requests), json.dumps(calls))

    def canonical(self, question: str) -> str:
        alarm, (name, one, other), _ = parse(question)
        return repr((alarm, name, sorted((one, other))))

    def draw_form(self, rng: random.Random) -> dict[str, Any]:
        return {
            "style": rng.choices(STYLES, self.style_shares)[0],
            "exchanged": rng.random() < 0.3,
            "keys_exchanged": rng.random() < 0.3,
        }

    def respond(  # type: ignore[override]
        self, question: str, *, slip: Slip, style: str, exchanged: bool, keys_exchanged: bool
    ) -> str:
        (hour, minute, minutes), (name, one, other), alarm_first = parse(question)
        alarm_hour, alarm_minute = later(hour, minute, minutes + (slip.rng.choice((-1, 1)) if slip else 0))
        total = one + other + (slip.rng.choice((-1, 1)) if slip else 0)
        alarm = (
            f"{hour}:{minute:02d}+{minutes}={alarm_hour}:{alarm_minute:02d}",
            "alarm",
            [f'"hour":{alarm_hour}', f'"minute":{alarm_minute}'],
        )
        pay = (f"{one}+{other}={total}", "pay", [f'"to":"{name}"', f'"sum":{total}'])
        calls = [alarm, pay] if alarm_first != exchanged else [pay, alarm]

        lines = [f"Thought:{thought}" for thought, _, _ in calls] if style == "first" else []
        for thought, action, values in calls:
            if style == "each":
                lines.append(f"Thought:{thought}")
            ordered = values[::-1] if keys_exchanged else values
            lines += [f"Action:{action}", "Action Input:{" + ",".join(ordered) + "}"]
        return "\n".join(lines)
