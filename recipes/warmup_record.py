"""When a starting model need not be made again: the record that the model makers leave beside it."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

RECORD_NAME = "warmup.json"


def read_finished(out: Path, settings: Any) -> dict | None:
    """The record of a finished model with these very settings (a dataclass), else None."""
    record_path = out / RECORD_NAME
    if not record_path.is_file() or not (out / "model.safetensors").is_file():
        return None
    record = json.loads(record_path.read_text())
    return record if record.get("settings") == asdict(settings) else None
