"""The registry of methods: a file, or an entry of the routings, is all that the report needs to name one."""

import shutil

import pytest
import torch
from omegaconf import OmegaConf

from srpo_verl.algos.routings import ROUTINGS, Rule, Shares
from srpo_verl.config import methods
from srpo_verl.config.schema import default_values
from srpo_verl.report.groups import group_runs
from srpo_verl.report.loader import load_runs
from tests.config import NAMES, PAPER, compose
from tests.report.logs import record, training_line, write


def test_every_method_has_a_title_of_its_own():
    found = methods.methods()
    assert {method.name for method in found} >= {*NAMES}
    assert [method.name for method in found[: len(PAPER)]] == list(methods.PAPER)
    assert set(methods.PAPER) == set(PAPER)
    titles = [method.title for method in found]
    assert len(set(titles)) == len(titles)
    assert {method.routing for method in found} == set(ROUTINGS)
    # A routing without a configuration says itself what it is called.
    assert all(method.title != method.name for method in found)


@pytest.mark.parametrize("name", NAMES)
def test_a_configuration_s_run_is_called_by_its_title(name):
    group = OmegaConf.to_container(compose(name).srpo)
    (method,) = (method for method in methods.methods() if method.name == name)
    assert methods.title_of_group(group) == methods.title_of(name) == method.title


@pytest.mark.parametrize(
    ("name", "override", "title"),
    [
        ("sdpo", "srpo.weighting.beta=0.5", "SDPO"),
        ("opsd", "srpo.demonstration.reference_column=extra_info.solution", "OPSD"),
        ("srpo", "srpo.weighting.floor=0.1", "SRPO"),
        ("srpo", "srpo.routing=keep_negative", "SRPO, negatives kept"),
        ("srpo", "srpo.routing=my_module:mine", "my_module:mine"),
        ("srpo_handover", "srpo.weighting.beta=0", "hand-over"),
    ],
)
def test_what_is_changed_of_a_method_is_a_setting_of_it(name, override, title):
    assert methods.title_of_group(OmegaConf.to_container(compose(name, override).srpo)) == title


def test_one_routing_and_one_file_are_a_method_with_its_name_in_the_report(tmp_path, monkeypatch):
    def halves(rows):
        return Shares(torch.zeros_like(rows.correct_B), 0.5 * rows.failed_with_teacher_B)

    folder = tmp_path / "config"
    folder.mkdir()
    for path in methods.FOLDER.glob("*.yaml"):
        shutil.copy(path, folder)
    file = (folder / "srpo_handover.yaml").read_text()
    for old, new in (("app_name: hand-over", "app_name: SRPO by halves"), ("routing: handover", "routing: halves")):
        assert old in file
        file = file.replace(old, new)
    (folder / "srpo_halves.yaml").write_text(file)
    log = write(tmp_path / "run" / "log.jsonl", [training_line(1), training_line(2)])
    record(log, routing="halves")
    (group,) = group_runs(load_runs([log])[0])
    assert group.label == "halves"
    monkeypatch.setattr(methods, "FOLDER", folder)
    monkeypatch.setitem(ROUTINGS, "halves", Rule(halves, "0", "z / 2", "for a test"))
    (group,) = group_runs(load_runs([log])[0])
    assert group.label == "SRPO by halves"
    assert "srpo_halves" in methods.named()
    assert methods.title_of_group(default_values()) == "SRPO"
