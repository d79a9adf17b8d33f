"""A trained checkpoint as a Hugging Face folder: ``python -m srpo_verl export CHECKPOINT --out DIR [--teacher]``.

The shards are put together by veRL's own merger, in bf16, the precision in which veRL hands weights to its rollout
engines. What it does not know is added here: the teacher, a LoRA run's adapters merged into their base, and a loader
that runs no code from the files.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from verl.model_merger.base_model_merger import ModelMergerConfig
from verl.model_merger.fsdp_model_merger import FSDPModelMerger

from srpo_verl.checkpoints import LATEST, best, folder_of, read_step, whole
from srpo_verl.safe_loading import UntrustedFile, only_tensors
from srpo_verl.verl_ext.teacher.files import ADAPTER_FILE, CHECKPOINT_FOLDER, holds_adapters

LORA_A, LORA_B = ".lora_A.default.weight", ".lora_B.default.weight"


class ExportError(ValueError):
    """There is nothing here to export; the message says what to do."""


def find_step(path: Path) -> Path:
    """The folder global_step_N that a path means: itself, its `actor`, a run's latest one, or with /best its best."""
    if path.name in ("actor", CHECKPOINT_FOLDER):
        path = path.parent
    if path.name == "best" and not path.exists():
        chosen = best(whole(path.parent))
        if chosen is None:
            raise ExportError(f"{path.parent}: no checkpoint here has been validated; name one, or leave out /best")
        path = chosen.folder
    step = read_step(path / LATEST)
    if step is not None:
        path = folder_of(path, step)
    if not (path / "actor" / "fsdp_config.json").is_file():
        raise ExportError(
            f"{path}: no checkpoint of FSDP weights here (actor/fsdp_config.json is missing); give a folder "
            f"global_step_N, or the run's checkpoint folder, which holds {LATEST}"
        )
    return path


def weights_folder(step: Path, teacher: bool) -> Path:
    """The folder whose shards are the base of the export: the teacher's own, or the actor's (LoRA, student)."""
    actor, folder = step / "actor", step / CHECKPOINT_FOLDER
    if not teacher:
        return actor
    if not folder.is_dir():
        raise ExportError(
            f"{folder} is missing: the checkpoint holds no teacher. A frozen teacher is the model that the run "
            "started from, a live one is the student (leave --teacher out), and routing=none has none"
        )
    return actor if holds_adapters(str(folder)) else folder


def adapter_shards(folder: Path) -> Iterator[Mapping[str, torch.Tensor]]:
    """The teacher's adapters as each rank of a LoRA run saved them, in the order of ranks."""
    world_size = len([name for name in os.listdir(folder) if name.startswith("adapters_world_size_")])
    for rank in range(world_size):
        path = folder / ADAPTER_FILE.format(world_size=world_size, rank=rank)
        if not path.is_file():
            raise ExportError(f"{path} is missing: the teacher was saved by other ranks, or the copy is not complete")
        yield torch.load(path, map_location="cpu", weights_only=True)["average"]


def join_adapters(shards: Iterable[Mapping[str, torch.Tensor]], like: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Whole adapters from the ranks' parts of them.

    FSDP2 cuts rows and FSDP1 a flattened and padded copy, both in the order of ranks, so the parts one after the other
    are the tensor row by row; what follows is padding, or the next replica of hybrid sharding.

    Args:
        shards: one {parameter: this rank's part} per rank, by the names inside FSDP.
        like: the student's adapters, for names and shapes.
    """
    parts: dict[str, list[torch.Tensor]] = {}
    for shard in shards:
        for name, part in shard.items():
            whole = name.replace("_fsdp_wrapped_module.", "").replace("_flat_param", "weight")
            parts.setdefault(whole, []).append(part.flatten())
    joined = {}
    for name, tensor in like.items():
        flat = torch.cat(parts.get(name, [torch.empty(0)]))
        if flat.numel() < tensor.numel():
            raise ExportError(f"{name}: the teacher has {flat.numel()} of {tensor.numel()} values of this adapter")
        joined[name] = flat[: tensor.numel()].view(tensor.shape)
    return joined


def merge_adapters(state: Mapping[str, torch.Tensor], scale: float) -> dict[str, torch.Tensor]:
    """The weights of a LoRA model without adapters, W + scale * B A, under the names that the model has without peft.

    The sum is taken in fp32 and returned in the base's dtype. Raises ExportError for adapters of another kind.
    """
    merged, adapters = {}, {name for name in state if "lora_" in name}
    for name, weight in state.items():
        if name in adapters:
            continue
        layer, base, _ = name.rpartition(".base_layer.weight")
        if base and layer + LORA_A in adapters:
            a, b = state[layer + LORA_A].float(), state[layer + LORA_B].float()
            weight = (weight.float() + scale * (b @ a)).to(weight.dtype)
            adapters -= {layer + LORA_A, layer + LORA_B}
        merged[name.removeprefix("base_model.model.").replace(".base_layer.", ".")] = weight
    if adapters:
        raise ExportError(
            f"{min(adapters)}: not an adapter of a linear layer whose base is in the checkpoint, so it cannot be "
            "merged (actor.checkpoint.save_lora_only keeps no base)"
        )
    return merged


class Merger(FSDPModelMerger):
    """veRL's merger, with the teacher's adapters in place of the student's if given, and none of them left over."""

    def __init__(self, config: ModelMergerConfig, teacher_adapters: Path | None = None):
        super().__init__(config)
        # What the run attended with is no part of the model: who loads it may not have it (`packed_sdpa`, flash-attn).
        self.model_config._attn_implementation = None
        self.teacher_adapters = teacher_adapters

    def save_hf_model_and_tokenizer(self, state_dict: dict[str, torch.Tensor]) -> None:
        adapters = {name: value for name, value in state_dict.items() if "lora_" in name}
        if adapters:
            if self.teacher_adapters is not None:
                state_dict = {**state_dict, **join_adapters(adapter_shards(self.teacher_adapters), adapters)}
            meta = self._load_lora_train_meta() or {}
            if not meta.get("r") or not meta.get("lora_alpha"):
                raise ExportError(f"{self.config.local_dir}: lora_train_meta.json with r and lora_alpha is missing")
            state_dict = merge_adapters(state_dict, meta["lora_alpha"] / meta["r"])
        super().save_hf_model_and_tokenizer(state_dict)


def export(checkpoint: Path, out: Path, *, teacher: bool = False, trust_remote_code: bool = False) -> Path:
    """Write the student of a checkpoint, or its teacher, as a folder that transformers, vLLM and SGLang load.

    Args:
        checkpoint: global_step_N, or the folder of a run's checkpoints (its latest one).
        out: a folder that does not exist yet, or is empty.
        teacher: the self-teacher in place of the student.
        trust_remote_code: for models whose own code is saved with them.

    Returns:
        The folder global_step_N that was exported.
    """
    step = find_step(checkpoint)
    folder = weights_folder(step, teacher)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"{out} is not empty; give a new folder with --out")
    config = ModelMergerConfig(
        operation="merge",
        backend="fsdp",
        target_dir=str(out),
        local_dir=str(folder),
        hf_model_config_path=str(step / "actor" / "huggingface"),
        trust_remote_code=trust_remote_code,
    )
    out.mkdir(parents=True, exist_ok=True)
    with only_tensors(), redirect_stdout(sys.stderr):
        Merger(config, step / CHECKPOINT_FOLDER if teacher else None).merge_and_save()
    return step


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m srpo_verl export",
        description="A trained checkpoint as a Hugging Face folder, in bf16.",
        epilog="examples:\n"
        "  python -m srpo_verl export outputs/srpo/srpo/checkpoints --out model\n"
        "  python -m srpo_verl export outputs/srpo/srpo/checkpoints/global_step_40 --out teacher --teacher",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkpoint", type=Path, help="global_step_N, or the run's checkpoint folder for its latest, or that/best"
    )
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--teacher", action="store_true", help="the EMA teacher, or a LoRA run's, not the student")
    parser.add_argument("--trust-remote-code", action="store_true", help="for models that bring code of their own")
    given = parser.parse_args(arguments)
    try:
        step = export(given.checkpoint, given.out, teacher=given.teacher, trust_remote_code=given.trust_remote_code)
    except (ExportError, UntrustedFile) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{'teacher' if given.teacher else 'student'} of {step} -> {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
