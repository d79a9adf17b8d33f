"""A routing is one entry of algos/routings.py: everything else goes by what the entry does."""

import ast
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import srpo_verl
from scripts import methods
from srpo_verl.algos.routings import ROUTINGS, Rows, Rule, Shares, effects_of
from srpo_verl.config.check import check_run
from srpo_verl.config.schema import parse
from srpo_verl.errors import ConfigError
from srpo_verl.functional import route_samples
from tests.config import compose


def halves(rows: Rows) -> Shares:
    """Half of SDPO on failed rows, and nothing else: no routing of the package."""
    return Shares(torch.zeros_like(rows.correct_B), 0.5 * rows.failed_with_teacher_B)


@pytest.fixture
def entry(monkeypatch):
    monkeypatch.setitem(ROUTINGS, "halves", Rule(halves, "0", "z / 2", "for a test"))


def test_an_entry_is_all_that_a_routing_needs(entry):
    config = compose("srpo", "srpo.routing=halves")
    srpo = check_run(config)
    assert (srpo.routing, srpo.uses_teacher, srpo.distils) == ("halves", True, True)
    routing = route_samples(torch.tensor([1.0, 0.0, 0.0]), ["a", "a", "b"], routing="halves")
    assert routing.sdpo_share_B.tolist() == [0.0, 0.5, 0.0]
    assert routing.grpo_share_B.tolist() == [0.0, 0.0, 0.0]
    assert "| `srpo.routing=halves` | halves | 0 | z / 2 | w, β = 1 | sibling | constant | none |" in methods.table()
    # What is refused with it follows as well: no row takes the loss of a KL, and failures alone need no memory here.
    refused = {
        "actor_rollout_ref.actor.use_kl_loss": {"actor_rollout_ref.actor.use_kl_loss": True},
        "srpo.demonstration.sources": {
            "srpo.weighting.pass_rate": True,
            "srpo.demonstration.sources": ["sibling", "memory"],
        },
    }
    for key, changes in refused.items():
        changed = config.copy()
        for name, value in changes.items():
            OmegaConf.update(changed, name, value)
        with pytest.raises(ConfigError) as error:
            check_run(changed)
        assert error.value.key == key


def test_without_the_entry_there_is_no_such_routing():
    with pytest.raises(ConfigError, match="has to be one of sample, none"):
        parse(compose("srpo", "srpo.routing=halves").srpo)
    assert effects_of("halves") == effects_of("my_module:my_routing")  # unknown: taken to do anything


def test_no_other_file_knows_a_routing_by_name():
    """But for a default, credit, which is GRPO's, two that have a key of their own, and names of configurations."""
    root = Path(srpo_verl.__file__).parent
    found = {
        (str(path.relative_to(root)), node.value)
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in set(ROUTINGS) - {"none"}
    }
    elsewhere = {(file, name) for file, name in found if file != "algos/routings.py"}
    assert elsewhere == {
        ("algos/routing.py", "sample"),
        ("config/schema.py", "advantage_mix"),
        ("config/schema.py", "fixed_negative"),
        ("config/methods.py", "advantage_mix"),
        ("launch/cells.py", "advantage_mix"),
        ("report/figures.py", "advantage_mix"),
        ("report/paper.py", "advantage_mix"),
    }
