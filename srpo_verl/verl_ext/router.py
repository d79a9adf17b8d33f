"""Routing one sampled batch in the trainer: who is distilled, towards what, and with which teacher prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from srpo_verl.config.schema import SrpoConfig
from srpo_verl.functional import Routing, route_samples
from srpo_verl.teacher.dialogue import DialogueText
from srpo_verl.teacher.memory import SuccessMemory, prompt_id
from srpo_verl.teacher.reprompt import Reprompt, build_reprompt
from srpo_verl.verl_ext.demonstrations import FEEDBACK, MEMORY, NOTHING, REFERENCE, SIBLING, Demonstrations, Shown


@dataclass(frozen=True)
class Rollouts:
    """What routing needs to know of B rollouts; a plain view of veRL's batch."""

    keys: Sequence[str]
    """veRL's row keys, "{uid}_{session}_{index}"."""
    uids: Sequence[str]
    rewards_B: torch.Tensor
    responses: Sequence[torch.Tensor]
    """Response token ids: the model's, and in agent loops with tools the tools'."""
    response_masks: Sequence[torch.Tensor]
    """1 where a response token counts in the loss, that is where the model wrote it."""
    messages: Sequence[Sequence[dict[str, Any]]]
    """The student's conversation of each row, as the prompt holds it."""
    tools: Sequence[Sequence[dict[str, Any]]]
    """Schemas of the tools that each row's prompt shows."""
    feedback: Sequence[str]
    """The verifier's words on each row, or ""."""
    references: Sequence[str] = ()
    """The data set's own solution of each row, or ""; nothing where no source reads it."""
    verdicts: Sequence[Mapping[str, Any]] = ()
    """What the verifier says of each row besides its reward."""


@dataclass(frozen=True)
class RoutedBatch:
    """The routing and, in the order of the rows, what the teacher is shown and its prompt (None: it is not asked)."""

    routing: Routing
    shown: list[Shown | None]
    reprompts: list[Reprompt | None]
    metrics: dict[str, float]


class Router:
    """Routes whole groups and builds the teacher's prompts.

    Args:
        srpo: the configuration group.
        text: writes rollouts as text.
        render: (conversation, schemas of tools) -> token ids, exactly as the student's prompts are rendered.
        seed: of the choice of demonstrations with demonstration.select=random.
    """

    def __init__(
        self,
        srpo: SrpoConfig,
        text: DialogueText,
        render: Callable[[Sequence[dict[str, Any]], Sequence[dict[str, Any]]], list[int]],
        seed: int,
    ):
        self.srpo, self.text, self.render, self.seed = srpo, text, render, seed
        memory = srpo.demonstration.memory
        self.memory = SuccessMemory(memory.per_prompt, memory.max_prompts) if srpo.remembers else None

    def route(self, rollouts: Rollouts, step: int) -> RoutedBatch:
        """Route one training step's rollouts. Raises ValueError where a row is not the only output of its session."""
        _check_rewards(rollouts)
        order = _session_order(rollouts.keys)
        lengths_B = torch.tensor([len(response) for response in rollouts.responses])
        coefficient = self.srpo.schedule.coefficient(step)
        demonstrations = self._demonstrations(rollouts)
        information = [
            bool(self._feedback(rollouts, row)) or demonstrations.besides_siblings(row)
            for row in range(len(rollouts.keys))
        ]
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        in_order = route_samples(
            rollouts.rewards_B[order],
            [rollouts.uids[row] for row in order.tolist()],
            success_threshold=self.srpo.success_threshold,
            feedback_B=torch.tensor(information)[order],
            select=self.srpo.demonstration.select,
            routing=self.srpo.routing,
            generator=generator,
            lengths_B=lengths_B[order],
            siblings_teach="sibling" in self.srpo.demonstration.sources,
            step=step,
            coefficient=coefficient,
            skip_certain_prompts=self.srpo.weighting.pass_rate,
            mix_lambda=self.srpo.mix_lambda,
            negative_advantage=self.srpo.negative_advantage,
        )
        routing = _restore(in_order, order)
        # The rows whose teacher is asked: to be distilled from, or for credit by all that have one and take GRPO.
        asks_B = routing.sdpo_B
        if self.srpo.gives_credit:
            asks_B = routing.teacher_B & routing.grpo_B & (self.srpo.credit_share(step) > 0)
        shown = [
            demonstrations.of(row, int(routing.sibling_B[row])) if bool(asks_B[row]) else None
            for row in range(len(rollouts.keys))
        ]
        made: dict[tuple[str | None, ...], Reprompt] = {}  # rows of a prompt that are shown the same have the same
        reprompts = [
            self._reprompt(rollouts, row, demonstration, made) if demonstration is not None else None
            for row, demonstration in enumerate(shown)
        ]
        metrics = {
            "srpo/distillation_coefficient": coefficient,
            **_metrics(routing, rollouts, reprompts),
            **_source_metrics(shown),
        }
        if self.memory is not None:
            # After the choice: a row is never shown what its own step found. A schedule that has ended asks no more.
            metrics["srpo/memory_forgotten"] = demonstrations.remember(order.tolist()) if coefficient > 0 else 0
            metrics["srpo/memory_prompts"] = self.memory.prompts
            metrics["srpo/memory_responses"] = self.memory.responses
        return RoutedBatch(routing, shown, reprompts, metrics)

    def _demonstrations(self, rollouts: Rollouts) -> Demonstrations:
        threshold = self.srpo.success_threshold
        prompts = list(zip(rollouts.messages, rollouts.tools, strict=True)) if self.memory is not None else []
        return Demonstrations(
            self.srpo.demonstration.sources if self.srpo.uses_teacher else (),
            text_of=lambda row: self._demonstration(rollouts, row),
            prompts=[prompt_id(messages, tools) for messages, tools in prompts],
            correct=[reward >= threshold for reward in rollouts.rewards_B.tolist()],
            memory=self.memory,
            references=[self.text.inert(reference) for reference in rollouts.references],
            show=self.srpo.demonstration.show,
        )

    def _reprompt(
        self, rollouts: Rollouts, row: int, demonstration: Shown, made: dict[tuple[str | None, ...], Reprompt]
    ) -> Reprompt:
        feedback = self.text.inert(self._feedback(rollouts, row))
        key = rollouts.uids[row], demonstration.source, demonstration.text, feedback
        if key not in made:
            made[key] = self._render(rollouts, row, demonstration, feedback)
        return made[key]

    def _render(self, rollouts: Rollouts, row: int, demonstration: Shown, feedback: str) -> Reprompt:
        if demonstration.source == NOTHING:
            return Reprompt(self.render(rollouts.messages[row], rollouts.tools[row]), truncated=False)
        return build_reprompt(
            rollouts.messages[row],
            demonstration.text,
            feedback,
            render=lambda messages: self.render(messages, rollouts.tools[row]),
            max_prompt_tokens=self.srpo.demonstration.max_prompt_tokens,
        )

    def _demonstration(self, rollouts: Rollouts, row: int) -> str:
        """What a row did, whole: the assistant's turns, its tool calls and what the tools said."""
        return self.text.of_response(
            rollouts.responses[row].tolist(),
            rollouts.response_masks[row].tolist(),
            without_thinking=self.srpo.demonstration.strip_thinking,
        )

    def _feedback(self, rollouts: Rollouts, row: int) -> str:
        """The verifier's words on a failed attempt, where they are wanted; a correct one needs none."""
        failed = float(rollouts.rewards_B[row]) < self.srpo.success_threshold
        return rollouts.feedback[row] if failed and self.srpo.demonstration.environment_feedback else ""


def _check_rewards(rollouts: Rollouts) -> None:
    bad = (~torch.isfinite(rollouts.rewards_B)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"row {rollouts.keys[bad[0]]}: the reward is {float(rollouts.rewards_B[bad[0]])} ({len(bad)} rows of "
            f"{len(rollouts.keys)}); the reward function (reward.custom_reward_function) has to return a finite number"
        )


def _session_order(keys: Sequence[str]) -> torch.Tensor:
    """Rows by session within veRL's keys, so that "first" means the first session and not the first to finish."""
    sessions = []
    for key in keys:
        _, session, index = key.rsplit("_", 2)
        if int(index) > 0:
            raise ValueError(
                f"row {key}: the agent loop returned several outputs for one session, which routing does not support; "
                "use an agent loop with one output per session, as veRL's single_turn_agent and tool_agent are "
                "(actor_rollout_ref.rollout.agent.default_agent_loop, or the column agent_name of the data)"
            )
        sessions.append(int(session))
    return torch.tensor(sorted(range(len(keys)), key=lambda row: sessions[row]), dtype=torch.int64)


def _restore(in_order: Routing, order: torch.Tensor) -> Routing:
    """Put a routing of rows[order] back into the order of the rows."""
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    sibling = in_order.sibling_B
    original = torch.where(sibling >= 0, order[sibling.clamp(min=0)], sibling) if len(order) else sibling
    restored = {field.name: getattr(in_order, field.name)[place] for field in fields(Routing)}
    return Routing(**{**restored, "sibling_B": original[place]})


def _metrics(routing: Routing, rollouts: Rollouts, reprompts: list[Reprompt | None]) -> dict[str, float]:
    """The routing metrics; every share is of all rollouts of the step, or of all groups where the name says so."""
    tokens_B = torch.tensor([int(mask.sum()) for mask in rollouts.response_masks])
    distilled = routing.sdpo_B.tolist()
    metrics = {
        "srpo/frac_correct": routing.correct_B.double().mean().item(),
        "srpo/frac_sdpo": routing.sdpo_B.double().mean().item(),
        "srpo/frac_grpo": routing.grpo_B.double().mean().item(),
        "srpo/sdpo_share_mean": routing.sdpo_share_B.double().mean().item(),
        "srpo/grpo_share_mean": routing.grpo_share_B.double().mean().item(),
        "srpo/frac_teacher_available": routing.teacher_B.double().mean().item(),
        **_pass_rate_metrics(dict(zip(rollouts.uids, routing.pass_rate_B.tolist(), strict=True))),
        "srpo/sdpo_tokens": int(tokens_B[routing.sdpo_B].sum()),
        "srpo/grpo_tokens": int(tokens_B[routing.grpo_B].sum()),
        "srpo/frac_credit": sum(asked is not None and not d for asked, d in zip(reprompts, distilled, strict=True))
        / len(distilled),
        "srpo/without_teacher": float(not any(reprompts)),
    }
    built = [reprompt for reprompt in reprompts if reprompt is not None]
    if built:
        metrics["srpo/reprompt_tokens_mean"] = sum(len(reprompt.token_ids) for reprompt in built) / len(built)
        metrics["srpo/frac_reprompt_truncated"] = sum(reprompt.truncated for reprompt in built) / len(built)
    return metrics


def _pass_rate_metrics(pass_rates: dict[str, float]) -> dict[str, float]:
    """How the groups' pass rates are distributed: four shares that add up to 1."""
    count, rates = len(pass_rates), pass_rates.values()
    return {
        "srpo/frac_all_failed_groups": sum(rate == 0 for rate in rates) / count,
        "srpo/frac_mostly_failed_groups": sum(0 < rate < 0.5 for rate in rates) / count,
        "srpo/frac_mostly_correct_groups": sum(0.5 <= rate < 1 for rate in rates) / count,
        "srpo/frac_all_correct_groups": sum(rate == 1 for rate in rates) / count,
    }


def _source_metrics(shown: list[Shown | None]) -> dict[str, float]:
    """Where the demonstrations came from: shares that add up to srpo/frac_sdpo and frac_credit."""
    sources = [demonstration.source for demonstration in shown if demonstration is not None]
    return {
        f"srpo/frac_shown_{source}": sources.count(source) / len(shown)
        for source in (SIBLING, MEMORY, REFERENCE, FEEDBACK, NOTHING)
    }
