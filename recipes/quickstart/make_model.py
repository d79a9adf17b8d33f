"""Supervised warm-up of the quickstart model: ``python -m recipes.quickstart.make_model --out DIR``.

SRPO starts from a model that solves some of the questions, and many more once it has seen a correct sibling. Large
models come like that; here 1000 steps of imitation make one. Plain examples have a slip in some of their steps, which
leaves room to learn. Examples with a demonstration have none, so that the self-teacher is worth following. Only half
of these repeat the demonstration's style and order: a model that was always shown the text to copy would, as a
teacher, punish every response that is right in another way.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from recipes.quickstart import task
from recipes.quickstart.tokenizer import build_tokenizer
from recipes.warmup_record import RECORD_NAME, read_finished

Example = tuple[list[dict[str, str]], str]
"""The chat and the response to imitate."""

STYLE_SHARES = (0.35, 0.30, 0.25, 0.10)  # in the order of task.STYLES


@dataclass(frozen=True)
class Settings:
    """What the finished model depends on; a model is made again when any of it changes."""

    steps: int = 1000
    seed: int = 0
    products: int = task.PRODUCTS
    batch_size: int = 32
    learning_rate: float = 2e-3
    learning_rate_warmup: int = 50
    demonstration_share: float = 0.4  # of the examples
    repeat_share: float = 0.5  # of the examples with a demonstration, those in its style and order
    noise: float = 0.1  # probability of a random digit in a step of a plain example


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """A randomly initialised Qwen3 of half a million parameters, in float32; the global random state is left alone."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


def _draw_form(rng: random.Random) -> dict:
    """Style, separator and order of a response."""
    return {
        "style": rng.choices(task.STYLES, STYLE_SHARES)[0],
        "separator": rng.choice(task.SEPARATORS),
        "backwards": rng.random() < 0.5,
    }


def draw_example(settings: Settings, rng: random.Random) -> Example:
    """One warm-up example."""
    question = task.sample_question("warmup", rng, settings.products)
    form = _draw_form(rng)
    if rng.random() >= settings.demonstration_share:
        response = task.render_response(question, **form, noise=settings.noise, rng=rng)
        return task.messages(question), response
    demonstration = task.render_response(question, **form)
    if rng.random() >= settings.repeat_share:
        form = _draw_form(rng)
    return task.messages(question, demonstration), task.render_response(question, **form)


def encode_batch(
    tokenizer: PreTrainedTokenizerFast, examples: list[Example], parts: int = 4
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Token ids and labels (both [B, L]) of the examples, in `parts` chunks from short to long.

    Labels cover the response and its end-of-sequence token; everything else is -100. Padding is on the right, so that
    the causal mask alone hides it; four chunks of like lengths have little of it and save a quarter of the time.
    """
    chats, responses = zip(*examples, strict=True)
    prompts = tokenizer.apply_chat_template(list(chats), add_generation_prompt=True, tokenize=False)
    prompt_ids = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    response_ids = tokenizer(list(responses), add_special_tokens=False)["input_ids"]
    pairs = sorted(zip(prompt_ids, response_ids, strict=True), key=lambda pair: len(pair[0]) + len(pair[1]))
    chunk_size = math.ceil(len(pairs) / parts)
    chunks = []
    for start in range(0, len(pairs), chunk_size):
        chunk = pairs[start : start + chunk_size]
        width = len(chunk[-1][0]) + len(chunk[-1][1]) + 1
        ids_BL = torch.full((len(chunk), width), tokenizer.pad_token_id)
        labels_BL = torch.full((len(chunk), width), -100)
        for row, (prompt, response) in enumerate(chunk):
            sequence = torch.tensor([*prompt, *response, tokenizer.eos_token_id])
            ids_BL[row, : len(sequence)] = sequence
            labels_BL[row, len(prompt) : len(sequence)] = sequence[len(prompt) :]
        chunks.append((ids_BL, labels_BL))
    return chunks


def _learning_rate_factor(step: int, settings: Any) -> float:
    """Half a cosine from 1 to 0 over the whole run, behind a line up."""
    rise = min(1.0, (step + 1) / settings.learning_rate_warmup)
    return rise * 0.5 * (1 + math.cos(math.pi * step / settings.steps))


def imitate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    draw: Callable[[], Example],
    settings: Any,
    *,
    progress: bool = True,
) -> list[float]:
    """Supervised training on drawn examples; returns the loss of every step, in nats per token.

    Args:
        settings: with steps, batch_size, learning_rate and learning_rate_warmup (in steps).
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _learning_rate_factor(step, settings))
    losses: list[float] = []
    model.train()
    with tqdm(total=settings.steps, desc="warm-up", unit="step", mininterval=1.0, disable=not progress) as bar:
        for _ in range(settings.steps):
            chunks = encode_batch(tokenizer, [draw() for _ in range(settings.batch_size)])
            tokens = sum(int((labels_BL != -100).sum()) for _, labels_BL in chunks)
            optimizer.zero_grad(set_to_none=True)
            loss_sum = 0.0
            for ids_BL, labels_BL in chunks:
                logits_BLV = model(input_ids=ids_BL[:, :-1], use_cache=False).logits
                loss = F.cross_entropy(logits_BLV.flatten(0, 1), labels_BL[:, 1:].flatten(), reduction="sum")
                (loss / tokens).backward()
                loss_sum += loss.item()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss_sum / tokens)
            bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
            bar.update()
    model.eval()
    return losses


def warm_up(
    settings: Settings, *, progress: bool = True
) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast, list[float]]:
    """Trains a model from scratch; returns it with its tokenizer and the loss of every step, in nats per token.

    The global random state is left as it was.
    """
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, settings.seed)
    rng = random.Random(f"warmup-{settings.seed}")
    losses = imitate(model, tokenizer, lambda: draw_example(settings, rng), settings, progress=progress)
    return model, tokenizer, losses


@torch.no_grad()
def sample_responses(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    chats: list[list[dict[str, str]]],
    *,
    max_new_tokens: int,
    seed: int = 0,
) -> list[str]:
    """One response per chat at temperature 1, all in one batch; a response that never ends comes back without end."""
    prompts = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
    batch = tokenizer(prompts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        output_BL = model.generate(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=max_new_tokens
        )
    return tokenizer.batch_decode(output_BL[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def evaluate(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    *,
    products: int = task.PRODUCTS,
    questions: int = 1024,
    seed: int = 0,
) -> dict[str, float]:
    """Accuracy on held-out questions at temperature 1, without and with a demonstration of a randomly drawn form."""
    rng = random.Random(f"evaluation-{seed}")
    held_out = task.sample_questions("test", questions, seed, products)
    demonstrations = [task.render_response(question, **_draw_form(rng)) for question in held_out]
    accuracy = {}
    for name, given in (("plain", [None] * questions), ("demonstration", demonstrations)):
        chats = [task.messages(question, text) for question, text in zip(held_out, given, strict=True)]
        # A few tokens more than the longest finished response has, or the verifier could take a cut for an end.
        responses = sample_responses(model, tokenizer, chats, max_new_tokens=12 * products + 4, seed=seed)
        scores = [
            task.compute_score(task.DATA_SOURCE, response, task.answer(question))["acc"]
            for question, response in zip(held_out, responses, strict=True)
        ]
        accuracy[f"accuracy_{name}"] = sum(scores) / questions
    return accuracy


def _summary(record: dict) -> str:
    return (
        f"accuracy on {record['evaluation_questions']} held-out questions at temperature 1: "
        f"{record['accuracy_plain']:.3f} without, {record['accuracy_demonstration']:.3f} with a demonstration"
    )


def make_model(settings: Settings, out: Path, *, evaluation_questions: int = 1024) -> dict:
    """Makes the model unless `out` holds it already; returns its record."""

    def judge(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> dict[str, float]:
        return evaluate(model, tokenizer, products=settings.products, questions=evaluation_questions)

    return make_once(settings, out, warm_up, judge, evaluation_questions)


def make_once(
    settings: Any, out: Path, warm_up: Callable[[Any], tuple], judge: Callable[..., dict[str, float]], questions: int
) -> dict:
    """Warms a model up and judges it, unless `out` holds it already; returns its record.

    The record is written last, so that an interrupted run is never taken for a finished one.
    """
    record = read_finished(out, settings)
    if record is not None:
        print(f"{out} already holds this model; {_summary(record)}")
        return record
    out.mkdir(parents=True, exist_ok=True)
    (out / RECORD_NAME).unlink(missing_ok=True)
    start = time.perf_counter()
    model, tokenizer, losses = warm_up(settings)
    seconds = time.perf_counter() - start
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    tail = losses[-min(50, len(losses)) :]
    record = {
        "settings": asdict(settings),
        "parameters": model.num_parameters(),
        "final_loss": sum(tail) / len(tail),
        "seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
        "evaluation_questions": questions,
        **judge(model, tokenizer),
    }
    (out / RECORD_NAME).write_text(json.dumps(record, indent=2) + "\n")
    print(f"{out}: {record['parameters']} parameters, {seconds:.0f} s; {_summary(record)}")
    return record


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    defaults = Settings()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the model and its tokenizer")
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--products", type=int, default=defaults.products, help="products in a question; 4 is harder")
    parser.add_argument("--threads", type=int, default=1, help="torch threads; one is fastest for a model this small")
    arguments = parser.parse_args(argv)
    if arguments.steps < 1:
        parser.error(f"--steps must be at least 1, got {arguments.steps}")
    torch.set_num_threads(arguments.threads)
    make_model(Settings(steps=arguments.steps, seed=arguments.seed, products=arguments.products), arguments.out)


if __name__ == "__main__":
    main()
