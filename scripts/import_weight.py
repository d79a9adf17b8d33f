"""What this package adds to `import verl`: ``python -m scripts.import_weight``, on an idle machine.

Every process that imports verl loads the plugin, whoever's run that is. Fresh processes are started in turn, without
the plugin (VERL_USE_EXTERNAL_PLUGINS=none) and with it; printed are the medians of modules, milliseconds of processor
time and MB of peak memory, and the median and the spread of what the plugin adds. The import of verl varies by more
than the plugin takes, so that is also timed by itself, right after the import without it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence

from srpo_verl.installation import POLICY_VARIABLE

PROBE = """
import json, resource, sys, time
before, started = len(sys.modules), time.process_time()
import verl
ms = 1e3 * (time.process_time() - started)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
modules = len(sys.modules) - before
started = time.process_time()
import srpo_verl.plugin
alone = 1e3 * (time.process_time() - started)
print(json.dumps({"modules": modules, "ms": ms, "MB": peak, "alone": alone}))
"""
UNITS = ("modules", "ms", "MB")


def probe(policy: str) -> dict[str, float]:
    """One fresh process; nothing of this one's choices reaches it."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("VERL_", "RAY_"))}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROBE],
        env={**environment, POLICY_VARIABLE: policy},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def measure(rounds: int) -> dict[str, dict[str, list[float]]]:
    """{"without" or "with": {unit: a value of every round}}; a first process of each fills the file cache."""
    found: dict[str, dict[str, list[float]]] = {
        who: {unit: [] for unit in (*UNITS, "alone")} for who in ("without", "with")
    }
    for number in range(rounds + 1):
        for who, policy in (("without", "none"), ("with", "auto")):
            values = probe(policy)
            for unit, value in values.items() if number else ():
                found[who][unit].append(value)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.import_weight", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=15)
    found = measure(parser.parse_args(argv).rounds)
    for unit in UNITS:
        without, with_plugin = found["without"][unit], found["with"][unit]
        differences = sorted(after - before for before, after in zip(without, with_plugin, strict=True))
        medians = f"{statistics.median(without):8.1f} without, {statistics.median(with_plugin):8.1f} with the plugin"
        spread = f"from {differences[0]:+.1f} to {differences[-1]:+.1f}"
        print(f"{unit:<8}{medians}: {statistics.median(differences):+.1f} ({spread})")
    alone = sorted(found["without"]["alone"])
    print(f"ms of the plugin by itself: {statistics.median(alone):.1f} (from {alone[0]:.1f} to {alone[-1]:.1f})")


if __name__ == "__main__":
    main()
