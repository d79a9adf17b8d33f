"""The figure of the benchmark of the kernels: time per token and extra memory at the largest number of tokens."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

LABELS = {"eager": "eager", "eager_cast": "eager in fp32", "trl": "TRL", "srpo": "srpo_verl"}
COLORS = {"eager": "#7f7f7f", "eager_cast": "#c7c7c7", "trl": "#ff7f0e", "srpo": "#1f77b4"}


def draw(rows: pd.DataFrame, path: Path) -> None:
    """Bars of the pipeline with 20 to 80 % spread, and the lower limits as lines."""
    whole = rows[(rows.phase == "pipeline") & rows.implementation.isin(LABELS)]
    # The largest case of every dtype that SRPO's functions and the eager path both went through.
    both = whole[whole.implementation.isin(("srpo", "eager"))].groupby(["dtype", "tokens"], sort=False).phase.count()
    shown = both[both == 2].reset_index().groupby("dtype", sort=False).tokens.max()
    whole = whole[whole.tokens == whole["dtype"].map(shown)]
    place = whole["dtype"].map({dtype: place for place, dtype in enumerate(shown.index)})
    per_token = whole[["seconds", "seconds_p20", "seconds_p80", "bytes_limit", "exp_limit"]].mul(
        1e3 / whole.tokens, axis=0
    )
    figure = Figure(figsize=(10.4, 4.2), layout="constrained")
    times, memory = figure.subplots(1, 2)
    names = [name for name in LABELS if (whole.implementation == name).any()]
    width = 0.8 / max(1, len(names))
    for number, name in enumerate(names):
        here = whole.implementation == name
        at, ms = place[here] + (number - (len(names) - 1) / 2) * width, per_token[here]
        spread = [ms.seconds - ms.seconds_p20, ms.seconds_p80 - ms.seconds]
        times.bar(at, ms.seconds, width, color=COLORS[name], label=LABELS[name], yerr=spread)
        memory.bar(at, 100.0 * whole.extra_memory[here].astype(float), width, color=COLORS[name])
    for column, label, style in (("bytes_limit", "bytes that must move", "--"), ("exp_limit", "exponentials", ":")):
        height = per_token[column][whole.implementation == "srpo"]
        where = place[height.index]
        times.hlines(height, where - 0.45, where + 0.45, color="black", linestyle=style, label=label)
    for axes in (times, memory):
        axes.set_xticks(range(len(shown)), [f"{dtype}\nN = {tokens}" for dtype, tokens in shown.items()])
        axes.spines[["top", "right"]].set_visible(False)
    if len(shown):
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
