"""On PYTHONPATH, Python runs this at its start in every process of a run, whatever veRL does about plugins.

Where the CPU platform is asked for, it is activated by hand right after `import verl`, so that a run has it with and
without this package as a plugin. Every module of the package that a process imports is written down.
"""

import importlib.abc
import os
import sys
from pathlib import Path

LOG = Path(os.environ["SRPO_TEST_IMPORTS"])


class _Log(importlib.abc.MetaPathFinder):
    """Finds nothing; it is asked first."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "srpo_verl":
            with LOG.open("a") as file:
                file.write(f"{name}\n")
        return None


sys.meta_path.insert(0, _Log())

if os.environ.get("VERL_PLATFORM") == "cpu":
    from wrapt import register_post_import_hook

    def _activate(verl):
        from srpo_verl import cpu

        cpu.activate()

    register_post_import_hook(_activate, "verl")
