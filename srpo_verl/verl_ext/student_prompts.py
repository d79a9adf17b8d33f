"""Conversations as token ids, exactly as veRL's agent loops render the student's prompts, tools included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from omegaconf import DictConfig
from verl.tools.tool_registry import load_all_tools
from verl.utils.import_utils import resolve_config_path
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[dict[str, Any]]
"""OpenAI schemas of the tools that a chat template shows to the model."""

THINKING_TAGS = {"<think>", "</think>"}


class StudentPrompts:
    """Renders with the builder of veRL's own agent loops, so that student and teacher cannot be formatted differently.

    Args:
        tokenizer: with the chat template.
        hf_model_type: of the model's configuration; picks veRL's builder.
        chat_template_kwargs: data.apply_chat_template_kwargs.
        tools: schemas of every tool that the run has.
        max_prompt_length: veRL cuts a longer student's prompt on the left.
    """

    def __init__(
        self,
        tokenizer: Any,
        hf_model_type: str,
        chat_template_kwargs: Mapping[str, Any],
        tools: Tools = (),
        max_prompt_length: int | None = None,
    ):
        self.tokenizer = tokenizer
        self.tools = {tool["function"]["name"]: tool for tool in tools}
        self.max_prompt_length = max_prompt_length
        self._builder = create_continuous_token_builder(
            tokenizer, hf_model_type=hf_model_type, chat_template_kwargs=chat_template_kwargs
        )
        self._warned = False

    def render(self, messages: Messages, tools: Tools = ()) -> list[int]:
        """Token ids of the conversation, with the header of the assistant's next turn."""
        return self._builder.build_initial_tokens(list(messages), tools=list(tools) or None)

    def tools_of_rows(
        self, uids: Sequence[str], messages: Sequence[Messages], prompts: Sequence[torch.Tensor], infos: Sequence[Any]
    ) -> list[Tools]:
        """`tools_shown` of every row; the rows of a group have one prompt."""
        shown: dict[str, Tools] = {}
        for uid, conversation, ids, info in zip(uids, messages, prompts, infos, strict=True):
            if uid not in shown:
                shown[uid] = self.tools_shown(conversation, ids.tolist(), info)
        return [shown[uid] for uid in uids]

    def tools_shown(self, messages: Messages, prompt_ids: list[int], extra_info: Any) -> Tools:
        """The tools in the student's prompt: what veRL rendered says so, since it does not keep which loop ran.

        Of the tools that the row selects (extra_info.tool_selection, else all) and none, the choice whose rendering is
        the prompt. If neither is (a template that writes the time, an agent loop with a prompt of its own), the one
        nearer in length, and a warning once.
        """
        if not self.tools:
            return ()
        selection = extra_info.get("tool_selection") if isinstance(extra_info, Mapping) else None
        names = list(self.tools if selection is None else selection) or list(self.tools)
        chosen = [self.tools[name] for name in names if name in self.tools]
        rendered: list[tuple[Tools, list[int]]] = [(tools, self.render(messages, tools)) for tools in (chosen, ())]
        for tools, ids in rendered:
            if prompt_ids == (ids if self.max_prompt_length is None else ids[-self.max_prompt_length :]):
                return tools
        if not self._warned:
            self._warned = True
            print(
                "srpo_verl: a student's prompt is not what the chat template makes of its messages, with tools or "
                "without; the teacher's prompt is made by the template"
            )
        return min(rendered, key=lambda choice: abs(len(choice[1]) - len(prompt_ids)))[0]

    def structure(self) -> set[str]:
        """Texts that the tokenizer reads as one token and the template builds turns of; special tokens in any case.

        Some tokenizers do not call the tokens special that open a turn.
        """
        used = set(self.render([{"role": "user", "content": "x"}]))
        added = self.tokenizer.added_tokens_decoder
        building = {token.content for index, token in added.items() if token.special or index in used}
        return (building | set(self.tokenizer.all_special_tokens)) - THINKING_TAGS

    def decode(self, token_ids: list[int], skip_special_tokens: bool) -> str:
        return self.tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)


def configured_tools(config: DictConfig) -> list[dict[str, Any]]:
    """Schemas of the tools of rollout.multi_turn, as veRL's agent loops hand them to the chat template."""
    multi_turn = config.actor_rollout_ref.rollout.multi_turn
    paths = {name: multi_turn.get(name) for name in ("tool_config_path", "function_tool_path")}
    tools = load_all_tools(**{name: resolve_config_path(path) if path else None for name, path in paths.items()})
    return [tool.tool_schema.model_dump(exclude_unset=True, exclude_none=True) for tool in tools]
