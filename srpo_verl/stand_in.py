"""A model that guesses among the answers of a task, to try its data and verifier on a CPU without a download.

A model with random weights hits no answer format: every reward would be 0 and nothing would be distilled. This one has
a token for the right response of every row, and prefers these tokens and the end of the text to all others. A Qwen3 of
some 60,000 parameters, it learns nothing worth keeping.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as parquet
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

PAD, EOS, START = "<|endoftext|>", "<|im_end|>", "<|im_start|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def answering_tokenizer(texts: Sequence[str], answers: Sequence[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE of the texts, so that any text survives; each answer is one token more."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=[PAD, EOS, START],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(answer, normalized=False) for answer in answers])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        additional_special_tokens=[START],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def tiny_config(
    tokenizer: PreTrainedTokenizerFast, *, max_positions: int, tie_word_embeddings: bool = False
) -> Qwen3Config:
    """A Qwen3 of two narrow layers for the tokenizer's vocabulary."""
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=max_positions,
        tie_word_embeddings=tie_word_embeddings,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def answering_model(texts: Sequence[str], answers: Sequence[str], directory: Path, seed: int = 0) -> Path:
    """Save a model that prefers the (different) answers, and a tokenizer of the texts, into a new directory."""
    tokenizer = answering_tokenizer(texts, answers)
    torch.manual_seed(seed)
    config = tiny_config(tokenizer, max_positions=8192)
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        # One large coordinate of every embedding survives the layers, so the head's column for it acts as a bias: the
        # end of the text is about as likely as all answers together, and everything else rare. The other columns
        # are what lets the context matter, so that self-teacher and student differ.
        model.model.embed_tokens.weight.mul_(3.0)[:, 0] = 3.0
        model.lm_head.weight.mul_(4.0)
        bias = torch.zeros(len(tokenizer))
        bias[tokenizer.convert_tokens_to_ids(list(answers))] = 11.0 - math.log(len(answers))
        bias[tokenizer.eos_token_id] = 11.0
        model.lm_head.weight[:, 0] = bias / config.hidden_size**0.5
    directory.mkdir(parents=True)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0; 2 for wrong arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m srpo_verl stand-in",
        description=__doc__,
        epilog="example:\n  python -m srpo_verl stand-in train.parquet --response 'Answer: {}' --out model",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", type=Path, nargs="+", help="parquet files of the task")
    parser.add_argument("--response", default="{}", help="what the verifier wants, {} for the ground truth")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    given = parser.parse_args(argv)
    if "{}" not in given.response:
        parser.error(f"--response {given.response!r} has no {{}}, where the ground truth goes")
    if given.out.exists():
        parser.error(f"--out {given.out} exists")
    try:
        rows = [row for file in given.files for row in parquet.read_table(file).to_pylist()]
        texts = ["\n".join(str(message["content"]) for message in row["prompt"]) for row in rows]
        truths = [str(row["reward_model"]["ground_truth"]) for row in rows]
    except (OSError, KeyError, TypeError) as error:
        parser.error(f"not the rows of a task with prompt and reward_model.ground_truth: {error!r}")
    answers = list(dict.fromkeys(given.response.replace("{}", truth) for truth in truths))
    answering_model(texts, answers, given.out)
    print(f"{given.out}: guesses among {len(answers)} answers of {len(rows)} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
