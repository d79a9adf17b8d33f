"""A random Qwen3, for checks and benchmarks that need none that knows anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM


def save_random_qwen3(
    directory: Path, tokenizer: PreTrainedTokenizerFast, dtype: torch.dtype = torch.float32, **shape: Any
) -> Path:
    """Save it with the tokenizer; `shape` goes to Qwen3Config. Returns the directory."""
    torch.manual_seed(0)
    tokens = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    model: Any = Qwen3ForCausalLM(Qwen3Config(**tokens, **shape))
    model.to(dtype).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
