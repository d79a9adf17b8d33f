"""Names on veRL's command line that there are not: said by this package, with the choices, and not by Hydra."""

import sys

import pytest

from srpo_verl import plugin
from srpo_verl.config.command_line import check_arguments, named
from srpo_verl.errors import ConfigError
from tests.config import NAMES

OURS = ["--config-path", "pkg://srpo_verl.config", "--config-name"]


def refusal(*arguments):
    with pytest.raises(ConfigError) as raised:
        check_arguments(arguments)
    return str(raised.value)


def test_the_named_configurations():
    assert set(named()) == set(NAMES)
    for name in named():
        check_arguments([*OURS, name, "srpo.teacher.kind=live", "+data.custom=1", "benchmark=biology", "~srpo.budget"])


@pytest.mark.parametrize("name", ["srp", "base", "grpo_", "SRPO.yaml"])
def test_a_configuration_that_there_is_not(name):
    message = refusal(*OURS, name)
    assert message.startswith(f"--config-name={name!r}: ")
    assert ", ".join(NAMES[:1]) in message
    assert all(each in message for each in NAMES)


def test_the_likely_configuration_is_named():
    assert "did you mean srpo?" in refusal(*OURS, "srp")
    assert "what all configurations share" in refusal(*OURS, "base.yaml")
    assert "is missing" in refusal("--config-path=pkg://srpo_verl.config", "srpo.routing=none")


@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_a_key_that_there_is_not(prefix):
    """Hydra's advice is to prepend a plus."""
    message = refusal(*OURS, "srpo", f"{prefix}srpo.typo=1")
    assert message.startswith("srpo.typo=1: no such key; ")
    assert "srpo.routing" in message
    assert "did you mean srpo.teacher.ema_rate?" in refusal(*OURS, "grpo", f"{prefix}srpo.teacher.emarate=0.1")
    assert "srpo.routing is a value" in refusal(*OURS, "srpo", f"{prefix}srpo.routing.kind=all")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config-name", "ppo_trainer", "srpo.typo=1"],
        ["--config-path", "my/configs", "--config-name", "srp"],
        [*OURS, "mine", "--config-dir", "my/configs"],
        [*OURS, "srpo", "trainer.total_epochs=["],  # Hydra points at the place
        [*OURS, "srpo", "trainer.typo=1"],  # veRL's keys are Hydra's to judge
    ],
)
def test_what_is_not_ours_is_left_to_hydra(arguments):
    check_arguments(arguments)


def test_only_the_driver_of_a_run_of_ours_is_looked_at(monkeypatch):
    """veRL loads the plugin in every process; all others pass without an import."""
    entry = ["python", "-m", "verl.trainer.main_ppo"]
    wrong = [*OURS, "srp"]
    monkeypatch.delitem(sys.modules, "srpo_verl.config.command_line")
    for command in (entry, [*entry, "--config-name", "srp"], ["python", "-m", "pytest", *wrong], ["python", "x.py"]):
        monkeypatch.setattr(sys, "orig_argv", command)
        plugin.check_own_command()
        assert "srpo_verl.config.command_line" not in sys.modules
    monkeypatch.setattr(sys, "orig_argv", [*entry, *wrong])
    with pytest.raises(SystemExit, match="srpo_verl: --config-name='srp': there is no such configuration"):
        plugin.check_own_command()
