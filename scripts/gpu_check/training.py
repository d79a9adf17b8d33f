"""Three SRPO steps of a randomly initialised model through veRL's entry point, for every installed rollout engine.

On a GPU the model has the shape of Qwen3-0.6B; the rehearsal on a CPU has a tiny one and the plugin's own engine.
Nothing is downloaded. The last checkpoint is exported and loaded.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from recipes.quickstart.make_data import make_data
from recipes.quickstart.tokenizer import build_tokenizer
from recipes.runner import train
from scripts.gpu_check.lines import FAIL, INACTIVE, PASS, Line, guarded, limited
from scripts.random_model import save_random_qwen3
from srpo_verl.launch.cells import ENTRY

PART = "training"
STEPS = 3
TIMEOUT = 1800
CORRELATION = "training/rollout_actor_probs_pearson_corr"
"""veRL's: of the probabilities that engine and trainer give the sampled tokens. Other weights show in it."""

DISTANCE_LIMIT = 0.05
"""Largest 1 - correlation. bf16 moves a log-prob by about 1 %, and they spread over several nats."""

FINITE = ("srpo/loss", "srpo/grpo_loss", "srpo/sdpo_loss", "srpo/teacher_distance", "actor/grad_norm")

LORA = [
    "actor_rollout_ref.model.lora_rank=8",
    "actor_rollout_ref.model.lora_alpha=16",
    "actor_rollout_ref.actor.use_kl_loss=true",
]
"""Adapters, whose reference is the base."""

QWEN3_06B = {
    "vocab_size": 151_936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40_960,
}
TINY = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 512,
}


def run(device: torch.device, small: bool, ranks: int, out: Path) -> Iterator[Line]:
    """Per engine a line for full training, one for the export of it, and one for LoRA with a KL."""
    out.mkdir(parents=True, exist_ok=True)
    on_gpu = device.type == "cuda"
    model = make_model(out / "model", TINY if small else QWEN3_06B)
    make_data(out / "data", train=64, test=8)
    for engine in ("vllm", "sglang") if on_gpu else ("hf",):
        if on_gpu and importlib.util.find_spec(engine) is None:
            yield Line(PART, engine, INACTIVE, f"{engine} is not installed")
            continue
        line = guarded(PART, engine, partial(steps_of, engine, model, ranks, out))
        yield line
        if line.status == PASS:
            yield guarded(PART, f"{engine}, exported", partial(exported, out / engine))
            # Adapters as they are reach an engine on a GPU alone; the one for CPUs takes merged weights.
            name, merge = f"{engine}, LoRA and KL", str(not on_gpu).lower()
            extra = [*LORA, f"actor_rollout_ref.model.lora.merge={merge}"]
            yield guarded(PART, name, partial(steps_of, engine, model, ranks, out, name, extra))


def make_model(directory: Path, shape: Mapping[str, Any]) -> Path:
    """Save a random Qwen3 in bf16, and the quickstart's tokenizer filled up to the vocabulary."""
    tokenizer = fill(build_tokenizer(), shape["vocab_size"])
    return save_random_qwen3(directory, tokenizer, torch.bfloat16, tie_word_embeddings=True, **shape)


def fill(tokenizer: PreTrainedTokenizerFast, length: int) -> PreTrainedTokenizerFast:
    """Give every id below `length` a token, since a random model samples all of them."""
    backend: Tokenizer = tokenizer.backend_tokenizer
    vocabulary = backend.get_vocab(with_added_tokens=True)
    vocabulary |= {chr(0x20000 + index): index for index in range(len(vocabulary), length)}
    backend.model = models.WordLevel(vocabulary, unk_token=tokenizer.unk_token)
    return tokenizer


def training_command(
    engine: str, model: Path, data: Path, run: Path, ranks: int, extra: Sequence[str] = ()
) -> list[str]:
    """The stock veRL command. The batch is two prompts for each rank."""
    tiny = engine == "hf"
    prompts = 2 * ranks
    length, response, top_k = (48, 12, 20) if tiny else (256, 256, 100)
    actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    overrides = [
        *(["platform=cpu"] if tiny else [f"{rollout}.name={engine}", f"{rollout}.gpu_memory_utilization=0.4"]),
        f"data.train_files={data}/train.parquet",
        f"data.val_files={data}/test.parquet",
        f"data.train_batch_size={prompts}",
        f"data.max_prompt_length={length}",
        f"data.max_response_length={response}",
        f"actor_rollout_ref.model.path={model}",
        f"{actor}.ppo_mini_batch_size={prompts}",
        f"{actor}.ppo_max_token_len_per_gpu={4096 if not tiny else 512}",
        f"{actor}.optim.lr=1e-3",
        f"{actor}.optim.lr_warmup_steps=0",
        f"{rollout}.n=4",
        f"srpo.distillation.top_k={top_k}",
        f"srpo.demonstration.max_prompt_tokens={2 * length + response}",
        f"reward.custom_reward_function.path={Path(__file__).with_name('reward.py')}",
        f"trainer.n_gpus_per_node={ranks}",
        f"trainer.total_training_steps={STEPS}",
        "trainer.logger=[file]",
        "trainer.project_name=gpu_check",
        "trainer.test_freq=-1",
        "trainer.val_before_train=false",
        f"trainer.save_freq={STEPS}",
        f"trainer.default_local_dir={run}/checkpoints",
        "trainer.resume_mode=disable",
        f"hydra.run.dir={run}/hydra",
        *extra,
    ]
    return [sys.executable, *ENTRY[1:], "srpo", *overrides]


def steps_of(
    engine: str, model: Path, ranks: int, out: Path, name: str | None = None, extra: Sequence[str] = ()
) -> Line:
    """Run, and judge what veRL logged. `name`: of the line and of the run's folder, by default the engine's."""
    name = name or engine
    folder = out / name.replace(", ", "_").replace(" ", "_")
    command = training_command(engine, model, out / "data", folder, ranks, extra)
    try:
        training = train(command, folder, steps=STEPS, timeout=TIMEOUT, held_out="")
    except SystemExit as error:
        return Line(PART, name, FAIL, str(error).partition("\n")[0])
    return judge(name, training.metrics, training.seconds)


def judge(name: str, metrics: Mapping[int, Mapping[str, float]], seconds: float) -> Line:
    """All steps logged, finite, some rollouts distilled, the engine's weights the trainer's."""
    missing = [
        f"{metric} in step {step}"
        for step in range(1, STEPS + 1)
        for metric in (*FINITE, CORRELATION)
        if not math.isfinite(metrics.get(step, {}).get(metric, math.nan))
    ]
    if missing:
        return Line(PART, name, FAIL, f"not logged, or not finite: {', '.join(missing[:5])}")
    last = metrics[STEPS]
    figures = {
        "1 - correlation": max(1.0 - logged[CORRELATION] for logged in metrics.values()),
        "not distilled": min(1.0 - logged["srpo/frac_sdpo"] for logged in metrics.values()),
        "s/step": last["timing_s/step"],
        "peak GB": last.get("perf/max_memory_allocated_gb", 0.0),
        "s": seconds,
    }
    limits = {"1 - correlation": DISTANCE_LIMIT, "not distilled": 0.99}
    return limited(PART, name, figures, limits, f"{STEPS} steps")


def exported(run: Path) -> Line:
    """Student and teacher of the checkpoint as Hugging Face folders that load."""
    from srpo_verl.export import export

    for who in ("student", "teacher"):
        export(run / "checkpoints", run / who, teacher=who == "teacher")
    student, teacher = (AutoModelForCausalLM.from_pretrained(run / who) for who in ("student", "teacher"))
    pairs = zip(student.parameters(), teacher.parameters(), strict=True)
    moved = sum(float((ours.detach() - theirs.detach()).float().norm() ** 2) for ours, theirs in pairs) ** 0.5
    # A student that is its own average never learned, or the teacher's folder is the student's.
    return Line(PART, f"{run.name}, exported", PASS if moved > 0 else FAIL, "", {"distance": moved})
