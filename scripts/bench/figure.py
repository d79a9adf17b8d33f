"""The benchmark's figure: time per token and extra memory at the largest number of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from scripts.bench.results import Row

SHOWN = {"eager": "eager", "eager_cast": "eager in fp32", "trl": "TRL", "srpo": "srpo_verl"}
COLORS = {"eager": "#7f7f7f", "eager_cast": "#c7c7c7", "trl": "#ff7f0e", "srpo": "#1f77b4"}


def draw(rows: Sequence[Row], path: Path) -> None:
    """Bars of the pipeline with 20 to 80 % spread, and the lower limits as lines."""
    whole = {(row.dtype, row.tokens, row.implementation): row for row in rows if row.phase == "pipeline"}
    # The largest case of every dtype that SRPO's functions and the eager path both went through.
    shown = []
    for dtype in dict.fromkeys(row.dtype for row in rows):
        sizes = [n for d, n, name in whole if d == dtype and name == "eager" and (d, n, "srpo") in whole]
        shown += [(dtype, max(sizes))] if sizes else []
    names = [name for name in SHOWN if any((dtype, tokens, name) in whole for dtype, tokens in shown)]
    figure = Figure(figsize=(10.4, 4.2), layout="constrained")
    times, memory = figure.subplots(1, 2)
    width, labelled = 0.8 / max(1, len(names)), set[str]()
    for place, (dtype, tokens) in enumerate(shown):
        for number, name in enumerate(names):
            row = whole.get((dtype, tokens, name))
            if row is None:
                continue
            at = place + (number - (len(names) - 1) / 2) * width
            label = None if name in labelled else SHOWN[name]
            labelled.add(name)
            scale = 1e3 / tokens
            below, above = (row.seconds - row.seconds_p20) * scale, (row.seconds_p80 - row.seconds) * scale
            times.bar(at, row.seconds * scale, width, color=COLORS[name], label=label, yerr=[[below], [above]])
            if row.extra_memory is not None:
                memory.bar(at, 100.0 * row.extra_memory, width, color=COLORS[name])
        ours = whole[dtype, tokens, "srpo"]
        limits = {"bytes that must move": (ours.bytes_limit, "--"), "exponentials": (ours.exp_limit, ":")}
        for label, (seconds, line) in limits.items():
            if seconds is not None:
                height = seconds * 1e3 / tokens
                ends = (place - 0.45, place + 0.45)
                times.plot(ends, (height, height), line, color="black", label=label if place == 0 else None)
    for axes in (times, memory):
        axes.set_xticks(range(len(shown)), [f"{dtype}\nN = {tokens}" for dtype, tokens in shown])
        axes.spines[["top", "right"]].set_visible(False)
    if shown:
        times.legend(frameon=False, ncols=2)
        times.set_ylim(top=1.35 * times.get_ylim()[1])  # room for the legend
    times.set_ylabel("ms per token")
    times.set_title("Support, teacher scoring, entropy,\ndivergence forward and backward")
    memory.set_yscale("log")
    memory.yaxis.set_major_formatter("{x:g}")
    memory.yaxis.set_minor_formatter(NullFormatter())
    memory.set_ylabel("% of one logits tensor")
    memory.set_title("Peak memory beyond both logits tensors\nand the gradient")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
