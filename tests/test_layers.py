"""Who may import whom, read from the sources; and what no source file may be."""

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "srpo_verl"
SOURCES = sorted(PACKAGE.rglob("*.py"))
# Where veRL is imported when the module is: the adapters, the CPU platform, and those who load or inspect both.
ADAPTERS = ("verl_ext/", "cpu/", "plugin.py", "preflight/loading.py", "doctor.py", "export.py")
LIMIT = 24_000
"""Bytes. A file that needs more is two files."""


def name_of(path):
    """srpo_verl/a/b.py -> srpo_verl.a.b; packages by their directory."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree, package, *, anywhere):
    """Absolute names of the imported modules (`from a import b` gives a.b); functions' own only if `anywhere`."""
    found = []
    stack = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            found += [f"{base}.{alias.name}" for alias in node.names]
        elif not anywhere and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        stack += ast.iter_child_nodes(node)
    return found


def imports_of(path, *, anywhere):
    package = name_of(path) if path.name == "__init__.py" else name_of(path).rpartition(".")[0]
    return imports(ast.parse(path.read_text()), package, anywhere=anywhere)


def is_in(name, module):
    return name == module or name.startswith(f"{module}.")


def relative(path):
    return path.relative_to(PACKAGE).as_posix()


def test_the_reader_of_imports_can_fail():
    tree = ast.parse(
        "import a.b as c\nfrom d import e\nfrom . import f\nfrom ..g import h\n"
        "if True:\n    import i\nclass C:\n    import j\n"
        "    def m(self):\n        import k\nasync def n():\n    import o\n"
    )
    module_level = {"a.b", "d.e", "p.q.f", "p.g.h", "i", "j"}
    assert set(imports(tree, "p.q", anywhere=False)) == module_level
    assert set(imports(tree, "p.q", anywhere=True)) == module_level | {"k", "o"}
    assert is_in("verl.utils", "verl")
    assert not is_in("verl_ext", "verl")


def test_there_is_something_to_check():
    names = {relative(path) for path in SOURCES}
    assert {"functional.py", "algos/routing.py", "teacher/ema.py", "verl_ext/trainer.py", "plugin.py"} <= names
    # The rules below would catch an adapter that strayed: adapters do import veRL.
    assert any(is_in(name, "verl") for name in imports_of(PACKAGE / "verl_ext" / "trainer.py", anywhere=False))


ALGORITHM = [path for path in SOURCES if relative(path).startswith("algos/") or relative(path) == "functional.py"]


@pytest.mark.parametrize("path", ALGORITHM, ids=relative)
def test_the_algorithm_needs_torch_alone(path):
    for name in imports_of(path, anywhere=True):
        top = name.partition(".")[0]
        allowed = top == "torch" or top in sys.stdlib_module_names or is_in(name, "srpo_verl.algos")
        assert allowed, f"{relative(path)} imports {name}"


@pytest.mark.parametrize("path", [p for p in SOURCES if relative(p).startswith("guards/")], ids=relative)
def test_the_guards_need_a_log_alone(path):
    for name in imports_of(path, anywhere=True):
        ours = is_in(name, "srpo_verl.guards") or is_in(name, "srpo_verl.budget")
        assert ours or name.partition(".")[0] in sys.stdlib_module_names, f"{relative(path)} imports {name}"


@pytest.mark.parametrize("path", [p for p in SOURCES if relative(p).startswith("teacher/")], ids=relative)
def test_the_teacher_knows_nothing_of_verl(path):
    for name in imports_of(path, anywhere=True):
        assert not is_in(name, "verl"), f"{relative(path)} imports {name}"
        assert not is_in(name, "srpo_verl.verl_ext"), f"{relative(path)} imports {name}"


@pytest.mark.parametrize("path", [p for p in SOURCES if not relative(p).startswith(ADAPTERS)], ids=relative)
def test_verl_is_imported_by_the_adapters_alone(path):
    for name in imports_of(path, anywhere=False):
        assert not is_in(name, "verl"), f"{relative(path)} imports {name}"
        for adapter in ("verl_ext", "plugin"):
            assert not is_in(name, f"srpo_verl.{adapter}"), f"{relative(path)} imports {name}"


def package_of(module):
    """srpo_verl.a.b -> a: a folder of the package, or a module that stands in none."""
    return ".".join(module.split(".")[1:2])


def test_no_import_goes_in_a_circle():
    """Neither among modules nor among the folders they stand in."""
    modules = {name_of(path): path for path in SOURCES}
    needs = {module: set(imports_of(path, anywhere=False)) & modules.keys() for module, path in modules.items()}
    # `from a import b` needs a as well, if b is only a name in it.
    for module, path in modules.items():
        needs[module] |= {name.rpartition(".")[0] for name in imports_of(path, anywhere=False)} & modules.keys()
        needs[module] -= {module}
    list(TopologicalSorter(needs).static_order())  # raises CycleError, which names them
    folders = {}
    for module, wanted in needs.items():
        folders.setdefault(package_of(module), set()).update(map(package_of, wanted))
    list(TopologicalSorter({one: others - {one} for one, others in folders.items()}).static_order())


# --- every file ------------------------------------------------------------------------------------------------------

SUFFIXES = {".py", ".yaml", ".yml", ".md", ".sh", ".toml"}
TREES = ("srpo_verl", "tests", "recipes", "scripts", "docs")


def written_files():
    """Sources and documentation of the checkout, without what runs leave behind."""
    paths = [path for tree in TREES for path in (ROOT / tree).rglob("*") if path.suffix in SUFFIXES]
    paths += [path for path in ROOT.iterdir() if path.suffix in SUFFIXES]
    return sorted(path for path in paths if path.is_file() and "outputs" not in path.relative_to(ROOT).parts)


def test_no_file_is_too_long_to_read():
    sizes = {path.relative_to(ROOT).as_posix(): path.stat().st_size for path in written_files()}
    assert len(sizes) > 50
    assert {name: size for name, size in sizes.items() if size > LIMIT} == {}


def lines_of_code(function):
    """Lines of a function without its docstring."""
    total = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        total -= first.end_lineno - first.lineno + 1
    return total


def test_no_file_and_no_function_of_the_package_is_long():
    assert max(len(path.read_text().splitlines()) for path in SOURCES) < 400
    functions = [
        (lines_of_code(node), f"{relative(path)}:{node.name}")
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert len(functions) > 500
    assert {name for lines, name in functions if lines >= 60} == set()


def test_nothing_is_left_to_do():
    marks = ("TO" + "DO", "FIX" + "ME")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in written_files()
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if any(mark in line for mark in marks)
    ]
    assert found == []
