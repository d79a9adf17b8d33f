"""What the teacher is shown on each row of one step: a correct sibling, an earlier success, or the data's solution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from srpo_verl.teacher.memory import SuccessMemory

SIBLING, MEMORY, REFERENCE, FEEDBACK, NOTHING = "sibling", "memory", "reference", "feedback", "nothing"


class Shown(NamedTuple):
    """A demonstration and where it comes from.

    Without a text: FEEDBACK, the verifier's words stand alone, or NOTHING, the prompt is the student's own.
    """

    source: str
    text: str | None


class Demonstrations:
    """Chooses by `srpo.demonstration.sources`: the first source in that order which has something for the row.

    Args:
        sources: of "sibling", "memory" and "reference".
        text_of: row -> its response as text, for demonstrations.
        prompts: what every row's prompt is remembered by (teacher/memory.py); only read with a memory.
        correct: whether each row is correct.
        memory: successes of earlier steps, where that is a source.
        references: the data's own solution of every row, or ""; only read where that is a source.
        show: whether a teacher gets to see what there is; if not, it still counts as there.
    """

    def __init__(
        self,
        sources: Sequence[str],
        *,
        text_of: Callable[[int], str],
        prompts: Sequence[str],
        correct: Sequence[bool],
        memory: SuccessMemory | None,
        references: Sequence[str],
        show: bool = True,
    ):
        self.sources, self.text_of, self.prompts, self.correct = sources, text_of, prompts, correct
        self.memory, self.references, self.show = memory, references, show

    def besides_siblings(self, row: int) -> bool:
        """Whether another source than the siblings has something for the row."""
        return any(self._from(source, row, sibling=-1) is not None for source in self.sources)

    def of(self, row: int, sibling: int) -> Shown:
        """What a distilled row's teacher is shown; `sibling` is the row's correct sibling, or -1."""
        if not self.show:
            return Shown(NOTHING, None)
        for source in self.sources:
            text = self._from(source, row, sibling)
            if text is not None:
                return Shown(source, text)
        return Shown(FEEDBACK, None)

    def _from(self, source: str, row: int, sibling: int) -> str | None:
        if source == SIBLING:
            return self.text_of(sibling) if sibling >= 0 else None
        if source == REFERENCE:
            return self.references[row] or None
        if self.memory is None or self.prompts[row] not in self.memory:
            return None
        # A failed row's own text is in no memory; a correct one must not be shown itself again.
        return self.memory.newest(self.prompts[row], self.text_of(row) if self.correct[row] else None)

    def remember(self, rows: Sequence[int]) -> int:
        """Put the correct ones of the rows into the memory, oldest first; return how many prompts were forgotten."""
        if self.memory is None:
            return 0
        by_prompt: dict[str, list[int]] = {}
        for row in rows:
            if self.correct[row]:
                by_prompt.setdefault(self.prompts[row], []).append(row)
        newest = {prompt: members[-self.memory.per_prompt :] for prompt, members in by_prompt.items()}
        return sum(self.memory.add(prompt, map(self.text_of, members)) for prompt, members in newest.items())
