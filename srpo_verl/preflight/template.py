"""Lengths of rendered prompts, and the arguments a chat template reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta

from srpo_verl.preflight.findings import ERROR, Finding

Messages = Sequence[Mapping[str, Any]]

RESERVED = ("tokenize", "add_generation_prompt", "return_dict", "return_tensors", "tools", "conversation")
"""Arguments that veRL passes to the template itself."""

SUBJECT = "chat template"


class Renderer:
    """Token counts of conversations, rendered as the run renders them.

    Args:
        tokenizer: of the model.
        one: one conversation -> token ids, by the builder of veRL's agent loops. It decides; the tokenizer's own
            batches are used where they give the same for the first conversation, because they are many times faster.
        template_kwargs: data.apply_chat_template_kwargs.
        tools: schemas that are rendered with every prompt, or None.
    """

    def __init__(
        self,
        tokenizer: Any,
        one: Callable[[Messages], list[int]],
        template_kwargs: Mapping[str, Any],
        tools: list[dict] | None = None,
    ):
        self.tokenizer, self.one, self.template_kwargs, self.tools = tokenizer, one, template_kwargs, tools
        self._batches: bool | None = None if getattr(tokenizer, "is_fast", False) else False

    def lengths(self, conversations: Sequence[Messages]) -> list[int | str]:
        """Tokens of each conversation with its generation prompt; the reason as text where it does not render."""
        if self._batches is None and conversations:
            self._batches = self._agrees(conversations[0])
        if self._batches:
            try:
                return list(self._many(conversations))
            except Exception:
                pass  # one of them does not render: find out which
        return [self._length(conversation) for conversation in conversations]

    def _many(self, conversations: Sequence[Messages]) -> list[int]:
        ids = self.tokenizer(self._texts(conversations), add_special_tokens=False, return_attention_mask=False)[
            "input_ids"
        ]
        return [len(row) for row in ids]

    def _texts(self, conversations: Sequence[Messages]) -> list[str]:
        return self.tokenizer.apply_chat_template(
            [list(conversation) for conversation in conversations],
            tools=self.tools,
            tokenize=False,
            add_generation_prompt=True,
            **self.template_kwargs,
        )

    def _agrees(self, conversation: Messages) -> bool | None:
        """None where it cannot be told by this conversation."""
        expected = self._length(conversation)
        if isinstance(expected, str):
            return None
        try:
            return self._many([conversation]) == [expected]
        except Exception:
            return False

    def _length(self, conversation: Messages) -> int | str:
        try:
            if getattr(self.tokenizer, "chat_template", None):
                # The builder puts an empty question before messages that do not render; veRL's filter drops the row.
                self._texts([conversation])
            return len(self.one(conversation))
        except Exception as error:
            return f"{type(error).__name__}: {error}"


def argument_findings(template: str, template_kwargs: Mapping[str, Any], harmless: Mapping[str, Any]) -> list[Finding]:
    """Arguments that cannot be passed, and arguments that the template does not read, so that they would do nothing.

    Args:
        template: the Jinja source.
        template_kwargs: data.apply_chat_template_kwargs.
        harmless: values of base.yaml, which a template without such a switch already has.
    """
    findings = []
    read = _variables(template)
    for name, value in template_kwargs.items():
        key = f"data.apply_chat_template_kwargs.{name}={value!r}"
        if name in RESERVED:
            findings.append(Finding(ERROR, SUBJECT, f"{key}: veRL passes this argument itself", "remove the key"))
        elif read is not None and name not in read and not (name in harmless and harmless[name] == value):
            known = ", ".join(sorted(read - {"messages", *RESERVED})) or "none"
            findings.append(
                Finding(
                    ERROR,
                    SUBJECT,
                    f"{key}: the model's chat template does not read it, so it would do nothing",
                    f"remove the key, or correct its name; names the template reads: {known}",
                )
            )
    return findings


def _variables(template: str) -> set[str] | None:
    """Names that a template takes from outside; None where its source cannot be read as plain Jinja."""
    environment = jinja2.Environment(extensions=[jinja2.ext.loopcontrols, _Generation])
    try:
        return jinja2.meta.find_undeclared_variables(environment.parse(template))
    except jinja2.TemplateError:
        return None


class _Generation(jinja2.ext.Extension):
    """transformers' `{% generation %}` blocks: their body, as it stands."""

    tags = {"generation"}  # noqa: RUF012  (jinja2's own type)

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
