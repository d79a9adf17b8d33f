"""Small charts as inline SVG: lines with bands, and bars. Colours are classes, for the page's style to decide."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup

from srpo_verl.report.groups import Curve

WIDTH, HEIGHT = 380, 236
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 26, 38
MAX_POINTS = 400
"""Of a line; longer ones are thinned evenly, which no eye and no screen can tell."""
WIDEST_BAR = 46
SLANTED = 40
"""Room below for names that do not fit side by side."""
SEED_POINTS = 150
"""Of the thin line of a single seed."""


@dataclass(frozen=True)
class Line:
    """A curve with its name and the number of its colour."""

    label: str
    color: int
    curve: Curve
    markers: bool = False


@dataclass(frozen=True)
class Bars:
    """Values of one group over the categories of a bar chart; None where there is none."""

    label: str
    color: int
    values: Sequence[float | None]
    spreads: Sequence[float] = ()


@dataclass
class Panel:
    """One chart: a title, axes and either lines or bars."""

    title: str
    x_label: str
    y_label: str
    lines: list[Line] = field(default_factory=list)
    bars: list[Bars] = field(default_factory=list)
    categories: Sequence[str] = ()
    percent: bool = False
    """The y axis ends at 0 and 100 at most."""
    whole: bool = False
    """The y axis goes from 0 to 100."""
    task: str = ""
    from_zero: bool = False
    stacked: bool = False

    @property
    def name(self) -> str:
        """For those who do not see where it stands."""
        return f"{self.task}: {self.title}" if self.task else self.title

    def svg(self) -> Markup:
        """The chart as an element; its data are in `data-lines` for whoever points at it."""
        return _bar_chart(self) if self.bars else _line_chart(self)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers within [low, high], about `count` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _line_chart(panel: Panel) -> Markup:
    x_low, x_high = _range([line.curve.x for line in panel.lines], pad=0.0)
    values = [part for line in panel.lines for part in _visible(line.curve)]
    y_low, y_high = _range(values, pad=0.06)
    if panel.from_zero or (panel.percent and y_low < 15):
        y_low = 0.0
    if panel.percent:
        y_low, y_high = max(y_low, 0.0), min(y_high, 100.0)
    if panel.whole:
        y_low, y_high = 0.0, 100.0
    scale = _Scale(x_low, x_high, y_low, y_high)
    parts = [_axes(panel, scale, ticks(x_low, x_high), ticks(y_low, y_high))]
    drawn = []
    for line in panel.lines:
        curve = line.curve
        thin = _thinned(len(curve.x))
        x, mean, low, high = (values[thin] for values in (curve.x, curve.mean, curve.low, curve.high))
        shapes = []
        if curve.seeds > 1 and len(x) > 1:
            there = [scale.point(*pair) for pair in zip(x, np.minimum(high, y_high), strict=True)]
            back = [scale.point(*pair) for pair in zip(x[::-1], np.maximum(low, y_low)[::-1], strict=True)]
            shapes.append(f'<path class="band" d="M{"L".join([*there, *back])}Z"/>')
        for xs, ys in curve.lines:
            keep = _thinned(len(xs), SEED_POINTS)
            inside = [(a, b) for a, b in zip(xs[keep], ys[keep], strict=True) if math.isfinite(a) and math.isfinite(b)]
            shapes.append(f'<path class="seed" d="M{"L".join(scale.point(*pair) for pair in inside)}"/>')
        shapes.append(
            f'<path class="mean" d="M{"L".join(scale.point(*pair) for pair in zip(x, mean, strict=True))}"/>'
        )
        if line.markers or len(x) == 1:
            shapes += [_dot(scale, *pair) for pair in zip(x, mean, strict=True)]
        parts.append(_series(line.label, line.color, shapes))
        drawn.append(
            {
                "label": line.label,
                "x": _short(x),
                "y": _short(mean),
                **({"low": _short(low), "high": _short(high)} if curve.seeds > 1 else {}),
            }
        )
    places = [LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM]
    data = {"x": [x_low, x_high], "x_label": panel.x_label, "width": WIDTH, "places": places, "lines": drawn}
    return _svg(panel, parts, data)


def _bar_chart(panel: Panel) -> Markup:
    heights = [value for bars in panel.bars for value in bars.values if value is not None]
    if panel.stacked:
        heights = [sum(bars.values[at] or 0.0 for bars in panel.bars) for at in range(len(panel.categories))]
    high = max([*heights, 1e-9]) * 1.12
    scale = _Scale(0.0, float(len(panel.categories)), 0.0, high)
    parts = [_axes(panel, scale, [], ticks(0.0, high))]
    # In categories; a single bar is no wall.
    wide = min(0.62 if panel.stacked else 0.8 / len(panel.bars), WIDEST_BAR / scale.x_unit)
    first = 0.5 - wide / 2 * (1 if panel.stacked else len(panel.bars))
    floor = [0.0] * len(panel.categories)
    for index, bars in enumerate(panel.bars):
        shapes = []
        for at, value in enumerate(bars.values):
            if value is None:
                continue
            left = at + first + (0 if panel.stacked else index * wide)
            top, bottom = scale.y(floor[at] + value), scale.y(floor[at])
            x0, x1 = scale.x(left), scale.x(left + 0.94 * wide)
            shapes.append(
                f'<rect class="bar" x="{x0:.1f}" y="{top:.1f}" width="{x1 - x0:.1f}" height="{bottom - top:.1f}">'
                f"<title>{Markup.escape(bars.label)}: {value:.3g}</title></rect>"
            )
            if panel.stacked:
                floor[at] += value
                continue
            middle = (x0 + x1) / 2
            spread = bars.spreads[at] if len(bars.spreads) else 0.0
            if spread:
                shapes.append(
                    f'<path class="whisker" d="M{middle:.1f} {scale.y(value - spread):.1f}'
                    f'V{scale.y(value + spread):.1f}"/>'
                )
            if x1 - x0 > 13:
                above = scale.y(value + spread) - 4
                shapes.append(f'<text class="value" x="{middle:.1f}" y="{above:.1f}">{value:.3g}</text>')
        parts.append(_series(bars.label, bars.color, shapes))
    crowded = any(6.2 * len(name) > scale.x_unit for name in panel.categories)
    for at, name in enumerate(panel.categories):
        x, y, text = scale.x(at + 0.5), HEIGHT - BOTTOM + 14, Markup.escape(name)
        if crowded:
            parts.append(f'<text class="slanted" transform="translate({x + 4:.1f} {y:.1f}) rotate(-28)">{text}</text>')
        else:
            parts.append(f'<text class="tick x" x="{x:.1f}" y="{y:.1f}">{text}</text>')
    return _svg(panel, parts, None, SLANTED if crowded else 0)


class _Scale:
    """From values to places in the picture."""

    def __init__(self, x_low: float, x_high: float, y_low: float, y_high: float):
        self.x_low, self.y_low = x_low, y_low
        self.x_unit = (WIDTH - LEFT - RIGHT) / ((x_high - x_low) or 1.0)
        self.y_unit = (HEIGHT - TOP - BOTTOM) / ((y_high - y_low) or 1.0)

    def x(self, value: float) -> float:
        return LEFT + (value - self.x_low) * self.x_unit

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.y_low) * self.y_unit

    def point(self, x: float, y: float) -> str:
        return f"{self.x(x):.1f} {min(max(self.y(y), TOP - 4), HEIGHT - BOTTOM + 2):.1f}"


def _svg(panel: Panel, parts: Sequence[str], data: object, below: int = 0) -> Markup:
    lines = "" if data is None else f" data-lines='{Markup.escape(json.dumps(data, separators=(',', ':')))}'"
    return Markup(  # every text in it is escaped where it is put together
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT + below}" role="img" '
        f'aria-label="{Markup.escape(panel.name)}"{lines}>'
        f"{''.join(parts)}</svg>"
    )


def _series(label: str, color: int, shapes: Sequence[str]) -> str:
    return f'<g class="series c{color}" data-label="{Markup.escape(label)}">{"".join(shapes)}</g>'


def _axes(panel: Panel, scale: _Scale, x_ticks: Sequence[float], y_ticks: Sequence[float]) -> str:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = [f'<text class="title" x="{LEFT}" y="15">{Markup.escape(panel.title)}</text>']
    for value in y_ticks:
        y = scale.y(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{right}"/>')
        parts.append(f'<text class="tick y" x="{LEFT - 6}" y="{y + 3.5:.1f}">{_number(value)}</text>')
    for value in x_ticks:
        parts.append(f'<text class="tick x" x="{scale.x(value):.1f}" y="{bottom + 14}">{_number(value)}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{right}"/>')
    parts.append(
        f'<text class="label x" x="{(LEFT + right) / 2:.0f}" y="{HEIGHT - 5}">{Markup.escape(panel.x_label)}</text>'
    )
    middle = (TOP + bottom) / 2
    parts.append(
        f'<text class="label y" transform="translate(11 {middle:.0f}) rotate(-90)">'
        f"{Markup.escape(panel.y_label)}</text>"
    )
    return "".join(parts)


def _dot(scale: _Scale, x: float, y: float) -> str:
    return f'<circle class="dot" cx="{scale.x(x):.1f}" cy="{scale.y(y):.1f}" r="2.2"/>'


def _range(parts: Sequence[np.ndarray], pad: float) -> tuple[float, float]:
    """Smallest and largest finite value, with some room."""
    every = np.concatenate([np.asarray(part, dtype=float) for part in parts] or [np.zeros(1)])
    every = every[np.isfinite(every)]
    low, high = (float(every.min()), float(every.max())) if len(every) else (0.0, 1.0)
    if high == low:
        low, high = (low - 0.5, high + 0.5) if pad else (low - 1.0, high + 1.0)
    return low - pad * (high - low), high + pad * (high - low)


def _visible(curve: Curve) -> list[np.ndarray]:
    """What decides the y axis: mean, band, and the seeds' points without their few outliers."""
    single = [np.quantile(ys[np.isfinite(ys)], [0.02, 0.98]) for _, ys in curve.lines if np.isfinite(ys).any()]
    return [curve.mean, curve.low, curve.high, *single]


def _thinned(count: int, most: int = MAX_POINTS) -> np.ndarray:
    if count <= most:
        return np.arange(count)
    return np.unique(np.linspace(0, count - 1, most).round().astype(int))


def _short(values: np.ndarray) -> list[float | None]:
    return [float(f"{value:.4g}") if math.isfinite(value) else None for value in values]


def _number(value: float) -> str:
    return f"{value:g}"
