"""The figure of the benchmark of the kernels: time per token and extra memory at the largest number of tokens."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

LABELS = {"eager": "eager", "eager_cast": "eager in fp32", "trl": "TRL", "srpo": "srpo_verl"}
COLORS = {"eager": "#7f7f7f", "eager in fp32": "#c7c7c7", "TRL": "#ff7f0e", "srpo_verl": "#1f77b4"}
LIMITS = {"bytes_limit": ("bytes that must move", "--"), "exp_limit": ("exponentials", ":")}


def draw(rows: pd.DataFrame, path: Path) -> None:
    """Bars of the pipeline with 20 to 80 % spread, and the lower limits as lines."""
    whole = rows[(rows.phase == "pipeline") & rows.implementation.isin(LABELS)]
    # The largest case of every dtype that SRPO's functions and the eager path both went through.
    both = whole[whole.implementation.isin(("srpo", "eager"))].groupby(["dtype", "tokens"], sort=False).phase.count()
    shown = both[both == 2].reset_index().groupby("dtype", sort=False).tokens.max()
    whole = whole[whole.tokens == whole["dtype"].map(shown)]
    if whole.empty:
        return
    case = whole["dtype"] + "\nN = " + whole.tokens.astype(str)
    share = 100.0 * whole.extra_memory.astype(float)
    whole = whole.assign(case=pd.Categorical(case, case.unique()), name=whole.implementation.map(LABELS), memory=share)
    for column in ("seconds", "seconds_p20", "seconds_p80", *LIMITS):
        whole[column] *= 1e3 / whole.tokens
    by_name = whole.pivot(index="case", columns="name")
    figure = Figure(figsize=(10.4, 4.2), layout="constrained")
    times, memory = figure.subplots(1, 2)
    middle = by_name.seconds
    spread = [[middle[name] - by_name.seconds_p20[name], by_name.seconds_p80[name] - middle[name]] for name in middle]
    middle.plot.bar(ax=times, yerr=spread, color=COLORS, rot=0, ylabel="ms per token", xlabel="")
    for column, (label, style) in LIMITS.items():
        for place, height in enumerate(by_name[column].get("srpo_verl", [])):
            times.hlines(height, place - 0.45, place + 0.45, "black", style, label=label if place == 0 else None)
    by_name.memory.plot.bar(ax=memory, color=COLORS, rot=0, logy=True, legend=False, xlabel="")
    memory.yaxis.set_major_formatter("{x:g}")
    times.legend(frameon=False, ncols=2)
    times.set_ylim(top=1.35 * times.get_ylim()[1])  # room for the legend
    times.set_title("Support, teacher scoring, entropy,\ndivergence forward and backward")
    memory.set_ylabel("% of one logits tensor")
    memory.set_title("Peak memory beyond both logits tensors\nand the gradient")
    figure.savefig(path, dpi=150)
