"""The table of methods: what the page says is what the package does."""

from scripts import methods
from srpo_verl.algos.routing import ROUTINGS
from srpo_verl.config.schema import default_values, parse


def test_the_page_holds_the_present_table():
    page = methods.PAGE.read_text(encoding="utf-8")
    assert methods.written(page) == page, "run python -m scripts.methods"


def test_every_configuration_and_every_routing_has_a_row_and_a_word():
    page = methods.PAGE.read_text(encoding="utf-8")
    rows = [line.split(" | ")[0].removeprefix("| ").strip("`") for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) == len(set(rows))
    assert set(methods.named()) <= set(rows)
    told = page.partition("## Where each comes from")[2]
    assert [row for row in rows if f"`{row}`" not in told] == []
    configured = {parse_of(name).routing for name in methods.named()}
    assert configured | {row.partition("=")[2] for row in rows if "=" in row} == set(ROUTINGS)


def parse_of(name):
    from tests.config import compose

    return parse(compose(name).srpo)


def test_the_cells_say_what_is_set():
    values = default_values()
    values["routing"] = "handover"
    values["weighting"] |= {"beta": 0.5, "floor": 0.1, "pass_rate": True}
    values["schedule"] = {"kind": "linear", "start": 3, "end": 7}
    values["demonstration"]["sources"] = ["memory", "sibling"]
    assert methods.cells(parse(values)) == (
        "1 - z (1 - p)",
        "z (1 - p)",
        "w, β = 0.5, floor 0.1 times v(p)",
        "memory, sibling",
        "1 to step 3, 0 from step 7",
        "none",
    )
    values = default_values() | {"routing": "none", "credit": "teacher_ratio"}
    assert methods.cells(parse(values))[-3:] == ("sibling", "constant", "(q/p)^sign(A), clipped at 1 ± 0.5")
    values["teacher_ratio"]["lambda"] = 0.25
    assert methods.cells(parse(values))[-1] == "(q/p)^sign(A), clipped at 1 ± 0.5, 0.25 of it"
