"""SRPO through veRL's own vLLM adapter on a CPU: ``DIR/bin/python -m scripts.vllm_cpu.check`` (docs/vllm_cpu.md).

Trains a tiny random Qwen3 for three steps and judges what veRL logged. veRL compares, for every sampled token, the
probability that vLLM gave it with the trainer's. The learning rate is so large that the weights of two steps differ
visibly: a weight that an update of the engine did not reach shows from step 2 on. Exit status 1 if anything failed.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from recipes.quickstart.make_data import make_data
from recipes.quickstart.tokenizer import build_tokenizer
from recipes.runner import train
from scripts.random_model import save_random_qwen3
from srpo_verl.launch.cells import ENTRY

ROOT = Path(__file__).resolve().parents[2]

LIMIT = 1e-4
"""Largest difference of a token's probability that passes: fp32 rounding stays far below, a stale weight far above."""

DIFFERENCE = "training/rollout_probs_diff_max"
MEAN_DIFFERENCE = "training/rollout_probs_diff_mean"
FINITE = (DIFFERENCE, MEAN_DIFFERENCE, "srpo/loss", "srpo/grpo_loss", "srpo/sdpo_loss", "actor/grad_norm")

FAULTS = {
    # vLLM loads only the plugins named here: none, and its layers drop the weights that updates write to.
    "no-plugin": {"VLLM_PLUGINS": "none"},
    # See shim/keep_weights.py.
    "stale-head": {"KEEP_WEIGHTS_FAULT": "head"},
}
"""Environment variables that break the updates, to see that the check notices."""


def make_model(directory: Path) -> None:
    """Save a random Qwen3 and the quickstart's tokenizer.

    Heads of 32, the smallest that vLLM's attention on the CPU has; a head apart from the embeddings, so that it shows
    whether an update reaches it.
    """
    tokenizer = build_tokenizer()
    save_random_qwen3(
        directory,
        tokenizer,
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        initializer_range=0.1,
    )


def training_command(model: Path, data: Path, run: Path, *, steps: int, ranks: int, extra: Sequence[str]) -> list[str]:
    """The stock veRL command: sizes and paths, then what vLLM needs on a CPU."""
    rollout = "actor_rollout_ref.rollout"
    overrides = [
        "platform=cpu",
        f"data.train_files={data}/train.parquet",
        f"data.val_files={data}/test.parquet",
        "data.train_batch_size=8",
        "data.max_prompt_length=32",
        "data.max_response_length=12",
        f"actor_rollout_ref.model.path={model}",
        "actor_rollout_ref.model.enable_gradient_checkpointing=false",
        "actor_rollout_ref.actor.ppo_mini_batch_size=8",
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=1024",
        "actor_rollout_ref.actor.optim.lr=1e-2",
        "actor_rollout_ref.actor.optim.lr_warmup_steps=0",
        f"{rollout}.n=4",
        "srpo.distillation.top_k=20",
        "srpo.demonstration.max_prompt_tokens=96",
        f"reward.custom_reward_function.path={ROOT}/scripts/vllm_cpu/reward.py",
        "trainer.project_name=vllm_cpu",
        f"trainer.n_gpus_per_node={ranks}",
        f"trainer.total_training_steps={steps}",
        "trainer.logger=[file]",
        "trainer.test_freq=-1",
        "trainer.save_freq=-1",
        "trainer.val_before_train=false",
        "trainer.resume_mode=disable",
        # platform=cpu chooses the plugin's own engine, and has set fp32, one replica per rank and no freeing of the
        # cache already.
        f"{rollout}.name=vllm",
        # Nothing is compiled.
        f"{rollout}.enforce_eager=true",
        # Sleeping frees memory of a GPU.
        f"+{rollout}.enable_sleep_mode=false",
        f"{rollout}.max_model_len=128",
        f"{rollout}.max_num_batched_tokens=1024",
        # A quarter of a GiB. By default vLLM takes a share of the machine's memory.
        f"+{rollout}.engine_kwargs.vllm.kv_cache_memory_bytes=268435456",
        # vLLM would bind its threads to cores that it takes for its own, and refuses two workers on one NUMA node.
        "+ray_kwargs.ray_init.runtime_env.env_vars.VLLM_CPU_OMP_THREADS_BIND=nobind",
        # The buffer of an update lies in /dev/shm; veRL's default is 2 GiB.
        f"{rollout}.checkpoint_engine.update_weights_bucket_megabytes=16",
    ]
    return [sys.executable, *ENTRY[1:], "srpo", *overrides, f"hydra.run.dir={run}/hydra", *extra]


def judge(metrics: Mapping[int, Mapping[str, float]], steps: int) -> list[str]:
    """What failed, in words; empty if nothing did.

    Args:
        metrics: what veRL logged, by training step.
        steps: that were to be made.
    """
    failures = []
    for step in range(1, steps + 1):
        logged = metrics.get(step, {})
        if missing := [name for name in FINITE if not math.isfinite(logged.get(name, math.nan))]:
            failures.append(f"step {step}: not logged, or not finite: {', '.join(missing)}")
        elif logged[DIFFERENCE] > LIMIT:
            failures.append(
                f"step {step}: the probability of a token differs by {logged[DIFFERENCE]:.1e} between vLLM and the "
                f"trainer (limit {LIMIT:.0e}): they do not hold the same weights"
            )
    if not any(logged.get("srpo/frac_sdpo", 0.0) > 0 for logged in metrics.values()):
        failures.append("no rollout was distilled in any step")
    return failures


def table(metrics: Mapping[int, Mapping[str, float]]) -> str:
    """The figures by step."""
    columns = {
        "|dp| max": (DIFFERENCE, ".1e"),
        "|dp| mean": (MEAN_DIFFERENCE, ".1e"),
        "correct": ("srpo/frac_correct", ".2f"),
        "distilled": ("srpo/frac_sdpo", ".2f"),
        "GRPO loss": ("srpo/grpo_loss", ".4f"),
        "SDPO loss": ("srpo/sdpo_loss", ".4f"),
        "s": ("timing_s/step", ".1f"),
    }
    lines = ["step" + "".join(f"{title:>11}" for title in columns)]
    for step, logged in sorted(metrics.items()):
        cells = (f"{logged.get(name, math.nan):{form}}" for name, form in columns.values())
        lines.append(f"{step:>4}" + "".join(f"{cell:>11}" for cell in cells))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0; 1 if the run or what it logged is wrong."""
    parser = argparse.ArgumentParser(prog="python -m scripts.vllm_cpu.check", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "vllm_cpu_check", help="folder of the runs")
    parser.add_argument("--steps", type=int, default=3, help="training steps, at least 2 (default: %(default)s)")
    parser.add_argument("--ranks", type=int, default=1, help="FSDP ranks, each with an engine of its own")
    parser.add_argument("--timeout", type=float, default=600, help="seconds the run may take (default: %(default)s)")
    parser.add_argument("--fault", choices=FAULTS, help="has to fail; see docs/vllm_cpu.md")
    parser.add_argument("overrides", nargs="*", help="further Hydra overrides, after --")
    arguments = parser.parse_args(argv)
    if arguments.steps < 2:
        parser.error("--steps has to be at least 2: the first update of the engine comes after step 1")
    try:
        print(", ".join(f"{name} {version(name)}" for name in ("vllm", "verl", "torch", "transformers")))
    except PackageNotFoundError as error:
        parser.error(f"{error} is not installed here; first: bash scripts/vllm_cpu/install.sh build/vllm_cpu")
    if arguments.fault:
        os.environ.update(FAULTS[arguments.fault])

    out = arguments.out.resolve()
    model, data, run = out / "model", out / "data", out / time.strftime("%Y%m%d-%H%M%S")
    make_model(model)
    make_data(data, train=64, test=8)
    command = training_command(
        model, data, run, steps=arguments.steps, ranks=arguments.ranks, extra=arguments.overrides
    )
    print(f"{shlex.join(command)}\nlog: {run / 'training.log'}", flush=True)
    training = train(command, run, steps=arguments.steps, timeout=arguments.timeout, held_out="")

    print(f"\n{table(training.metrics)}")
    print(f"{training.seconds:.0f} s, all processes together {training.peak_bytes / 2**30:.1f} GiB at most")
    failures = judge(training.metrics, arguments.steps)
    print("\n".join(f"FAIL: {failure}" for failure in failures) or "PASS")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
