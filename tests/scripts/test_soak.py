"""A soak's verdict: what grew, and that nothing did; on made-up samples."""

import pandas as pd

from scripts.endurance.soak import COLUMNS, draw, growth


def samples(memory):
    rows = [(1, step, "ray::WorkerDict", 7, memory(step), 40, 30) for step in range(0, 1001, 10)]
    return pd.DataFrame(rows, columns=COLUMNS)


def seconds(of_step):
    return pd.DataFrame([(step, of_step(step)) for step in range(1, 1001)], columns=["step", "seconds"])


def test_what_grew_is_named():
    flat, steady = samples(lambda step: 900 if step > 200 else 500), seconds(lambda step: 1.0)
    assert growth(flat, steady) == ["1 processes after step 200 of attempt 1", "seconds per step: 1.000 to 1.000"]
    leak = growth(samples(lambda step: 500 + step), seconds(lambda step: 1.0 + step / 1000))
    assert leak[1] == "GREW ray::WorkerDict 7: 785 to 1425 mib"
    assert leak[-1].endswith("GREW")


def test_the_figure_is_drawn(tmp_path):
    draw(samples(lambda step: 900), seconds(lambda step: 1.0), tmp_path / "soak.svg")
    assert "<svg" in (tmp_path / "soak.svg").read_text()
