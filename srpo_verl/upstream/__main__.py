"""Does another veRL still fit: ``python -m srpo_verl upstream PATH``, for a wheel, an sdist or a folder.

Nothing is installed or imported; the sources are read.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from srpo_verl.upstream import FINGERPRINTS, compare, overridden_table, points
from srpo_verl.upstream.source import Source


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0 where every point is as recorded, 1 where some differ, 2 where the path is no veRL."""
    parser = argparse.ArgumentParser(
        prog="python -m srpo_verl upstream",
        description=(__doc__ or "").partition("\n")[0],
        epilog="example:\n  pip download --no-deps verl==0.9.0\n"
        "  python -m srpo_verl upstream verl-0.9.0-py3-none-any.whl",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", type=Path, nargs="?", help="wheel, sdist, or the folder that contains verl")
    parser.add_argument("--record", action="store_true", help="take this veRL's fingerprints for the supported ones")
    parser.add_argument("--table", action="store_true", help="print the table of overridden methods for the docs")
    options = parser.parse_args(arguments)
    if options.table:
        print(overridden_table())
        return 0
    if options.path is None:
        parser.error("the path of a wheel, an sdist or a folder is missing")
    try:
        source = Source(options.path)
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 2
    if options.record:
        found = {point: source.fingerprint(point) for point in sorted(points())}
        FINGERPRINTS.write_text(json.dumps({"verl": source.version, "points": found}, indent=1) + "\n")
    differences = compare(source)
    for difference in differences:
        print(difference)
    print(f"veRL {source.version}: {len(points()) - len(differences)} of {len(points())} points as recorded")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
