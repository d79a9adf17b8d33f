"""Looking at a run step by step: which guard raises an alarm, once for every episode."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from srpo_verl.guards.history import History
from srpo_verl.guards.rules import RULES, Settings

LEVELS = ("off", "warn", "checkpoint", "stop")
"""What an alarm does: nothing, one line, a checkpoint as well, or the end of the run with a checkpoint."""

PATIENCE = 2
"""Steps in a row that have to show a sign before it is an alarm."""

PATIENCE_OF = {"nonfinite": 3}
"""Other numbers of them: a single update that is skipped is counted and no more."""

QUIET = 20
"""Steps without the sign that end an episode."""


@dataclass(frozen=True)
class Alarm:
    """What was seen, since when, and what to do."""

    guard: str
    level: str
    step: int
    since: int
    seen: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.guard}: since step {self.since} {self.seen}. What to do: {self.remedy}."


@dataclass
class _Episode:
    since: int
    last: int
    steps: int = 1
    raised: bool = False


class Watch:
    """Holds every rule against a run's history as it grows."""

    def __init__(self, settings: Settings | None = None):
        self.settings = settings or Settings()
        self.history = History()
        self._episodes: dict[str, _Episode] = {}

    def observe(self, step: int, metrics: Mapping[str, Any]) -> list[Alarm]:
        """Take in one step and return the alarms that it raises. A validation by itself raises none."""
        trained = self.history.add(step, metrics)
        if not trained:
            return []
        self._episodes = {name: episode for name, episode in self._episodes.items() if episode.since < step}
        alarms = [self._look(name, step) for name in RULES if self.level(name) != "off"]
        return [alarm for alarm in alarms if alarm is not None]

    def level(self, guard: str) -> str:
        return self.settings.levels.get(guard, "warn")

    def active(self, step: int) -> dict[str, bool]:
        """By guard that is on, whether its alarm holds at this step."""
        return {
            name: name in self._episodes and self._episodes[name].raised and self._episodes[name].last == step
            for name in RULES
            if self.level(name) != "off"
        }

    def _look(self, name: str, step: int) -> Alarm | None:
        sign, episode = RULES[name](self.history, self.settings), self._episodes.get(name)
        if sign is None:
            if episode is not None and (not episode.raised or step - episode.last > QUIET):
                del self._episodes[name]
            return None
        if episode is None:
            episode = self._episodes[name] = _Episode(since=step - sign.steps + 1, last=step, steps=sign.steps)
        else:
            episode.last, episode.steps = step, max(episode.steps + 1, sign.steps)
        if episode.raised or episode.steps < PATIENCE_OF.get(name, PATIENCE):
            return None
        episode.raised = True
        return Alarm(name, self.level(name), step, episode.since, sign.seen, sign.remedy)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "history": self.history.to_dict(),
            "episodes": {name: vars(replace(episode)) for name, episode in self._episodes.items()},
        }

    def restore(self, values: Mapping[str, Any]) -> None:
        """Go on from what `to_dict` gave. Raises KeyError, TypeError or ValueError for anything else."""
        history = History.from_dict(values["history"])
        episodes = {name: _Episode(**episode) for name, episode in values["episodes"].items() if name in RULES}
        self.history, self._episodes = history, episodes


def review(history: Iterable[tuple[int, Mapping[str, Any]]], settings: Settings | None = None) -> list[Alarm]:
    """The alarms that a run raises, or would have raised.

    Args:
        history: (training step, metrics by name), in the order of logging.
        settings: what is known of the run's configuration besides.
    """
    watch = Watch(settings)
    return [alarm for step, metrics in history for alarm in watch.observe(step, metrics)]
