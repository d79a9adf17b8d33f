"""One SRPO training step from the equations alone: plain transformers, float64, no batching, autograd throughout.

Shares no line with the package. Where the package chunks, packs, shards and recomputes, this loops over tokens' rows
and writes the formulas out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.utils.parametrize
from transformers import AutoModelForCausalLM


def run(
    model_path: Path,
    batch: dict[str, list[torch.Tensor]],
    *,
    grpo: list[float],
    sdpo: list[float],
    advantages: list[float],
    steps: int,
    temperature: float,
    top_k: int | None,
    learning_rate: float,
    adam_eps: float,
    ema_rate: float,
    beta: float = 1.0,
    floor: float = 0.0,
    coefficients: list[float] | None = None,
    pass_rates: list[float] | None = None,
    groups: list[str] | None = None,
    credit_rows: list[bool] | None = None,
    credit_epsilon: float = 0.0,
    credit_shares: Sequence[float] = (),
    clip_grad: float = 1.0,
    teacher_kind: str = "ema",
    mini_batches: list[list[int]] | None = None,
    adapter: dict[str, torch.Tensor] | None = None,
    adapter_scale: float = 1.0,
    kl_coef: float | None = None,
    rejected: Sequence[tuple[int, int]] = (),
) -> dict[str, Any]:
    """Returns metrics per step, final student and teacher weights. Defaults are the paper's (Table 3).

    `grpo` and `sdpo` are g and d of every row; `coefficients`, one for every step, lead them to GRPO. With the rows'
    `pass_rates`, d is multiplied by the weight of the row's prompt, of which `groups` are the names.
    The teacher scales the advantages of `credit_rows`, token by token, by at most 1 - or + `credit_epsilon`; of that
    factor the part of the step in `credit_shares` is taken.

    With `adapter`, weights A and B by peft's names, only they are trained and averaged, and they are what is returned;
    `merged` is then the student with scale * B A added to its weights.

    A token (row, position) in `rejected` has importance weight 0; it counts in every mean.

    With `kl_coef`, Schulman's third estimator of KL(student || initial model) on the rows of the policy loss.
    """
    reference = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float64)
    student = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float64)
    teacher = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float64)
    learned, averaged = list(student.parameters()), list(teacher.parameters())
    if adapter is not None:
        learned = _attach(student, adapter, adapter_scale)
        averaged = _attach(teacher, adapter, adapter_scale)
    optimizer = torch.optim.AdamW(learned, lr=learning_rate, weight_decay=0.01, eps=adam_eps)
    every_row = list(range(len(batch["responses"])))
    history = []

    def response_log_probs(model: Any, context: torch.Tensor, response: torch.Tensor) -> torch.Tensor:
        logits = model(torch.cat([context, response])[None]).logits[0]
        first = len(context) - 1
        return torch.log_softmax(logits[first : first + len(response)] / temperature, dim=-1)

    def sampled_log_probs(row: int) -> tuple[torch.Tensor, torch.Tensor]:
        response = batch["responses"][row]
        log_p = response_log_probs(student, batch["prompts"][row], response)
        return log_p, log_p[torch.arange(len(response)), response]

    full_grpo, full_sdpo = grpo, sdpo
    for step in range(steps):
        if coefficients is not None:
            # A mixture of the routing with GRPO, where every row has g = 1 and d = 0.
            s = coefficients[step]
            grpo, sdpo = [s * g + (1 - s) for g in full_grpo], [s * d for d in full_sdpo]
        scorer = student if teacher_kind == "live" else teacher
        # Old policy, support and teacher are those before the first optimizer step of the training step.
        with torch.no_grad():
            teacher_log_probs = {
                row: response_log_probs(
                    scorer,
                    batch["teacher"][row][: len(batch["teacher"][row]) - len(batch["responses"][row])],
                    batch["responses"][row],
                )
                for row in every_row
                if sdpo[row] > 0 or (credit_rows is not None and credit_rows[row])
            }
            before = {row: sampled_log_probs(row) for row in every_row}
        entries = []
        for rows in mini_batches or [every_row]:
            num_tokens = sum(int(batch["response_mask"][row].sum()) for row in rows)
            distilled = [row for row in rows if sdpo[row] > 0]
            prompt_weights = _prompt_weights(distilled, pass_rates, groups)
            raw_weights = {
                row: torch.exp(beta * (teacher_log_probs[row].exp() * teacher_log_probs[row]).sum(-1)).clamp(min=floor)
                * batch["response_mask"][row]
                for row in distilled
            }
            omega = sum(int(batch["response_mask"][row].sum()) for row in distilled)
            mean_weight = sum(w.sum() for w in raw_weights.values()) / max(1, omega)

            clipping: list[torch.Tensor] = []  # per GRPO token: clipped, clipped from below, minus the log-ratio
            grpo_sum = kl_sum = sdpo_sum = divergence_sum = torch.zeros((), dtype=torch.float64)
            for row in rows:
                mask = batch["response_mask"][row]
                log_p, sampled = sampled_log_probs(row)
                old_log_p, old = before[row][0], before[row][1] + batch["log_ratio_noise"][row].double()
                kept = torch.tensor([(row, position) not in rejected for position in range(len(mask))])
                correction = batch["rollout_is_weights"][row].double() * kept
                ratio = torch.exp(sampled - old)
                if grpo[row] > 0:
                    advantage = torch.full_like(ratio.detach(), advantages[row])
                    if credit_rows is not None and credit_rows[row]:
                        log_q = teacher_log_probs[row][torch.arange(len(old)), batch["responses"][row]]
                        by_teacher = torch.exp(log_q) / torch.exp(old)
                        if advantages[row] < 0:
                            by_teacher = 1 / by_teacher
                        by_teacher = by_teacher.clamp(1 - credit_epsilon, 1 + credit_epsilon)
                        advantage = (
                            advantage * (1 - credit_shares[step]) + advantage * by_teacher * credit_shares[step]
                        )
                    token = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.28) * advantage)
                    if advantages[row] < 0:
                        token = torch.minimum(token, -3.0 * advantage)
                    bound = torch.where(ratio < 0.8, 0.8, torch.where(ratio > 1.28, 1.28, ratio)).detach()
                    binds, caps = -advantage * bound > -advantage * ratio, (advantage < 0) & (ratio.clamp(min=0.8) > 3)
                    clipping.append(torch.stack([binds, caps, old - sampled]).T.detach()[mask.bool() & kept])
                    kl = torch.zeros_like(token)
                    if kl_coef is not None:
                        base = response_log_probs(reference, batch["prompts"][row], batch["responses"][row]).detach()
                        gap = base[torch.arange(len(mask)), batch["responses"][row]] - sampled
                        kl = gap.exp() - gap - 1
                    grpo_sum = (
                        grpo_sum + grpo[row] * ((token * correction + (kl_coef or 0.0) * kl * kept) * mask).sum()
                    )
                    kl_sum = kl_sum + grpo[row] * (kl.detach() * kept * mask).sum()
                if sdpo[row] > 0:
                    support = None if top_k is None else old_log_p.topk(top_k, dim=-1).indices
                    divergence = _jensen_shannon(log_p, teacher_log_probs[row], support)
                    weight = raw_weights[row] / mean_weight
                    truncated = ratio.detach().clamp(max=2.0)
                    sdpo_sum = (
                        sdpo_sum
                        + sdpo[row] * prompt_weights[row] * (weight * divergence * truncated * correction * mask).sum()
                    )
                    divergence_sum = divergence_sum + (divergence.detach() * mask).sum()

            grpo_loss, sdpo_loss = grpo_sum / num_tokens, sdpo_sum / num_tokens
            optimizer.zero_grad()
            (grpo_loss + sdpo_loss).backward()
            grad_norm = torch.nn.utils.clip_grad_norm_(learned, clip_grad)
            optimizer.step()
            entry = {
                "srpo/grpo_loss": grpo_loss.item(),
                "srpo/sdpo_loss": sdpo_loss.item(),
                "srpo/loss": (grpo_loss + sdpo_loss).item(),
                "grad_norm": grad_norm.item(),
            }
            if sum(map(len, clipping)):
                names = ("actor/pg_clipfrac", "actor/pg_clipfrac_lower", "actor/ppo_kl")
                entry |= dict(zip(names, torch.cat(clipping).mean(dim=0).tolist(), strict=True))
            if kl_coef is not None:
                entry["kl_loss"] = (kl_sum / num_tokens).item()
            if omega:
                masks = {row: batch["response_mask"][row].bool() for row in distilled}
                weights = torch.cat([raw_weights[row][masks[row]] for row in distilled]) / mean_weight
                entropies = torch.cat(
                    [-(q.exp() * q).sum(-1)[masks[row]] for row, q in teacher_log_probs.items() if row in masks]
                )
                entry |= {
                    "srpo/student_teacher_divergence": (divergence_sum / omega).item(),
                    "srpo/teacher_entropy_mean": entropies.mean().item(),
                    "srpo/weight_mean": weights.mean().item(),
                    "srpo/weight_std": weights.std(unbiased=False).item(),
                    "srpo/weight_max": weights.max().item(),
                }
            entries.append(entry)

        if teacher_kind == "ema":
            with torch.no_grad():
                for average, source in zip(averaged, learned, strict=True):
                    average.mul_(1 - ema_rate).add_(ema_rate * source)
        # A metric of the step is the mean over the optimizer steps that have it.
        found = {key: [entry[key] for entry in entries if key in entry] for key in set().union(*entries)}
        summary = {key: sum(values) / len(values) for key, values in found.items()}
        if teacher_kind != "live":
            pairs = list(zip(averaged, learned, strict=True))
            distance = sum((a - b).square().sum() for a, b in pairs) / sum(b.square().sum() for _, b in pairs)
            summary["srpo/teacher_distance"] = distance.sqrt().item()
        history.append(summary)

    if adapter is not None:
        parts = {"student": learned, "teacher": averaged}
        final = {
            part: {name: value.detach().float() for name, value in zip(adapter, values, strict=True)}
            for part, values in parts.items()
        }
        return {"metrics": history, **final, "merged": _merged(student)}
    return {"metrics": history, "student": _weights(student), "teacher": _weights(teacher)}


def _prompt_weights(
    distilled: list[int], pass_rates: list[float] | None, groups: list[str] | None
) -> dict[int, float]:
    """sqrt(p (1 - p)) of the row's prompt over its mean over the prompts that distil; 1 without pass rates."""
    if pass_rates is None or groups is None:
        return dict.fromkeys(distilled, 1.0)
    of_prompt = {groups[row]: (pass_rates[row] * (1 - pass_rates[row])) ** 0.5 for row in distilled}
    mean = sum(of_prompt.values()) / max(1, len(of_prompt))
    return {row: of_prompt[groups[row]] / mean for row in distilled}


def _jensen_shannon(log_p: torch.Tensor, log_q: torch.Tensor, support: torch.Tensor | None) -> torch.Tensor:
    """JSD over the support and one bucket for the rest, from probabilities."""
    p, q = log_p.exp(), log_q.exp()
    if support is not None:
        p_k, q_k = p.gather(-1, support), q.gather(-1, support)
        p = torch.cat([p_k, 1 - p_k.sum(-1, keepdim=True)], dim=-1)
        q = torch.cat([q_k, 1 - q_k.sum(-1, keepdim=True)], dim=-1)
    m = (p + q) / 2
    return 0.5 * (p * (p / m).log()).sum(-1) + 0.5 * (q * (q / m).log()).sum(-1)


def _weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().float() for name, value in model.state_dict().items()}


class _LowRank(torch.nn.Module):
    """W + scale * B A, as a parametrization of W."""

    def __init__(self, a: torch.Tensor, b: torch.Tensor, scale: float):
        super().__init__()
        self.a, self.b, self.scale = torch.nn.Parameter(a.double()), torch.nn.Parameter(b.double()), scale

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.scale * self.b @ self.a


def _attach(model: Any, adapter: dict[str, torch.Tensor], scale: float) -> list[torch.Tensor]:
    """Freeze the model, put the adapter on it, and return the adapter's parameters in its order."""
    model.requires_grad_(False)
    low_rank = {}
    for name in adapter:
        path = name.split(".lora_")[0]
        if path not in low_rank:
            low_rank[path] = _LowRank(adapter[f"{path}.lora_A.weight"], adapter[f"{path}.lora_B.weight"], scale)
            layer = model.get_submodule(path.removeprefix("base_model.model."))
            torch.nn.utils.parametrize.register_parametrization(layer, "weight", low_rank[path])
    return [getattr(low_rank[name.split(".lora_")[0]], "a" if ".lora_A." in name else "b") for name in adapter]


def _merged(model: Any) -> dict[str, torch.Tensor]:
    """Weights with the adapter added, under the names of a model without one."""
    merged = {}
    for name, value in model.state_dict().items():
        if ".parametrizations.weight.original" in name:
            path = name.removesuffix(".parametrizations.weight.original")
            merged[f"{path}.weight"] = model.get_submodule(path).weight.detach().float()
        elif ".parametrizations." not in name:
            merged[name] = value.detach().float()
    return merged
