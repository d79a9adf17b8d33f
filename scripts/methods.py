"""The table of docs/methods.md: every named configuration, and every routing without one, from what the package says.

python -m scripts.methods          writes the table into the page
python -m scripts.methods --check  exits with 1 where the page has another one
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hydra import compose, initialize_config_module

from srpo_verl.algos.routings import ROUTINGS
from srpo_verl.config.methods import methods, named
from srpo_verl.config.schema import SrpoConfig, default_values, parse
from srpo_verl.markdown import markdown_table

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
START, END = "<!-- written by python -m scripts.methods -->\n", "<!-- end -->\n"
HEADER = ("method", "called", "g", "d", "weights", "demonstrations", "schedule", "credit")


def table() -> str:
    """The table as Markdown."""
    configured, rows = named(), []
    with initialize_config_module(config_module="srpo_verl.config", version_base=None):
        for method in methods():
            if method.name in configured:
                name, config = method.name, parse(compose(method.name).srpo)
            else:
                name = f"srpo.routing={method.name}"
                config = parse({**default_values(), "routing": method.name})
            rows.append((f"`{name}`", method.title, *cells(config)))
    return markdown_table(HEADER, rows) + "\n"


def cells(config: SrpoConfig) -> tuple[str, ...]:
    """A method's row without its name."""
    rule = ROUTINGS[config.routing]
    if not config.uses_teacher:
        return rule.grpo, rule.sdpo, "none", "none", "none", "none"
    sources, schedule = ", ".join(config.demonstration.sources), config.schedule
    line = "constant" if schedule.kind == "constant" else f"1 to step {schedule.start}, 0 from step {schedule.end}"
    if config.gives_credit:
        credit = f"(q/p)^sign(A), clipped at 1 ± {config.credit_epsilon:g}"
        credit += "" if config.credit_lambda == 1 else f", {config.credit_lambda:g} of it"
        return rule.grpo, rule.sdpo, "none", sources, line, credit
    weights = "1" if config.weighting.beta == 0 else f"w, β = {config.weighting.beta:g}"
    if config.weighting.floor:
        weights += f", floor {config.weighting.floor:g}"
    if config.weighting.pass_rate:
        weights += " times v(p)"
    return rule.grpo, rule.sdpo, weights, sources, line, "none"


def written(page: str) -> str:
    """The page with the present table between its marks."""
    before, _, rest = page.partition(START)
    _, _, after = rest.partition(END)
    return before + START + "\n" + table() + "\n" + END + after


def main() -> int:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--check", action="store_true", help="change nothing; say whether the page is up to date")
    page = PAGE.read_text(encoding="utf-8")
    now = written(page)
    if not arguments.parse_args().check:
        PAGE.write_text(now, encoding="utf-8")
        return 0
    print("up to date" if now == page else f"{PAGE}: run python -m scripts.methods")
    return int(now != page)


if __name__ == "__main__":
    sys.exit(main())
