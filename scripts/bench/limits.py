"""What must hold of the functions over logits."""

from __future__ import annotations

import re
from pathlib import Path

LIMITS = {
    "pipeline / eager": 0.30,
    "pipeline as the engine runs it / eager": 0.30,
    "teacher scoring / logsumexp": 1.0,
    "extra memory / logits": 0.05,
    "time per token, most / fewest tokens": 1.3,
    "gradient error, float32": 1e-5,
    "gradient error, bfloat16": 2e-2,
    "entropy error, nats": 2e-5,
}
"""What must hold on two CPU cores, whoever makes them, at a vocabulary of 151,936 and a support of 100."""

RATIOS = ("pipeline / eager", "pipeline as the engine runs it / eager")
OTHER_LIMITS = {"GenuineIntel": dict.fromkeys(RATIOS, 0.25), "cuda": dict.fromkeys(RATIOS, 0.65)}
"""Where another limit is asked for."""


def limits_for(device: str) -> dict[str, float]:
    """The limits on a device, by its kind or its processor's vendor."""
    name = processor("vendor_id") if device == "cpu" else device
    return {**LIMITS, **OTHER_LIMITS.get(name, {})}


def processor(key: str) -> str:
    """What Linux knows of the first processor under `key`; elsewhere "unknown"."""
    path = Path("/proc/cpuinfo")
    found = re.search(rf"^{key}\s*:\s*(.+)$", path.read_text(), re.MULTILINE) if path.exists() else None
    return found[1].strip() if found else "unknown"
