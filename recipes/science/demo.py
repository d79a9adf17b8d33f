"""Real rows, a real language model, on the CPU: ``python -m recipes.science.demo --source DIR`` (`make demo-science`).

Turns the official split files into veRL's data, makes the starting model, trains a few steps with the published
scorer through veRL's own entry point, and draws the report. The command it runs is printed, so that it can be run by
hand. What it shows is that the whole path works; a few steps on a model of this size do not raise its accuracy.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from recipes.runner import Training, train
from recipes.science import make_model
from srpo_verl.data.__main__ import main as make_data
from srpo_verl.launch.cells import ENTRY
from srpo_verl.markdown import markdown_table
from srpo_verl.report.__main__ import main as report

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ("chemistry", "biology")
SOURCE_VARIABLE = "SRPO_DATA_DIR"
MAX_PROMPT_TOKENS = make_model.Settings.max_prompt_tokens
MAX_RESPONSE_TOKENS = 64


def held_out_metric(benchmark: str) -> str:
    """veRL's name of the accuracy on the test rows."""
    return f"val-core/sciknoweval/{benchmark}/acc/mean@1"


def training_command(
    *,
    model: Path,
    data: Path,
    run: Path,
    steps: int,
    seed: int,
    prompts: int,
    rollouts: int,
    test_rows: int,
    threads: int,
    extra: list[str],
) -> list[str]:
    """The stock veRL command; only sizes, paths, the learning rate and the CPU platform are set."""
    overrides = [
        "platform=cpu",
        f"data.train_files={data}/train.parquet",
        f"data.val_files={data}/test.parquet",
        f"data.val_max_samples={test_rows}",
        f"data.seed={seed}",
        f"data.train_batch_size={prompts}",
        f"data.max_prompt_length={MAX_PROMPT_TOKENS}",
        f"data.max_response_length={MAX_RESPONSE_TOKENS}",
        f"actor_rollout_ref.model.path={model}",
        "actor_rollout_ref.model.enable_gradient_checkpointing=false",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={prompts}",
        # The logits of a micro-batch over 49,152 tokens of vocabulary are what takes memory.
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=1024",
        # Table 3's 5e-6 behind ten steps of warm-up would leave the model of so short a run as it was.
        "actor_rollout_ref.actor.optim.lr=2e-5",
        "actor_rollout_ref.actor.optim.lr_warmup_steps=1",
        f"actor_rollout_ref.rollout.n={rollouts}",
        f"actor_rollout_ref.rollout.seed={seed}",
        "actor_rollout_ref.rollout.val_kwargs.n=1",
        # Room for the question, a demonstration and the words around it.
        f"srpo.demonstration.max_prompt_tokens={MAX_PROMPT_TOKENS + MAX_RESPONSE_TOKENS + 64}",
        # One process computes at a time here, so it may have all cores.
        f"ray_kwargs.ray_init.runtime_env.env_vars.OMP_NUM_THREADS='{threads}'",
        "trainer.project_name=science",
        "trainer.experiment_name=srpo",
        f"trainer.total_training_steps={steps}",
        "trainer.total_epochs=100",
        f"trainer.test_freq={steps}",
        # A checkpoint with optimizer and teacher is more than 2 GB.
        "trainer.save_freq=-1",
        f"trainer.validation_data_dir={run}/validation",
        f"trainer.rollout_data_dir={run}/rollouts",
        "trainer.logger=[file]",
        f"trainer.default_local_dir={run}/checkpoints",
    ]
    return [sys.executable, *ENTRY[1:], "srpo", *overrides, f"hydra.run.dir={run}/hydra", *extra]


def steps_table(metrics: dict[int, dict[str, float]]) -> str:
    """Accuracy, routing and time by training step, as Markdown."""
    columns = {
        "training accuracy": ("srpo/frac_correct", ".2f"),
        "distilled (SDPO)": ("srpo/frac_sdpo", ".2f"),
        "GRPO": ("srpo/frac_grpo", ".2f"),
        "mean response tokens": ("response_length/mean", ".1f"),
        "s/step": ("timing_s/step", ".0f"),
    }
    rows = [
        (str(step), *(format(values[metric], digits) for metric, digits in columns.values()))
        for step, values in sorted(metrics.items())
        if "srpo/frac_sdpo" in values
    ]
    return markdown_table(("step", *columns), rows)


def mixed_steps(metrics: dict[int, dict[str, float]]) -> list[int]:
    """Steps in which both branches had rollouts."""
    return [
        step
        for step, values in sorted(metrics.items())
        if values.get("srpo/frac_sdpo", 0) > 0 and values.get("srpo/frac_grpo", 0) > 0
    ]


def describe(training: Training, run: Path, benchmark: str) -> str:
    """What was measured, as Markdown."""
    metric = held_out_metric(benchmark)
    lines = [steps_table(training.metrics), ""]
    held_out = {step: values[metric] for step, values in sorted(training.metrics.items()) if metric in values}
    for step, accuracy in held_out.items():
        dump = run / "validation" / f"{step}.jsonl"
        rows = f" on {len(dump.read_text().splitlines())} rows" if dump.is_file() else ""
        lines.append(f"held-out accuracy at step {step}: {accuracy:.3f}{rows}")
    both = ", ".join(map(str, mixed_steps(training.metrics))) or "none"
    lines.append(f"steps with both branches active: {both}")
    lines.append(
        f"training took {training.seconds:.0f} s; peak memory of its processes {training.peak_bytes / 2**30:.1f} GiB"
    )
    return "\n".join(lines)


def _source(parser: argparse.ArgumentParser, given: Path | None) -> Path:
    """Folder of the split files: the argument's, or the environment's."""
    if given is None and os.environ.get(SOURCE_VARIABLE):
        given = Path(os.environ[SOURCE_VARIABLE])
    if given is None:
        parser.error(
            f"--source is missing: the folder of the official split files (or set {SOURCE_VARIABLE}); "
            "`python -m srpo_verl data --help` says where to get them"
        )
    if not given.exists():
        parser.error(f"--source: {given} does not exist")
    return given.resolve()


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, help=f"folder of the official split files; else ${SOURCE_VARIABLE}")
    parser.add_argument("--benchmark", choices=BENCHMARKS, default="chemistry")
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "science", help="folder of everything made")
    parser.add_argument("--steps", type=int, default=5, help="training steps")
    parser.add_argument("--prompts", type=int, default=4, help="prompts in a step")
    parser.add_argument("--rollouts", type=int, default=6, help="rollouts of a prompt")
    parser.add_argument("--test-rows", type=int, default=64, help="test rows of which the short ones are used")
    parser.add_argument("--seed", type=int, default=0, help="of data order and rollouts; the model is made with 0")
    parser.add_argument("--warmup-steps", type=int, default=make_model.Settings.steps, help="supervised steps")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of torch, in a process")
    parser.add_argument("--timeout", type=float, default=7200, help="seconds the training may take")
    parser.add_argument("overrides", nargs="*", help="further Hydra overrides")
    arguments = parser.parse_args(argv)
    source = _source(parser, arguments.source)
    try:
        make_model.find_gguf()
    except FileNotFoundError as error:
        sys.exit(f"error: {error}")

    out = arguments.out.resolve() / arguments.benchmark
    model, data = out / "model", out / "data"
    run = out / "runs" / f"srpo-{time.strftime('%Y%m%d-%H%M%S')}"
    print(f"1/4 data in {data}", flush=True)
    if make_data([arguments.benchmark, "--source", str(source), "--out", str(data)]) != 0:
        sys.exit(1)
    print(f"2/4 starting model in {model}", flush=True)
    warm_up = [sys.executable, "-m", "recipes.science.make_model", "--data", data, "--out", model]
    warm_up += ["--benchmark", arguments.benchmark, "--steps", str(arguments.warmup_steps)]
    subprocess.run(warm_up, cwd=ROOT, check=True)
    command = training_command(
        model=model,
        data=data,
        run=run,
        steps=arguments.steps,
        seed=arguments.seed,
        prompts=arguments.prompts,
        rollouts=arguments.rollouts,
        test_rows=arguments.test_rows,
        threads=arguments.threads,
        extra=arguments.overrides,
    )
    print(f"3/4 training in {run}\n{shlex.join(command)}", flush=True)
    training = train(
        command,
        run,
        steps=arguments.steps,
        timeout=arguments.timeout,
        held_out=held_out_metric(arguments.benchmark),
    )
    print("4/4 report", flush=True)
    report([str(run), "--out", str(run / "report")])
    measured = describe(training, run, arguments.benchmark)
    (run / "measured.md").write_text(measured + "\n")
    print(measured)
    dump = run / "rollouts" / "1.jsonl"
    if dump.is_file():
        print(f"a rollout of step 1:\n{json.loads(dump.read_text().splitlines()[0])['output']}")
    print(f"metrics  {run / 'metrics.jsonl'}\nlog      {run / 'training.log'}\nreport   {run / 'report'}")
    if not mixed_steps(training.metrics):
        sys.exit("no step had rollouts in both branches; try another --seed or more --rollouts")


if __name__ == "__main__":
    main()
