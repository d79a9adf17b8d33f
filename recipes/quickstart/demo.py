"""The quickstart from nothing to a report: ``python -m recipes.quickstart.demo`` (or ``make demo``).

Makes the starting model and the data where they are missing, trains through veRL's own entry point on the CPU with a
line of progress per step, and draws the report. The command it runs is printed, so that it can be run by hand.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from recipes.quickstart import task
from recipes.quickstart.make_data import make_data
from srpo_verl.report.__main__ import main as report

ROOT = Path(__file__).resolve().parents[2]
METHODS = ("srpo", "grpo", "sdpo", "srpo_no_dw", "advantage_mix", "sdpo_correct_only", "sdpo_failed_only")
HELD_OUT = "val-core/last_digit/acc/mean@1"


def training_command(
    *, method: str, model: Path, data: Path, run: Path, steps: int, seed: int, ranks: int, extra: list[str]
) -> list[str]:
    """The stock veRL command; only sizes, paths and the CPU platform are set."""
    overrides = [
        "platform=cpu",
        f"data.train_files={data}/train.parquet",
        f"data.val_files={data}/test.parquet",
        f"data.seed={seed}",
        "data.train_batch_size=16",
        "data.max_prompt_length=32",
        "data.max_response_length=40",
        f"actor_rollout_ref.model.path={model}",
        "actor_rollout_ref.model.enable_gradient_checkpointing=false",
        "actor_rollout_ref.actor.ppo_mini_batch_size=16",
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=4096",
        "actor_rollout_ref.actor.optim.lr=5e-4",
        "actor_rollout_ref.actor.optim.lr_warmup_steps=5",
        f"actor_rollout_ref.rollout.seed={seed}",
        "actor_rollout_ref.rollout.max_num_seqs=128",
        "actor_rollout_ref.rollout.val_kwargs.n=1",
        "actor_rollout_ref.rollout.val_kwargs.temperature=1.0",
        "actor_rollout_ref.rollout.val_kwargs.top_p=1.0",
        f"reward.custom_reward_function.path={Path(task.__file__)}",
        "trainer.project_name=quickstart",
        f"trainer.experiment_name={method}",
        f"trainer.n_gpus_per_node={ranks}",
        f"trainer.total_training_steps={steps}",
        "trainer.total_epochs=100",
        "trainer.test_freq=10",
        f"trainer.save_freq={steps}",
        "trainer.logger=[file]",
        f"trainer.default_local_dir={run}/checkpoints",
    ]
    if method != "grpo":
        # 27 tokens in the vocabulary and prompts of 49 tokens at most: sizes, not choices.
        overrides += ["srpo.distillation.top_k=null", "srpo.demonstration.max_prompt_tokens=96"]
    entry = [sys.executable, "-m", "verl.trainer.main_ppo", "--config-path", "pkg://srpo_verl.config"]
    return [*entry, "--config-name", method, *overrides, f"hydra.run.dir={run}/hydra", *extra]


def _follow(path: Path, process: subprocess.Popen, deadline: float) -> Iterator[dict]:
    """Entries of a growing JSON-lines file until the process ends; raises TimeoutError at the deadline."""
    position = 0
    while True:
        ended = process.poll() is not None
        if path.exists():
            with path.open("rb") as stream:
                stream.seek(position)
                for line in stream:
                    if not line.endswith(b"\n"):
                        break
                    position += len(line)
                    yield json.loads(line)
        if ended:
            return
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.5)


def _progress(step: int, steps: int, metrics: dict[str, float], started: float) -> str:
    """One line of progress."""
    parts = [f"step {step:>3}/{steps}"]
    if "srpo/frac_correct" in metrics:
        parts.append(
            f"training accuracy {metrics['srpo/frac_correct']:.2f}  distilled {metrics['srpo/frac_sdpo']:4.0%}  "
            f"response {metrics['response_length/mean']:4.1f} tokens  {metrics['timing_s/step']:4.1f} s/step"
        )
    if HELD_OUT in metrics:
        parts.append(f"HELD-OUT ACCURACY {metrics[HELD_OUT]:.2f}")
    return "  ".join(parts) + f"  [{time.monotonic() - started:4.0f} s]"


def train(command: list[str], run: Path, steps: int, timeout: float) -> dict[int, dict[str, float]]:
    """Run the trainer in `run`, print its progress, and return its metrics by step.

    A trainer that fails or hangs ends the program with the end of its log; all its processes are ended with it.
    """
    run.mkdir(parents=True, exist_ok=True)
    log, metrics_file = run / "training.log", run / "metrics.jsonl"
    # Sockets of Ray need a short path.
    ray_directory = tempfile.TemporaryDirectory(prefix="ray-")
    environment = {
        **os.environ,
        "VERL_FILE_LOGGER_PATH": str(metrics_file),
        "RAY_TMPDIR": ray_directory.name,
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_HUB_OFFLINE": "1",
    }
    environment.pop("RAY_ADDRESS", None)
    metrics: dict[int, dict[str, float]] = {}
    started = time.monotonic()
    with ray_directory, log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=run, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            for entry in _follow(metrics_file, process, started + timeout):
                metrics.setdefault(entry["step"], {}).update(entry["data"])
                print(_progress(entry["step"], steps, entry["data"], started), flush=True)
        except TimeoutError:
            sys.exit(f"the trainer did not finish within {timeout:.0f} s; its log: {log}\n{_tail(log)}")
        finally:
            _end_session(process)
    if process.returncode != 0:
        sys.exit(f"the trainer ended with exit code {process.returncode}; its log: {log}\n{_tail(log)}")
    return metrics


def _end_session(process: subprocess.Popen) -> None:
    """End whatever is left of the run's session: Ray's daemons have process groups of their own."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rsplit(")", 1)[1].split()[3]) == process.pid:
                os.kill(int(stat.parent.name), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended by itself meanwhile
    process.wait()


def _tail(log: Path, lines: int = 40) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "quickstart", help="folder of everything made")
    parser.add_argument("--method", choices=METHODS, default="srpo")
    parser.add_argument("--steps", type=int, default=60, help="training steps")
    parser.add_argument("--seed", type=int, default=0, help="of data order and rollouts; the model is made with 0")
    parser.add_argument("--ranks", type=int, default=1, help="FSDP ranks")
    parser.add_argument("--warmup-steps", type=int, default=1000, help="supervised steps that make the model")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds the training may take")
    parser.add_argument("overrides", nargs="*", help="further Hydra overrides")
    arguments = parser.parse_args(argv)

    out = arguments.out.resolve()
    model, data = out / "model", out / "data"
    run = out / "runs" / f"{arguments.method}-{time.strftime('%Y%m%d-%H%M%S')}"
    print(f"1/3 starting model in {model}", flush=True)
    # In a process of its own: it wants torch's thread count for itself.
    subprocess.run(
        [sys.executable, "-m", "recipes.quickstart.make_model", "--out", model, "--steps", str(arguments.warmup_steps)],
        cwd=ROOT,
        check=True,
    )
    make_data(data)
    command = training_command(
        method=arguments.method,
        model=model,
        data=data,
        run=run,
        steps=arguments.steps,
        seed=arguments.seed,
        ranks=arguments.ranks,
        extra=arguments.overrides,
    )
    print(f"2/3 training in {run}\n{shlex.join(command)}", flush=True)
    metrics = train(command, run, arguments.steps, arguments.timeout)

    print("3/3 report", flush=True)
    report([str(run), "--out", str(run / "report")])
    held_out = {step: values[HELD_OUT] for step, values in sorted(metrics.items()) if HELD_OUT in values}
    first, last = min(held_out), max(held_out)
    print(f"held-out accuracy {held_out[first]:.3f} (step {first}) -> {held_out[last]:.3f} (step {last})")
    print(f"metrics     {run / 'metrics.jsonl'}\nlog         {run / 'training.log'}")
    print(f"checkpoint  {run / 'checkpoints' / f'global_step_{arguments.steps}'}\nreport      {run / 'report'}")


if __name__ == "__main__":
    main()
