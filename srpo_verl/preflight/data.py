"""The rows of one split: every bad one, and whether what remains makes a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from srpo_verl.preflight.files import DataFile, column_findings, open_files
from srpo_verl.preflight.findings import ERROR, NOTE, OK, Finding
from srpo_verl.preflight.lengths import (
    SHARE_OF_RESPONSE,
    Teacher,
    bare_lengths,
    room_problem,
    teacher_of,
    whole_lengths,
)
from srpo_verl.preflight.reward import Verifier
from srpo_verl.preflight.rows import MEDIA, ground_truth_problem, is_plain_text, prompt_problem, teacher_problem
from srpo_verl.preflight.settings import DataSettings, Split
from srpo_verl.preflight.template import Renderer
from srpo_verl.teacher.reference import reference_text


class Question(NamedTuple):
    """A row whose prompt can be measured."""

    number: int
    messages: Any
    reference: str
    """What its teacher is shown out of the data, or ""."""


def split_findings(
    split: Split, settings: DataSettings, verifier: Verifier, renderer: Renderer | None
) -> list[Finding]:
    """Check the files of a split and every row that veRL may take from them.

    Args:
        renderer: None where there is no model to render with; lengths are then not checked.
    """
    files, findings = open_files(split)
    check = _SplitCheck(split, settings, verifier, renderer)
    whole = not findings
    for file in files:
        wrong_columns = column_findings(split, file, settings)
        findings += wrong_columns
        if wrong_columns:
            whole = False
        else:
            check.file(file)
    return [*findings, *check.findings, *check.summary(len(files), whole)]


class _SplitCheck:
    """Goes through the rows, collects findings and counts what remains."""

    def __init__(self, split: Split, settings: DataSettings, verifier: Verifier, renderer: Renderer | None):
        self.split, self.settings, self.verifier, self.renderer = split, settings, verifier, renderer
        teaches = renderer is not None and split.trains
        self.teacher = teacher_of(settings, verifier.feedback_texts, renderer) if teaches and renderer else None
        self.findings: list[Finding] = []
        self.reference = settings.reference if split.trains else ()
        self.rows = self.kept = self.unmeasured = self.without_reference = 0
        self.shortest: int | None = None
        self.longest: int | None = None
        self.least_room: int | None = None

    def file(self, file: DataFile) -> None:
        for first, rows in self._wanted(file):
            self.rows += len(rows)
            self._rows(file, first, rows)

    def _wanted(self, file: DataFile) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """Rows that a run may see: the first `max_rows` of the split, or any where veRL draws them."""
        limit = None if self.settings.shuffled else self.split.max_rows
        columns = dict.fromkeys([self.settings.prompt_key, "data_source", "reward_model", *MEDIA, *self.reference[:1]])
        for first, rows in file.batches(list(columns)):
            if limit is not None and self.rows >= limit:
                return
            yield first, rows if limit is None else rows[: limit - self.rows]

    def _rows(self, file: DataFile, first: int, rows: Sequence[dict[str, Any]]) -> None:
        questions = []
        for number, row in enumerate(rows, start=first):
            reference = self._reference(file, number, row)
            if self.settings.reads_ground_truth and (problem := ground_truth_problem(row, self.verifier)):
                self._add(ERROR, "ground truth", file, number, problem, "correct these rows or leave them out")
            messages = row[self.settings.prompt_key]
            if problem := prompt_problem(messages):
                remedy = "a prompt is a list of messages, the last of them not the assistant's"
                self._add(ERROR, "prompt", file, number, problem, remedy)
                continue
            if self._distils and (problem := teacher_problem(row, messages)):
                remedy = (
                    "a teacher needs a user's plain text as the last message; without a teacher: --config-name grpo"
                )
                self._add(ERROR, "last message", file, number, problem, remedy)
                continue
            if self.renderer is not None and is_plain_text(row, messages):
                questions.append(Question(number, messages, reference))
            else:
                self.unmeasured += 1
                self.kept += 1
        if self.renderer is not None:
            self._students(file, questions, self.renderer)

    def _reference(self, file: DataFile, number: int, row: dict[str, Any]) -> str:
        if not self.reference:
            return ""
        text = reference_text(row.get(self.reference[0]), self.reference[1:])
        if not text:
            self.without_reference += 1
            message = f"no text in srpo.demonstration.reference_column={'.'.join(self.reference)}"
            remedy = "such a row has a teacher only where another source or feedback has something for it"
            self._add(NOTE, "reference", file, number, message, remedy)
        return text

    @property
    def _distils(self) -> bool:
        return self.split.trains and self.settings.teacher_limit is not None

    def _students(self, file: DataFile, questions: Sequence[Question], renderer: Renderer) -> None:
        settings, fitting = self.settings, []
        lengths = renderer.lengths([question.messages for question in questions])
        for question, length in zip(questions, lengths, strict=True):
            number = question.number
            if isinstance(length, str):
                remedy = "correct the messages, or take a model whose template has a place for them"
                self._add(ERROR, "chat template", file, number, length, remedy)
                continue
            self.shortest = length if self.shortest is None else min(self.shortest, length)
            self.longest = length if self.longest is None else max(self.longest, length)
            fits = length <= settings.max_prompt
            if not fits:
                self._add(*self._too_long(), file, number, f"{length} tokens", self._long_remedy())
            if fits or not settings.drops_long_prompts:
                self.kept += 1
                fitting.append((question, length))
        if self.teacher is not None:
            self._teachers(file, fitting, self.teacher, renderer)
            self._references(file, fitting, self.teacher, renderer)

    def _too_long(self) -> tuple[str, str]:
        if self.settings.drops_long_prompts:
            return NOTE, "dropped as too long"
        return (NOTE if self.settings.truncation == "left" else ERROR), "prompt too long"

    def _long_remedy(self) -> str:
        limit = f"data.max_prompt_length={self.settings.max_prompt}"
        if self.settings.drops_long_prompts:
            return f"data.filter_overlong_prompts=true drops what is longer than {limit}"
        return (
            f"veRL cuts the beginning of what is longer than {limit}, whatever data.truncation says; raise the limit, "
            "set data.filter_overlong_prompts=true, or data.truncation=left if this is meant"
        )

    def _teachers(
        self, file: DataFile, students: Sequence[tuple[Question, int]], teacher: Teacher, renderer: Renderer
    ) -> None:
        # The others have room for a demonstration of full length; measuring them would double the time.
        full = self.settings.max_response
        questions = [question for question, length in students if teacher.may_lack(full, length)]
        bare = bare_lengths([question.messages for question in questions], teacher, renderer)
        for question, length in zip(questions, bare, strict=True):
            if problem := room_problem(length, teacher):
                self._add(ERROR, "teacher's prompt", file, question.number, problem, self._room_remedy(teacher.room))
            else:
                room = teacher.limit - int(length)
                self.least_room = room if self.least_room is None else min(self.least_room, room)

    def _references(
        self, file: DataFile, students: Sequence[tuple[Question, int]], teacher: Teacher, renderer: Renderer
    ) -> None:
        """References that are cut; what `_teachers` has found is not said again."""
        questions = [
            question
            for question, length in students
            if question.reference and teacher.may_lack(len(question.reference.encode()), length)
        ]
        conversations = [question.messages for question in questions]
        whole = whole_lengths(conversations, [question.reference for question in questions], teacher, renderer)
        bare = bare_lengths(conversations, teacher, renderer)
        for question, all_of_it, without in zip(questions, whole, bare, strict=True):
            if isinstance(all_of_it, str) or isinstance(without, str) or not without <= teacher.limit < all_of_it:
                continue
            kept, length = teacher.limit - without, all_of_it - without
            level = ERROR if kept * SHARE_OF_RESPONSE < length else NOTE
            message = f"{kept} of the reference's {length} tokens fit into the teacher's prompt, its end is cut off"
            remedy = f"raise srpo.demonstration.max_prompt_tokens={teacher.limit}"
            self._add(level, "reference", file, question.number, message, remedy)

    def _room_remedy(self, room: int) -> str:
        settings = self.settings
        needed = (
            f"it has to leave {room} tokens for a demonstration, 1/{SHARE_OF_RESPONSE} of "
            f"data.max_response_length={settings.max_response}"
            if room
            else "it has to hold them"
        )
        return f"raise srpo.demonstration.max_prompt_tokens={settings.teacher_limit}: {needed}"

    def _add(self, level: str, kind: str, file: DataFile, row: int, message: str, remedy: str) -> None:
        self.findings.append(Finding(level, f"{self.split.key}, {kind}", message, remedy, file.name, row))

    # --- the split as a whole ----------------------------------------------------------------------------------------

    def summary(self, files: int, whole: bool) -> list[Finding]:
        """Whether there is a batch, and what was seen. `whole`: every file could be read."""
        found = self._batch_problems() if whole else []
        if self.unmeasured and self.renderer is not None:
            message = f"{self.unmeasured} rows with images, videos or audio: their lengths are unchecked"
            found.append(Finding(NOTE, self.split.key, message))
        if not files:
            return found
        if self.rows and self.without_reference == self.rows:
            message = f"srpo.demonstration.reference_column={'.'.join(self.reference)} holds no text in any row"
            found.append(Finding(ERROR, self.split.key, message, "name the column of the solutions"))
        lengths = "" if self.longest is None else f", prompts of {self.shortest} to {self.longest} tokens"
        dropped = f", {self.rows - self.kept} of them not usable" if self.kept < self.rows else ""
        where = "1 file" if files == 1 else f"{files} files"
        found.append(Finding(OK, self.split.key, f"{self.rows} rows in {where}{dropped}{lengths}"))
        if self.least_room is not None and self.settings.demonstrates and self.least_room < self.settings.max_response:
            message = (
                f"the longest question leaves {self.least_room} tokens for a demonstration; longer ones are shortened "
                "(srpo/frac_reprompt_truncated counts them)"
            )
            found.append(Finding(NOTE, "srpo.demonstration.max_prompt_tokens", message))
        return [*found, *self._memory_unused()]

    @property
    def _usable(self) -> int:
        return self.kept if self.split.max_rows is None else min(self.kept, self.split.max_rows)

    def _memory_unused(self) -> list[Finding]:
        """No prompt comes twice, so that no earlier success can be shown. Filters of groups ask for more: unknown."""
        settings = self.settings
        if not (self.split.trains and settings.remembers) or settings.fetched_batch != settings.train_batch:
            return []
        asked = self._usable * settings.epochs
        if settings.steps is not None:
            asked = min(asked, settings.steps * settings.train_batch)
        if asked > self._usable:
            return []
        message = (
            f"the source memory shows earlier successes on the same prompt, and this run takes {asked} prompts from "
            f"{self._usable} rows: none comes twice, unless rows are equal"
        )
        remedy = (
            f"more steps or epochs, fewer rows ({self.split.max_rows_key}), or go on from a run that remembers them"
        )
        return [Finding(NOTE, "srpo.demonstration.sources", message, remedy)]

    def _batch_problems(self) -> list[Finding]:
        split, settings, usable = self.split, self.settings, self._usable
        if not split.trains:
            return [] if usable else [Finding(ERROR, split.key, "no usable row", "veRL needs at least one")]
        fetched = "data.gen_batch_size" if settings.fetched_batch != settings.train_batch else "data.train_batch_size"
        needs = {fetched: settings.fetched_batch}
        if settings.steps is None:
            needs["data.train_batch_size"] = settings.train_batch
        for key, needed in needs.items():
            if usable < needed:
                limited = "" if split.max_rows is None else f" (with {split.max_rows_key}={split.max_rows})"
                message = f"{usable} usable rows{limited}, fewer than {key}={needed}: there is no step"
                return [Finding(ERROR, split.key, message, f"lower {key} or give more rows")]
        return []
