"""The plugin is loaded, or somebody says so; and the traps of veRL's registries."""

import inspect
import os
import subprocess
import sys
import types
from importlib.metadata import EntryPoint, PackageNotFoundError

import pytest
from omegaconf import OmegaConf

from srpo_verl import installation, plugin
from srpo_verl.errors import ConfigError
from srpo_verl.installation import REGISTRATIONS, PluginError, check_installation, missing_registrations
from tests.config import compose


def test_everything_is_registered():
    assert missing_registrations() == {}
    check_installation()


def test_registering_again_changes_nothing():
    from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY
    from verl.workers.engine.base import EngineRegistry

    before = dict(POLICY_LOSS_REGISTRY), {name: dict(by) for name, by in EngineRegistry._engines.items()}
    plugin.register()
    assert (dict(POLICY_LOSS_REGISTRY), {name: dict(by) for name, by in EngineRegistry._engines.items()}) == before


def in_fresh_process(code):
    env = {key: value for key, value in os.environ.items() if not key.startswith("VERL_")}
    command = [sys.executable, "-W", "ignore", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    assert result.returncode == 0, result.stderr[-2000:]


def test_import_verl_alone_loads_the_plugin():
    """As in every process of a run: nobody imports srpo_verl there."""
    in_fresh_process(
        "import sys, verl\n"
        "from verl.trainer.ppo.core_algos import get_adv_estimator_fn, get_policy_loss_fn\n"
        "from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY\n"
        "found = [get_adv_estimator_fn('srpo'), get_policy_loss_fn('srpo'), TRAINER_REGISTRY['srpo']]\n"
        "sys.exit(0 if all(thing.__module__.startswith('srpo_verl.') for thing in found) else f'{found}')\n"
    )


@pytest.mark.parametrize(
    "first",
    [
        "srpo_verl.verl_ext.worker",  # as Ray does where it unpickles an actor's class
        "srpo_verl.verl_ext.estimator",
        "verl.workers.engine.fsdp.transformer_impl",
    ],
)
def test_whatever_is_imported_first_everything_is_registered(first):
    in_fresh_process(
        f"import sys, {first}\n"
        "from srpo_verl.installation import missing_registrations\n"
        "missing = missing_registrations()\n"
        "sys.exit(f'{missing}' if missing else 0)\n"
    )


def test_an_adapter_that_fails_leaves_veRL_alone_and_is_told(monkeypatch, caplog):
    """A stock run on a veRL that the adapters do not fit goes on."""
    monkeypatch.setitem(sys.modules, "srpo_verl.broken", None)
    plugin._importing("srpo_verl.broken")(types.ModuleType("verl.something"))
    assert "srpo_verl.broken does not work with this veRL" in caplog.text


# --- what check_installation notices ---------------------------------------------------------------------------------


def refusal():
    with pytest.raises(PluginError) as raised:
        check_installation()
    return str(raised.value)


@pytest.mark.parametrize("found", ["0.9.0", "0.8.0", "0.9.1.dev0", ""])
def test_an_older_release_of_verl(monkeypatch, found):
    """A newer one is compared; see test_upstream.py."""
    monkeypatch.setattr(installation, "version", lambda name: {"verl": found}[name])
    message = refusal()
    assert f"veRL {found} is installed, supported: 0.9.1" in message
    assert "pip install 'verl[verl-core]==0.9.1'" in message
    assert f"SRPO_VERL_ACCEPT_VERL={found}" in message


def test_no_verl(monkeypatch):
    def version(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(installation, "version", version)
    message = refusal()
    assert "veRL is not installed" in message
    assert "pip install 'verl[verl-core]==0.9.1'" in message


@pytest.mark.parametrize("others", [[], [EntryPoint("other", "other.plugin", "verl.plugins")]])
def test_no_entry_point(monkeypatch, others):
    """Run from a checkout that is on the path but not installed: Ray's processes would train plain veRL."""
    monkeypatch.setattr(installation, "entry_points", lambda group: {"verl.plugins": others}[group])
    message = refusal()
    assert "importable but not installed" in message
    assert installation.INSTALL in message


def test_the_installed_entry_point_is_the_one_looked_for():
    from importlib.metadata import entry_points

    points = [point for point in entry_points(group="verl.plugins") if point.name == "srpo_verl"]
    assert points
    assert all(point.load() is plugin for point in points)


def test_the_supported_release_is_the_one_the_package_requires():
    from importlib.metadata import requires

    required = [line for line in requires("srpo-verl") if line.startswith("verl[") and "extra" not in line]
    assert len(required) == 1
    assert required[0].partition("==")[2] in installation.SUPPORTED_VERL


@pytest.mark.parametrize(
    ("value", "loaded"),
    [
        (None, True),
        ("auto", True),
        (" Auto ", True),
        ("srpo_verl", True),
        ("other, srpo_verl", True),
        ("none", False),
        ("", False),
        ("other", False),
        ("srpo_verl_too", False),
    ],
)
def test_the_policy_is_read_as_verl_reads_it(value, loaded, tmp_path):
    """The oracle is the part of `verl/__init__.py` that looks for plugins, run with an importer that only notes."""
    assert installation.is_loaded_under(value) is loaded
    import verl

    source = inspect.getsource(verl)
    start, end = source.index("_plugins_policy = "), source.index('if os.getenv("VERL_USE_MODELSCOPE"')
    loads = []

    class Point:
        name = installation.ENTRY_POINT

        def load(self):
            loads.append(self.name)

    environment = {} if value is None else {installation.POLICY_VARIABLE: value}
    names = {"os": types.SimpleNamespace(getenv=environment.get), "logging": None}
    code = source[start:end].replace("from importlib.metadata import entry_points as _entry_points", "pass")
    exec(code, names | {"_entry_points": lambda group: [Point()]})
    assert bool(loads) is loaded


@pytest.mark.parametrize("value", ["none", "other"])
def test_a_policy_that_leaves_the_plugin_out(monkeypatch, value):
    """This process has everything registered; the processes of the run would have nothing."""
    assert missing_registrations() == {}
    monkeypatch.setenv(installation.POLICY_VARIABLE, value)
    message = refusal()
    assert f"VERL_USE_EXTERNAL_PLUGINS={value!r} leaves srpo_verl out" in message
    assert "unset it" in message


def test_a_policy_that_the_configuration_sets_for_ray_s_processes():
    with pytest.raises(PluginError, match="leaves srpo_verl out"):
        check_installation({installation.POLICY_VARIABLE: "none"})


NAMES = ["advantage estimator srpo", "engine srpo_student", "engine srpo_teacher", "policy loss srpo", "trainer srpo"]


def registries():
    return {
        f"{entry.what} {entry.name}": (installation._registry(entry.registry), entry.name) for entry in REGISTRATIONS
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_registration_is_named(monkeypatch, name):
    registry, key = registries()[name]
    monkeypatch.delitem(registry, key)
    assert missing_registrations() == {name: None}
    message = refusal()
    assert f"not registered in veRL: {name}." in message
    assert "python -m srpo_verl doctor" in message


def test_every_missing_registration_is_named(monkeypatch):
    assert sorted(registries()) == NAMES
    for registry, key in registries().values():
        monkeypatch.delitem(registry, key)
    assert sorted(missing_registrations()) == NAMES


def test_the_cause_of_a_missing_registration_is_named(monkeypatch):
    registry, key = registries()["trainer srpo"]
    monkeypatch.delitem(registry, key)
    monkeypatch.setitem(sys.modules, "srpo_verl.verl_ext.trainer", None)
    assert "trainer srpo (ModuleNotFoundError: import of srpo_verl.verl_ext.trainer halted" in refusal()


def test_the_engines_are_found_by_the_type_the_worker_sets(monkeypatch):
    """On a device of each kind, with both versions of FSDP."""
    from verl.workers.engine.base import EngineRegistry

    from srpo_verl.verl_ext.engine import SrpoEngine, SrpoTeacherEngine

    for model_type, engine in (("srpo_student", SrpoEngine), ("srpo_teacher", SrpoTeacherEngine)):
        for strategy in ("fsdp", "fsdp2"):
            for device in ("cuda", "npu", "cpu"):
                monkeypatch.setenv("VERL_ENGINE_DEVICE", device)
                assert EngineRegistry.get_engine_cls(model_type, strategy) is engine


# --- the trainer's mode ----------------------------------------------------------------------------------------------


@pytest.fixture
def config():
    return compose("srpo", "platform=cpu")


def test_verls_trainer_still_compares_the_mode_with_sync():
    """The reason for rewriting it. Should this fail, look whether SrpoTrainer still has to."""
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

    source = inspect.getsource(PPOTrainer)
    assert source.count('self.trainer_mode == "sync"') >= 2
    assert source.count('self.trainer_mode != "sync"') >= 4
    assert 'if self.trainer_mode == "sync" else ReplayBufferAsync' in inspect.getsource(
        PPOTrainer._build_replay_buffer
    )


def test_the_trainer_is_registered_under_its_own_mode(config):
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY
    from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

    from srpo_verl.verl_ext.trainer import SrpoTrainer

    assert config.trainer.v1.trainer_mode == "srpo"
    assert TRAINER_REGISTRY["srpo"] is SrpoTrainer
    assert TRAINER_REGISTRY["sync"] is PPOTrainerSync  # veRL's own is left alone


def test_the_mode_is_sync_before_the_base_class_looks(config, monkeypatch):
    from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

    from srpo_verl.verl_ext.trainer import SrpoTrainer

    seen = []

    def base(self, given):
        seen.append((given.trainer.v1.trainer_mode, OmegaConf.to_container(given.actor_rollout_ref.srpo)))

    monkeypatch.setattr(PPOTrainerSync, "__init__", base)
    group = OmegaConf.to_container(config.srpo)
    trainer = SrpoTrainer(config)
    assert seen == [("sync", group)]  # workers get the group with actor_rollout_ref, the only part they are given
    assert trainer.srpo.routing == "sample"


def test_verls_own_constructor_takes_the_synchronous_replay_buffer(monkeypatch):
    """The real base class; only the two buffers are replaced, because they need a running TransferQueue."""
    from verl.trainer.ppo.v1 import trainer_base

    from srpo_verl.verl_ext.trainer import SrpoTrainer

    built = []
    for name in ("ReplayBuffer", "ReplayBufferAsync"):
        monkeypatch.setattr(trainer_base, name, lambda name=name, **kwargs: built.append((name, kwargs)))
    monkeypatch.setattr(trainer_base, "RolloutMoELoadBalanceMetricsAccumulator", lambda model_config: None)
    trainer = SrpoTrainer(compose("srpo"))
    assert [(name, kwargs["trainer_mode"]) for name, kwargs in built] == [("ReplayBuffer", "sync")]
    assert trainer.trainer_mode == "sync"
    assert not trainer.use_critic


def test_a_wrong_configuration_never_reaches_the_base_class(config, monkeypatch):
    """Also for whoever composes without our Hydra callback."""
    from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

    from srpo_verl.verl_ext.trainer import SrpoTrainer

    monkeypatch.setattr(PPOTrainerSync, "__init__", lambda self, given: pytest.fail("the base class was reached"))
    config.srpo.teacher.ema_rate = 7
    with pytest.raises(ConfigError, match=r"srpo\.teacher\.ema_rate=7"):
        SrpoTrainer(config)
