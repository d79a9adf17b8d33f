"""Accelerators of a running Ray cluster, machine by machine: ``python -m srpo_verl.preflight.cluster ADDRESS``."""

from __future__ import annotations

import json
import logging
import sys

MARK = "accelerators per machine: "


def main(address: str) -> None:
    """Print them; Ray's exceptions go through."""
    import ray

    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    counts = [int(each.get("GPU", 0) or each.get("NPU", 0)) for each in resources]
    print(f"{MARK}{json.dumps(counts)}", flush=True)


def read(output: str) -> list[int]:
    """What `main` printed."""
    return json.loads(output.rpartition(MARK)[2].splitlines()[0])


if __name__ == "__main__":
    main(sys.argv[1])
