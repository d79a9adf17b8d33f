"""Numbers of the paper (arXiv 2604.02288, Tables 1 and 2, Figure 4b) that stand beside one's own.

Methods by what people call them (config/methods.py).
"""

from srpo_verl.config.methods import title_of

BUDGETS_H = (1, 5, 10)
"""Wall-clock budgets in hours of training."""

STEPS_OF_BUDGETS = (43, 230, 475)
"""About as many steps SRPO makes within them: a run shorter than an hour is looked at after the same shares of it."""

COLUMNS = ("Chemistry", "Physics", "Biology", "Materials", "Tool Use", "Average")

_START = {
    "Qwen3-8B": (41.1, 58.7, 30.5, 59.3, 57.9, 49.5),
    "Qwen3-4B": (43.6, 59.8, 30.8, 61.2, 58.8, 50.8),
}
_TABLE_1 = {
    "Qwen3-8B": {
        "grpo": "62.1 75.9 78.9 | 61.0 72.3 73.6 | 46.9 68.1 70.6 | 74.7 77.6 77.8 | 64.3 68.5 69.0 | 61.8 72.5 74.0",
        "sdpo": "71.6 80.6 80.6 | 67.6 74.0 74.0 | 52.1 58.5 58.5 | 68.1 76.6 76.6 | 64.8 65.7 65.7 | 64.8 71.1 71.1",
        "srpo": "69.2 81.8 83.0 | 69.5 77.1 78.4 | 55.8 68.3 72.8 | 74.9 79.2 81.5 | 65.2 71.2 71.2 | 66.9 75.5 77.4",
    },
    "Qwen3-4B": {
        "grpo": "64.1 76.9 78.3 | 64.8 71.9 71.9 | 39.1 51.6 55.5 | 78.0 78.9 80.1 | 62.9 62.9 62.9 | 61.8 68.4 69.7",
        "sdpo": "70.0 77.3 77.3 | 65.4 66.7 66.7 | 54.0 54.0 54.0 | 74.3 74.3 74.3 | 61.1 61.1 61.1 | 65.0 66.7 66.7",
        "srpo": "68.8 81.0 82.7 | 69.2 74.0 74.0 | 53.8 58.6 65.8 | 75.7 79.1 81.3 | 61.4 63.1 67.0 | 65.8 71.2 74.2",
    },
}
START = {model: dict(zip(COLUMNS, values, strict=True)) for model, values in _START.items()}
"""avg@16 before training, in percent, by model and benchmark."""

TABLE_1 = {
    model: {
        title_of(method): {
            column: tuple(float(number) for number in cell.split())
            for column, cell in zip(COLUMNS, row.split("|"), strict=True)
        }
        for method, row in rows.items()
    }
    for model, rows in _TABLE_1.items()
}
"""Best avg@16 in percent within each budget, by model, method and benchmark."""

TABLE_2 = {
    title_of("srpo"): (66.9, 75.5, 77.4),
    title_of("srpo_no_dw"): (66.5, 74.8, 75.6),
    title_of("advantage_mix"): (67.2, 72.3, 72.3),
}
"""Ablation: average over the five benchmarks, Qwen3-8B."""

STEP_SECONDS = {
    title_of("grpo"): (71.0, 82.4, 91.5),
    title_of("sdpo"): (85.9, 83.9, 83.7),
    title_of("srpo"): (83.4, 78.3, 75.8),
}
"""Figure 4b: seconds per step in the windows of the budgets."""
