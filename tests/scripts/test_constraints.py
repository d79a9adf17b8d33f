"""The exact versions for GPUs: how the files are made, and that they hold what the extras and veRL ask for."""

import ast
from importlib.metadata import requires

import pytest
from packaging.requirements import Requirement

from scripts import constraints
from scripts.constraints import ENGINES, PYTHONS, merge

NEVER = "flash-attn-4"


def environment(python, **more):
    return {
        "python_version": python,
        "python_full_version": f"{python}.1",
        "sys_platform": "linux",
        "extra": "",
        **more,
    }


def pinned(engine, python):
    """{name: version} of the lines that hold for one Python, as pip reads them."""
    lines = constraints.path_of(engine).read_text().splitlines()
    found = {}
    for requirement in (Requirement(line) for line in lines if not line.startswith("#")):
        if requirement.marker is None or requirement.marker.evaluate(environment(python)):
            assert requirement.name not in found, f"{requirement.name} twice for Python {python}"
            (specifier,) = requirement.specifier
            assert specifier.operator == "=="
            found[requirement.name.lower()] = specifier.version
    return found


def asked(package, extras, python, seen=None):
    """Direct requirements of a distribution with some extras, those that name the distribution itself unfolded."""
    seen = seen if seen is not None else set()
    for requirement in map(Requirement, requires(package) or []):
        holds = requirement.marker is None or any(
            requirement.marker.evaluate(environment(python, extra=extra)) for extra in ("", *extras)
        )
        if not holds:
            continue
        if requirement.name != package:
            yield requirement
        elif fresh := requirement.extras - seen:
            yield from asked(package, fresh, python, seen | fresh)


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.extra)
def test_the_file_satisfies_the_extra_and_verl(engine, python):
    found = pinned(engine, python)
    wanted = [*asked("srpo-verl", {engine.extra}, python), *asked("verl", {engine.extra, "fsdp"}, python)]
    assert {"torch", "flash-attn", engine.extra} <= {requirement.name for requirement in wanted}
    for requirement in wanted:
        name = requirement.name.lower().replace("_", "-")
        assert name in found, requirement
        assert requirement.specifier.contains(found[name], prereleases=True), f"{requirement}, found {found[name]}"


def extra(name):
    """One entry of `extras_require` as setup.py has it, also where it was installed earlier."""
    nodes = ast.walk(ast.parse((constraints.ROOT / "setup.py").read_text()))
    (table,) = (node.value for node in nodes if isinstance(node, ast.keyword) and node.arg == "extras_require")
    return next(
        ast.literal_eval(value)
        for key, value in zip(table.keys, table.values, strict=True)
        if isinstance(key, ast.Constant) and key.value == name
    )


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.extra)
def test_an_extra_is_the_engine_and_the_training_of_one_verl(engine):
    (requirement,) = map(Requirement, extra(engine.extra))
    assert (requirement.name, requirement.extras) == ("verl", {engine.extra, "fsdp"})
    assert requirement.specifier.contains(pinned(engine, "3.12")["verl"])


def test_veRLs_own_extra_brings_flash_attn_for_the_torch_it_pins():
    """What `fsdp` in setup.py is for; where veRL moves it elsewhere, the extras have to follow."""
    names = {requirement.name: str(requirement.specifier) for requirement in asked("verl", {"fsdp"}, "3.12")}
    assert names["flash-attn"].startswith("==")
    assert names["torch"] == "==2.11.0"
    engines = {requirement.name for requirement in asked("verl", {"vllm"}, "3.12")}
    assert "flash-attn" not in engines


def test_overrides_are_in_the_file_that_was_resolved_under_them():
    (engine,) = (engine for engine in ENGINES if engine.overrides)
    lines = (constraints.FOLDER / engine.overrides).read_text().splitlines()
    for requirement in (Requirement(line) for line in lines if not line.startswith("#")):
        for python in PYTHONS:
            found = pinned(engine, python)
            if requirement.name == NEVER:
                assert NEVER not in found
            else:
                assert requirement.specifier.contains(found[requirement.name])


def test_a_version_of_some_pythons_gets_a_marker():
    resolved = {"3.10": {"a": "1", "b": "1", "c": "1"}, "3.11": {"a": "1", "b": "2"}, "3.12": {"a": "1", "b": "2"}}
    assert merge(resolved) == [
        "a==1",
        'b==1 ; python_version == "3.10"',
        'b==2 ; python_version == "3.11" or python_version == "3.12"',
        'c==1 ; python_version == "3.10"',
    ]


def test_the_command_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(constraints.shutil, "which", lambda name: None)
    monkeypatch.setattr(constraints.sys, "argv", ["constraints", "check"])
    with pytest.raises(SystemExit):
        constraints.main()
    assert "pip install uv" in capsys.readouterr().err


def test_check_fails_where_an_extra_does_not_resolve(monkeypatch, capsys):
    """uv's part is run by hand, with the network; here, what becomes of its answers."""
    answers = {"vllm": {"torch": "2.11.0"}, "sglang": "error: No solution found\n  cause: ..."}
    monkeypatch.setattr(constraints.shutil, "which", lambda name: name)
    monkeypatch.setattr(constraints, "resolve", lambda engine, python, under: answers[engine.extra])
    monkeypatch.setattr(constraints.sys, "argv", ["constraints", "check"])
    assert constraints.main() == 1
    shown = capsys.readouterr()
    assert "PASS  vllm    Python 3.12: 1 packages" in shown.out
    assert "FAIL  sglang  Python 3.10: error: No solution found" in shown.out
    assert "cause" in shown.err
