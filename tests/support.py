"""Shared by the tests: a tiny model and data set on disk, and the trainer in a subprocess under a time limit."""

import json
import shutil
import string
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from recipes.runner import end_session, run_environment
from srpo_verl import cpu
from srpo_verl.stand_in import CHAT_TEMPLATE, EOS, PAD, START, tiny_config


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per printable ASCII character, plus three special ones."""
    characters = sorted(set(string.printable) - set("\r\x0b\x0c"))
    vocab = {token: index for index, token in enumerate([PAD, EOS, START, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        additional_special_tokens=[START],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def tiny_model(directory: Path, *, tie_word_embeddings: bool = False, seed: int = 0) -> Path:
    """Save a random Qwen3 of some 30,000 parameters and its tokenizer (as long as its vocabulary)."""
    tokenizer = tiny_tokenizer()
    torch.manual_seed(seed)
    config = tiny_config(tokenizer, max_positions=512, tie_word_embeddings=tie_word_embeddings)
    directory.mkdir(parents=True, exist_ok=True)
    Qwen3ForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def tiny_parquet(directory: Path, rows: int, name: str = "train") -> Path:
    """Write a data set in veRL's format: additions, whose answer is the ground truth."""
    directory.mkdir(parents=True, exist_ok=True)
    records = [
        {
            "prompt": [{"role": "user", "content": f"{index} + {index % 7} ="}],
            "data_source": "toy",
            "reward_model": {"ground_truth": str(index + index % 7), "style": "rule"},
            "extra_info": {"index": index, "split": name},
        }
        for index in range(rows)
    ]
    path = directory / f"{name}.parquet"
    pd.DataFrame(records).to_parquet(path)
    return path


REWARD_FILE = Path(__file__).with_name("toy_reward.py")


def tiny_run(root: Path) -> list[str]:
    """Settings of runs that take well under a second a step; model and data are made in `root`, once."""
    train, validation = root / "train.parquet", root / "val.parquet"
    if not validation.exists():
        tiny_model(root / "model")
        tiny_parquet(root, 16)
        tiny_parquet(root, 4, "val")
    return [
        "platform=cpu",
        f"actor_rollout_ref.model.path={root / 'model'}",
        "actor_rollout_ref.model.enable_gradient_checkpointing=false",
        f"data.train_files={train}",
        f"data.val_files={validation}",
        f"reward.custom_reward_function.path={REWARD_FILE}",
        "data.train_batch_size=4",
        "data.max_prompt_length=64",
        "data.max_response_length=12",
        "actor_rollout_ref.actor.ppo_mini_batch_size=4",
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=1024",
        "actor_rollout_ref.actor.optim.lr=1.0e-3",
        "actor_rollout_ref.actor.optim.lr_warmup_steps=1",
        "actor_rollout_ref.rollout.n=4",
        "actor_rollout_ref.rollout.val_kwargs.n=1",
    ]


# The toy reward is the share of digits among twelve random characters: about one rollout in three reaches 0.12.
TINY_SRPO = [
    "srpo.success_threshold=0.12",
    "srpo.distillation.top_k=20",
    "srpo.demonstration.max_prompt_tokens=160",
]


@dataclass
class Run:
    """What a run of the trainer left behind."""

    returncode: int
    stdout: Path
    cwd: Path
    # training step -> metrics, from veRL's "file" logger
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)

    def tail(self, lines: int = 60) -> str:
        """End of the output, for failure messages."""
        return "\n".join(self.stdout.read_text(errors="replace").splitlines()[-lines:])


def read_metrics(path: Path) -> dict[int, dict[str, float]]:
    """Metrics by step; entries of the same step are merged."""
    metrics: dict[int, dict[str, float]] = {}
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        metrics.setdefault(entry["step"], {}).update(entry["data"])
    return metrics


def run_main_ppo(args: list[str], timeout: float, *, cwd: Path, env: dict[str, str] | None = None) -> Run:
    """Run `python -m verl.trainer.main_ppo ARGS` in `cwd`, in a session and a Ray instance of its own.

    On timeout the whole session is killed, Ray's processes included, and subprocess.TimeoutExpired raised.
    """
    cwd.mkdir(parents=True, exist_ok=True)
    # Unix socket paths are limited to about 100 characters, so Ray's directory cannot lie in pytest's.
    ray_dir = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    metrics_path, stdout_path = cwd / "metrics.jsonl", cwd / "stdout.log"
    full_env = {**run_environment(metrics_path, str(ray_dir)), "HYDRA_FULL_ERROR": "1"}
    # A user's shell has neither; the tests of this process may have activated the CPU platform.
    for variable in (cpu.PLATFORM_VARIABLE, cpu.ENGINE_VARIABLE):
        full_env.pop(variable, None)
    full_env |= env or {}
    command = [sys.executable, "-m", "verl.trainer.main_ppo", *args]
    try:
        with stdout_path.open("wb") as stdout:
            process = subprocess.Popen(
                command, cwd=cwd, env=full_env, stdout=stdout, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                returncode = process.wait(timeout)
            finally:
                end_session(process)
    finally:
        shutil.rmtree(ray_dir, ignore_errors=True)
    metrics = read_metrics(metrics_path) if metrics_path.exists() else {}
    return Run(returncode=returncode, stdout=stdout_path, cwd=cwd, metrics=metrics)
