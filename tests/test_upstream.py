"""What this package depends on inside veRL is listed, recorded, and compared with others uninstalled."""

import ast
import importlib
import inspect
import re
import shutil
import textwrap
import zipfile
from pathlib import Path

import pytest

from srpo_verl import installation, upstream
from srpo_verl.installation import PluginError, installed_source, judge_release
from srpo_verl.upstream.__main__ import main
from srpo_verl.upstream.points import IMPORTED, OVERRIDDEN
from srpo_verl.upstream.source import Source

PACKAGE = Path(upstream.__file__).parents[1]
TRAINER = Path("verl/trainer/ppo/v1/trainer_base.py")
NAMED = {"verl.plugins"}  # the entry-point group
DEFINITION = "    def _balance_batch("


def test_the_installed_veRL_is_as_recorded():
    source = installed_source()
    assert source.version in installation.SUPPORTED_VERL
    assert upstream.compare(source) == []
    assert upstream.recorded().keys() == upstream.points().keys()
    assert None not in upstream.recorded().values()


# --- the list is complete --------------------------------------------------------------------------------------------


def adapters():
    """Modules of the package that may extend classes of veRL."""
    for folder in ("verl_ext", "cpu"):
        for path in sorted((PACKAGE / folder).rglob("*.py")):
            if path.name != "__init__.py":
                name = path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")
                yield importlib.import_module(f"srpo_verl.{name}")


def overrides(cls):
    """Points of veRL that a class of ours overrides; what `dataclass` generates is nobody's override."""
    generated = vars(cls).get("__dataclass_fields__") is not None
    for name, value in vars(cls).items():
        if not (inspect.isroutine(value) or isinstance(value, property)) or (name.startswith("__") and generated):
            continue
        bases = (base for base in cls.__mro__[1:] if name in vars(base))
        base = next((base for base in bases if base.__module__.partition(".")[0] == "verl"), None)
        if base is not None:
            yield f"{base.__module__}:{base.__qualname__}.{name}"


def test_every_override_is_listed():
    found = {}
    for module in adapters():
        for name, cls in vars(module).items():
            if inspect.isclass(cls) and cls.__module__ == module.__name__ and set(overrides(cls)):
                found[f"{module.__name__}:{name}"] = set(overrides(cls))
    assert found == {ours: set(methods) for ours, methods in OVERRIDDEN.items()}


def syntax_of(cls):
    return ast.parse(textwrap.dedent(inspect.getsource(cls)))


def assigned_by(cls):
    """Attribute -> the methods of a class that assign it to self."""
    found = {}
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    for method in (node for node in ast.walk(syntax_of(cls)) if isinstance(node, functions)):
        for node in ast.walk(method):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.ctx, ast.Store)
                and ast.unparse(node.value) == "self"
            ):
                found.setdefault(node.attr, set()).add(method.name)
    return found


def used_of_veRL(cls):
    """For every name that a class of ours takes from a base of veRL, the points that would tell of a change."""
    nodes = (node for node in ast.walk(syntax_of(cls)) if isinstance(node, ast.Attribute))
    for name in {node.attr for node in nodes if ast.unparse(node.value) in ("self", "super()")}:
        owner, methods = next((base for base in cls.__mro__ if name in vars(base)), None), {name}
        if owner is None:
            bases = [base for base in cls.__mro__ if base.__module__.partition(".")[0] in ("srpo_verl", "verl")]
            owner = next((base for base in bases if name in assigned_by(base)), cls)
            assert owner is not cls or name in {**assigned_by(cls), **cls.__annotations__}, f"{cls}: whose is {name}?"
            methods = assigned_by(owner).get(name, {name})
        if owner.__module__.partition(".")[0] == "verl":
            yield {f"{owner.__module__}:{owner.__qualname__}.{method}" for method in methods}


def test_what_a_class_of_ours_takes_from_its_base_is_listed():
    """Methods that it calls, and of the attributes that it reads a method that assigns them."""
    points = upstream.points().keys()
    for ours in OVERRIDDEN:
        module, _, name = ours.partition(":")
        used = list(used_of_veRL(getattr(importlib.import_module(module), name)))
        assert [choices for choices in used if not choices & points] == [], ours


def is_module_of_veRL(name):
    return installed_source().module(name) is not None


def test_every_import_is_listed():
    found = set()
    for path in PACKAGE.rglob("*.py"):
        tree, modules = ast.parse(path.read_text()), {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "verl":
                for alias in node.names:
                    if is_module_of_veRL(f"{node.module}.{alias.name}"):
                        modules[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                    else:
                        found.add(f"{node.module}:{alias.name}")
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
                found.add(f"{modules[node.value.id]}:{node.attr}")
    assert found == set(IMPORTED)


def test_nothing_of_veRL_is_reached_in_a_way_that_the_list_does_not_see():
    """No `import verl.x`, whose uses the test above would miss; a module named in a string holds a point."""
    modules = {name.partition(":")[0] for name in upstream.points()}
    modules |= {name for entry in installation.REGISTRATIONS for name in (entry.after, entry.registry)}
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name == "upstream":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not [alias.name for alias in node.names if alias.name.startswith("verl.")], path
            if isinstance(node, ast.Constant) and re.fullmatch(r"verl(\.\w+)+", str(node.value)):
                known = any(name.partition(":")[0].startswith(node.value) for name in modules)
                assert known or node.value in NAMED, (path, node.value)


def test_every_registry_is_listed():
    assert {entry.registry for entry in installation.REGISTRATIONS} <= upstream.points().keys()


def test_the_page_on_upstream_shows_the_list():
    page = (PACKAGE.parent / "docs" / "upstream.md").read_text()
    assert upstream.overridden_table() in page


# --- another veRL ----------------------------------------------------------------------------------------------------


@pytest.fixture
def other(tmp_path):
    """A wheel of another veRL: the installed one's files that are points of ours, changed as the test says."""

    def build(version, change=lambda text: text):
        root = tmp_path / version
        installed = Path(importlib.import_module("verl").__file__).parents[1]
        for path in sorted((installed / "verl").rglob("*.py")):
            target = root / path.relative_to(installed)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        (root / "verl/version").mkdir(exist_ok=True)
        (root / "verl/version/version").write_text(f"{version}\n")
        file = root / TRAINER
        changed = change(file.read_text())
        file.write_text(changed)
        wheel = tmp_path / f"verl-{version}-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for path in root.rglob("*"):
                archive.write(path, path.relative_to(root))
        return root, wheel

    return build


def with_statement(text):
    head, definition, tail = text.partition(DEFINITION)
    end = tail.index('"""', tail.index('"""') + 3) + 3
    return f"{head}{definition}{tail[:end]}\n        metrics['changed'] = 1{tail[end:]}"


def with_comment(text):
    head, definition, tail = text.partition(DEFINITION)
    end = tail.index('"""', tail.index('"""') + 3) + 3
    return f"{head}{definition}{tail[:end]}\n        # another comment{tail[end:]}"


def without_method(text):
    return text.replace(DEFINITION, "    def _balance_rows(")


@pytest.mark.parametrize(
    ("change", "printed", "status"),
    [
        (with_statement, "changed  verl.trainer.ppo.v1.trainer_base:PPOTrainer._balance_batch", 1),
        (without_method, "vanished verl.trainer.ppo.v1.trainer_base:PPOTrainer._balance_batch", 1),
        (with_comment, None, 0),
        (lambda text: text, None, 0),
    ],
)
def test_the_command_compares_a_wheel(other, capsys, change, printed, status):
    assert change is not with_comment or change("x" + DEFINITION + '"""a"""') != "x" + DEFINITION + '"""a"""'
    root, wheel = other("0.9.2", change)
    for path in (wheel, root, root / "verl"):
        assert main([str(path)]) == status
        *differences, verdict = capsys.readouterr().out.splitlines()
        assert [line.partition("  (")[0] for line in differences] == ([printed] if printed else [])
        if printed:
            assert "overridden by SrpoTrainer: routes before the rows are balanced" in differences[0]
        total = len(upstream.points())
        assert verdict == f"veRL 0.9.2: {total - len(differences)} of {total} points as recorded"


def test_the_command_on_what_is_no_veRL(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "give a wheel, an sdist or the folder around verl" in capsys.readouterr().err


def test_a_newer_release_that_agrees_runs_with_a_warning(other, monkeypatch):
    root, _ = other("0.9.2", with_comment)
    monkeypatch.setattr(installation, "installed_source", lambda: Source(root))
    assert "veRL 0.9.2 is newer than the tested 0.9.1" in judge_release("0.9.2", None)
    assert judge_release("0.9.1", None) is None


def test_a_newer_release_that_differs_is_refused_with_the_list_unless_it_is_accepted(other, monkeypatch):
    root, _ = other("0.10.0", with_statement)
    monkeypatch.setattr(installation, "installed_source", lambda: Source(root))
    with pytest.raises(PluginError) as raised:
        judge_release("0.10.0", None)
    for part in ("1 of the things", "PPOTrainer._balance_batch", "SRPO_VERL_ACCEPT_VERL=0.10.0", "verl-core]==0.9.1"):
        assert part in str(raised.value)
    with pytest.raises(PluginError):
        judge_release("0.10.0", "0.9.2")
    assert "accepted by SRPO_VERL_ACCEPT_VERL" in judge_release("0.10.0", "0.10.0")


def test_the_switch_is_read_from_the_environment_of_the_run(monkeypatch, capsys):
    monkeypatch.setattr(installation, "version", lambda name: "0.8.0")
    installation.check_installation({installation.ACCEPT_VARIABLE: "0.8.0"})
    assert "veRL 0.8.0 is not supported and was accepted" in capsys.readouterr().err


# --- fingerprints ----------------------------------------------------------------------------------------------------


def fingerprint(tmp_path, text, point):
    (tmp_path / "verl").mkdir(exist_ok=True)
    (tmp_path / "verl/__init__.py").write_text("")
    (tmp_path / "verl/a.py").write_text(text)
    (tmp_path / "verl/b.py").write_text("from verl.a import *\nfrom .a import f as g\nfrom torch import Tensor\n")
    return Source(tmp_path).fingerprint(point)


def test_what_counts_and_what_does_not(tmp_path):
    text = "@d\ndef f(x, y=1):\n    'text'\n    return x\n"
    base = fingerprint(tmp_path, text, "verl.a:f")
    for same in ("@d\ndef f(x,\n      y=1):\n    # why\n    return (x)\n", "import z\n" + text):
        assert fingerprint(tmp_path, same, "verl.a:f") == base
    for other in (text.replace("y=1", "y=2"), text.replace("@d", "@e"), text.replace("return x", "return y")):
        assert fingerprint(tmp_path, other, "verl.a:f") != base
    assert fingerprint(tmp_path, text, "verl.b:f") == fingerprint(tmp_path, text, "verl.b:g") == base
    assert fingerprint(tmp_path, text, "verl.b:Tensor") is not None
    assert fingerprint(tmp_path, text, "verl.a:h") is None
    assert fingerprint(tmp_path, text, "verl.c:f") is None


def test_a_class_is_its_head_and_attributes(tmp_path):
    text = "class C(B):\n    a: int = 1\n    def m(self):\n        self.z = 2\n"
    head, method = (fingerprint(tmp_path, text, f"verl.a:{name}") for name in ("C", "C.m"))
    attribute, of_self = (fingerprint(tmp_path, text, f"verl.a:{name}") for name in ("C.a", "C.z"))
    changed = text.replace("= 2", "= 3")
    assert fingerprint(tmp_path, changed, "verl.a:C") == head
    assert fingerprint(tmp_path, changed, "verl.a:C.m") != method
    assert fingerprint(tmp_path, changed, "verl.a:C.z") != of_self
    assert fingerprint(tmp_path, changed, "verl.a:C.a") == attribute
    assert fingerprint(tmp_path, text.replace("(B)", "(D)"), "verl.a:C") != head
    assert fingerprint(tmp_path, text.replace("= 1", "= 4"), "verl.a:C.a") != attribute
