"""Real rows and a tiny model that answers them, so that the published scorers reward some of its rollouts.

A random model never hits the answer format: every reward would be 0 and nothing would be distilled. So the tokenizer
has one token for the right response of each row, and the model is built to prefer these tokens and the end of the
text to all others. It guesses among the answers; rows, prompts, scorer and threshold are the real ones.
"""

import json
import math
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from srpo_verl.data.__main__ import main as make_data
from srpo_verl.data.benchmarks import BENCHMARKS
from srpo_verl.rewards import compute_score
from tests.support import CHAT_TEMPLATE, EOS, PAD, START, tiny_config

ROWS = 8


def short_rows(benchmark: str, source: Path) -> list[dict]:
    """The official test rows with the shortest prompts. Tool Use has no other split at hand."""
    file = source / BENCHMARKS[benchmark].folder / "test.json"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return sorted(rows, key=lambda row: len(row["prompt"]))[:ROWS]


def write_data(benchmark: str, rows: list[dict], work: Path) -> Path:
    """Run the data command on the rows as both splits; returns the root of the parquet files."""
    folder = work / "splits" / BENCHMARKS[benchmark].folder
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        (folder / f"{split}.json").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    out = work / "data" / benchmark
    arguments = [benchmark, "--source", str(work / "splits"), "--out", str(out)]
    assert make_data([*arguments, "--allow-count-mismatch", "--allow-checksum-mismatch"]) == 0
    return work / "data"


def right_response(row: dict) -> str:
    """A response that the row's scorer accepts; a test holds it to that."""
    if row["kind"] == "mcq":
        return f"<answer>{row['answer']}</answer>"
    calls = json.loads(row["answer"])
    return "\n".join(f"Action: {call['Action']}\nAction Input: {call['Action_Input']}" for call in calls)


def is_right(benchmark: str, row: dict, response: str) -> bool:
    return compute_score(BENCHMARKS[benchmark].data_source, response, row["answer"])["score"] == 1.0


def guessing_model(rows: list[dict], directory: Path) -> Path:
    """Save a model that guesses among the right responses of the rows."""
    texts = [f"{row['system'] or ''}\n{row['prompt']}" for row in rows]
    return answering_model(texts, list(dict.fromkeys(map(right_response, rows))), directory)


def answering_tokenizer(texts: list[str], answers: list[str]) -> PreTrainedTokenizerFast:
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


def answering_model(texts: list[str], answers: list[str], directory: Path, seed: int = 0) -> Path:
    """Save a Qwen3 of some 60,000 parameters that prefers the (different) answers, and a tokenizer of the texts."""
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
        bias[tokenizer.convert_tokens_to_ids(answers)] = 11.0 - math.log(len(answers))
        bias[tokenizer.eos_token_id] = 11.0
        model.lm_head.weight[:, 0] = bias / config.hidden_size**0.5
    directory.mkdir(parents=True)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
