"""Verifiers: what a response earns. One module per rule; `compute_score` is the function a veRL config names.

reward.custom_reward_function.path=pkg://srpo_verl.rewards
reward.custom_reward_function.name=compute_score
+reward.custom_reward_function.reward_kwargs.strict=true      (Tool Use only, see docs/verifiers.md)
"""

from __future__ import annotations

from typing import Any

from srpo_verl.rewards import math, sciknoweval, tooluse

__all__ = ["DATA_SOURCES", "FEEDBACK_TEXTS", "compute_score", "ground_truth_doubts", "validate_ground_truth"]

DATA_SOURCES = ("sciknoweval", "tooluse", "math")

FEEDBACK_TEXTS = (
    sciknoweval.FEEDBACK_WRONG,
    sciknoweval.FEEDBACK_FORMAT,
    tooluse.FEEDBACK_FORMAT,
    tooluse.FEEDBACK_NO_JSON,
    tooluse.FEEDBACK_NAMES,
    tooluse.FEEDBACK_INPUTS,
    math.FEEDBACK_WRONG,
    math.FEEDBACK_FORMAT,
)
"""Everything that the `feedback` of a response can say."""

# What veRL's reward managers pass besides the arguments of the signature when a reward model runs.
_VERL_ARGUMENTS = frozenset({"reward_router_address", "reward_model_tokenizer"})


def _rule_of(data_source: Any) -> str:
    """The part before the first "/": "sciknoweval/chemistry" is scored as sciknoweval and reported by itself."""
    rule = data_source.split("/", 1)[0] if isinstance(data_source, str) else ""
    if rule not in DATA_SOURCES:
        known = ", ".join(DATA_SOURCES)
        raise ValueError(f"data_source={data_source!r}: unknown; known are {known}, each also as '<name>/<anything>'")
    return rule


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: dict[str, Any] | None = None,
    strict: bool = False,
    **kwargs: Any,
) -> dict[str, Any]:
    """Score one response; veRL calls this for every rollout.

    No response makes this raise, run for more than seconds or take unbounded memory; a wrong *setting* does raise.
    A ground truth that cannot be read scores 0 here, and stops the data preparation (`validate_ground_truth`).

    Args:
        data_source: "sciknoweval", "tooluse" or "math", optionally followed by "/" and a benchmark's name.
        solution_str: the response.
        ground_truth: a letter; a JSON list of calls; a mathematical answer.
        extra_info: veRL's columns for the row; no rule reads them.
        strict: Tool Use: match inputs call by call. Without effect on the other rules.
        **kwargs: only what veRL's reward managers pass for reward models; not used.

    Returns:
        score: 1.0 or 0.0. acc: the same, the name under which veRL reports accuracy. pred: the answer as read.
        format_ok: True where the response has the form the prompt asks for. feedback: a sentence on what is wrong,
        '' if nothing is; always one of a few fixed sentences, so it cannot hold the answer.

    Raises:
        ValueError: unknown data source, or a keyword in ``reward_kwargs`` that does not exist.
    """
    if unknown := sorted(set(kwargs) - _VERL_ARGUMENTS):
        raise ValueError(
            f"reward.custom_reward_function.reward_kwargs.{unknown[0]}={kwargs[unknown[0]]!r}: unknown; only 'strict'"
        )
    rule = _rule_of(data_source)
    response = solution_str if isinstance(solution_str, str) else ""
    if rule == "sciknoweval":
        return sciknoweval.compute_score(response, ground_truth)
    if rule == "tooluse":
        return tooluse.compute_score(response, ground_truth, strict=strict)
    return math.compute_score(response, ground_truth)


def validate_ground_truth(data_source: str, ground_truth: Any) -> None:
    """Raise ValueError, with the reason, for a gold answer that the rule cannot read."""
    module = {"sciknoweval": sciknoweval, "tooluse": tooluse, "math": math}[_rule_of(data_source)]
    module.validate_ground_truth(ground_truth)


def ground_truth_doubts(data_source: str, ground_truth: Any) -> list[str]:
    """What a reader of a valid gold answer would not expect of the rule, one sentence each; mostly nothing."""
    return tooluse.ground_truth_doubts(ground_truth) if _rule_of(data_source) == "tooluse" else []
