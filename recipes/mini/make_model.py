"""Starting models of the mini suite: ``python -m recipes.mini.make_model --task chain_sum --out DIR``.

The quickstart's warm-up for any task: a Qwen3 of half a million parameters imitates responses with slips, and, behind
a demonstration, responses without.
"""

import argparse
import random
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from recipes.mini.task import DEMONSTRATION_PHRASE, RETRY_PHRASE, Slip, Task, no_slip
from recipes.mini.tasks import TASKS
from recipes.mini.verifier import compute_score
from recipes.quickstart.make_model import Example, build_model, imitate, make_once, sample_responses
from recipes.quickstart.tokenizer import build_tokenizer


@dataclass(frozen=True)
class Settings:
    """What the finished model depends on; a model is made again when any of it changes."""

    task: str
    seed: int = 0
    steps: int = 1000
    batch_size: int = 32
    learning_rate: float = 2e-3
    learning_rate_warmup: int = 50
    demonstration_share: float = 0.4  # of the examples
    repeat_share: float = 0.5  # of the examples with a demonstration, those in its form
    noise: float | None = field(default=None)  # probability of a slip in a step of a plain example; None: the task's


def tokenizer_of(task: Task) -> PreTrainedTokenizerFast:
    """One token for each phrase, word and character of the task."""
    phrases = (task.system_prompt, DEMONSTRATION_PHRASE, RETRY_PHRASE)
    return build_tokenizer(phrases, (*task.characters, "\n"), task.phrases)


def draw_example(task: Task, settings: Settings, rng: random.Random) -> Example:
    """One warm-up example."""
    question = task.sample("warmup", rng).text
    form = task.draw_form(rng)
    if rng.random() >= settings.demonstration_share:
        noise = task.noise if settings.noise is None else settings.noise
        return task.messages(question), task.respond(question, slip=Slip(noise, rng), **form)
    demonstration = task.respond(question, slip=no_slip(), **form)
    if rng.random() >= settings.repeat_share:
        form = task.draw_form(rng)
    return task.messages(question, demonstration), task.respond(question, slip=no_slip(), **form)


def warm_up(settings: Settings) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast, list[float]]:
    """Trains a model from scratch; returns it with its tokenizer and the loss of every step, in nats per token."""
    task = TASKS[settings.task]
    tokenizer = tokenizer_of(task)
    model = build_model(tokenizer, settings.seed)
    rng = random.Random(f"warmup-{task.name}-{settings.seed}")
    losses = imitate(model, tokenizer, lambda: draw_example(task, settings, rng), settings)
    return model, tokenizer, losses


def evaluate(
    task: Task, model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, *, count: int, seed: int = 0
) -> dict[str, float]:
    """Accuracy on validation questions at temperature 1, without and with a demonstration of a random form."""
    rng = random.Random(f"evaluation-{seed}")
    questions = task.questions("validation", count, seed)
    shown = [task.respond(question.text, slip=no_slip(), **task.draw_form(rng)) for question in questions]
    results = {}
    for name, demonstrations in (("plain", [None] * count), ("demonstration", shown)):
        chats = [task.messages(question.text, text) for question, text in zip(questions, demonstrations, strict=True)]
        responses = sample_responses(model, tokenizer, chats, max_new_tokens=task.max_response_tokens, seed=seed)
        scores = [
            compute_score(task.data_source, response, question.ground_truth)["acc"]
            for question, response in zip(questions, responses, strict=True)
        ]
        results[f"accuracy_{name}"] = sum(scores) / count
    return results


def make_model(settings: Settings, out: Path, *, evaluation_questions: int = 512) -> dict:
    """Makes the model unless `out` holds it already; returns its record."""
    task = TASKS[settings.task]
    return make_once(
        settings,
        out,
        warm_up,
        lambda model, tokenizer: evaluate(task, model, tokenizer, count=evaluation_questions),
        evaluation_questions,
    )


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of the model and its tokenizer")
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--noise", type=float, default=None, help="of the plain examples (default: the task's)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads; one is fastest for a model this small")
    arguments = parser.parse_args(argv)
    if arguments.steps < 1:
        parser.error(f"--steps must be at least 1, got {arguments.steps}")
    torch.set_num_threads(arguments.threads)
    settings = Settings(arguments.task, seed=arguments.seed, steps=arguments.steps, noise=arguments.noise)
    make_model(settings, arguments.out)


if __name__ == "__main__":
    main()
