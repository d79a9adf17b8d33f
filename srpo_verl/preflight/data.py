"""The rows of one split: every bad one, and whether what remains makes a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from srpo_verl.preflight.files import DataFile, column_findings, open_files
from srpo_verl.preflight.findings import ERROR, NOTE, OK, Finding
from srpo_verl.preflight.lengths import SHARE_OF_RESPONSE, bare_lengths, room_problem, teacher_of
from srpo_verl.preflight.reward import Verifier
from srpo_verl.preflight.rows import MEDIA, ground_truth_problem, is_plain_text, prompt_problem, teacher_problem
from srpo_verl.preflight.settings import DataSettings, Split
from srpo_verl.preflight.template import Renderer

Prompts = Sequence[tuple[int, Any]]
"""Row numbers with their messages."""


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
        wrong_columns = column_findings(split.key, file, settings)
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
        self.rows = self.kept = self.unmeasured = 0
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
        for first, rows in file.batches((self.settings.prompt_key, "data_source", "reward_model", *MEDIA)):
            if limit is not None and self.rows >= limit:
                return
            yield first, rows if limit is None else rows[: limit - self.rows]

    def _rows(self, file: DataFile, first: int, rows: Sequence[dict[str, Any]]) -> None:
        prompts = []
        for number, row in enumerate(rows, start=first):
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
                prompts.append((number, messages))
            else:
                self.unmeasured += 1
                self.kept += 1
        if self.renderer is not None:
            self._students(file, prompts, self.renderer)

    @property
    def _distils(self) -> bool:
        return self.split.trains and self.settings.teacher_limit is not None

    def _students(self, file: DataFile, prompts: Prompts, renderer: Renderer) -> None:
        settings, fitting = self.settings, []
        for (number, messages), length in zip(prompts, renderer.lengths([each for _, each in prompts]), strict=True):
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
                fitting.append((number, messages, length))
        self._teachers(file, fitting, renderer)

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

    def _teachers(self, file: DataFile, students: Sequence[tuple[int, Any, int]], renderer: Renderer) -> None:
        if self.teacher is None:
            return
        # The others have room for a demonstration of full length; measuring them would double the time.
        full = self.settings.max_response
        prompts = [(number, messages) for number, messages, length in students if self.teacher.may_lack(full, length)]
        bare = bare_lengths([messages for _, messages in prompts], self.teacher, renderer)
        for (number, _), length in zip(prompts, bare, strict=True):
            if problem := room_problem(length, self.teacher):
                self._add(ERROR, "teacher's prompt", file, number, problem, self._room_remedy(self.teacher.room))
            else:
                room = self.teacher.limit - int(length)
                self.least_room = room if self.least_room is None else min(self.least_room, room)

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
        return found

    def _batch_problems(self) -> list[Finding]:
        split, settings = self.split, self.settings
        usable = self.kept if split.max_rows is None else min(self.kept, split.max_rows)
        if not split.trains:
            return [] if usable else [Finding(ERROR, split.key, "no usable row", "veRL needs at least one")]
        fetched = "data.gen_batch_size" if settings.fetched_batch != settings.train_batch else "data.train_batch_size"
        needs = {fetched: settings.fetched_batch}
        if not settings.sets_steps:
            needs["data.train_batch_size"] = settings.train_batch
        for key, needed in needs.items():
            if usable < needed:
                limited = "" if split.max_rows is None else f" (with {split.max_rows_key}={split.max_rows})"
                message = f"{usable} usable rows{limited}, fewer than {key}={needed}: there is no step"
                return [Finding(ERROR, split.key, message, f"lower {key} or give more rows")]
        return []
