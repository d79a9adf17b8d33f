"""Reading veRL's sources without importing or installing it: fingerprints of its functions, classes and attributes."""

from __future__ import annotations

import ast
import hashlib
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

_IGNORED = ("ctx", "type_params", "type_comment", "kind")


class Source:
    """The files of one veRL: a folder that contains `verl`, a wheel or an sdist.

    Raises FileNotFoundError where the path is none of these.
    """

    def __init__(self, path: Path):
        self._read = _reader(path)
        if self._read("verl/__init__.py") is None:
            raise FileNotFoundError(
                f"{path} holds no verl/__init__.py; give a wheel, an sdist or the folder around verl"
            )
        self._trees: dict[str, ast.Module | None] = {}

    @property
    def version(self) -> str:
        """What veRL says of itself."""
        return (self._read("verl/version/version") or "unknown").strip()

    def module(self, name: str) -> ast.Module | None:
        """The parsed module or package; None where there is none."""
        if name not in self._trees:
            base = name.replace(".", "/")
            text = self._read(f"{base}.py")
            text = self._read(f"{base}/__init__.py") if text is None else text
            self._trees[name] = None if text is None else ast.parse(text)
        return self._trees[name]

    def fingerprint(self, point: str) -> str | None:
        """Hash of what `module:name` or `module:Class.name` stands for; None where veRL has no such thing.

        Of a function all but its docstring; of a class its head and attributes without the methods, which are points
        of their own; of another name every statement that assigns it. Layout and comments do not count.
        """
        module, _, path = point.partition(":")
        nodes = self._find(module, path.split("."), depth=0)
        if not nodes:
            return None
        return hashlib.blake2b("\n".join(map(_canonical, nodes)).encode(), digest_size=8).hexdigest()

    def _find(self, module: str, path: list[str], depth: int) -> list[ast.AST]:
        tree = self.module(module)
        if tree is None or depth > 5 or module.partition(".")[0] != "verl":
            return []
        found = _named(tree.body, path[0])
        if not found:
            return self._imported(module, tree, path, depth)
        if len(path) == 1:
            return found
        classes = [node for node in found if isinstance(node, ast.ClassDef)]
        return _named(classes[-1].body, path[1]) or _assigned_to_self(classes[-1], path[1]) if classes else []

    def _imported(self, module: str, tree: ast.Module, path: list[str], depth: int) -> list[ast.AST]:
        """The same, where the module has the name from another one."""
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom):
                continue
            for alias in node.names:
                if (alias.asname or alias.name) == path[0] or alias.name == "*":
                    target = self._target(module, node)
                    if target.partition(".")[0] != "verl" and alias.name != "*":
                        return [node]  # veRL passes on another package's
                    name = path[0] if alias.name == "*" else alias.name
                    found = self._find(target, [name, *path[1:]], depth + 1)
                    if found:
                        return found
        return []

    def _target(self, module: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        is_package = self._read(f"{module.replace('.', '/')}/__init__.py") is not None
        parts = module.split(".")
        parts = parts[: len(parts) - node.level + (1 if is_package else 0)]
        return ".".join([*parts, node.module] if node.module else parts)


def _reader(path: Path) -> Callable[[str], str | None]:
    if path.is_dir():
        root = path.parent if path.name == "verl" and not (path / "verl").is_dir() else path

        def from_folder(name: str) -> str | None:
            file = root / name
            return file.read_text(encoding="utf-8") if file.is_file() else None

        return from_folder
    files: dict[str, str] = {}
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.startswith("verl/") and name.endswith((".py", "version/version")):
                    files[name] = archive.read(name).decode()
    elif path.is_file() and tarfile.is_tarfile(path):
        with tarfile.open(path) as tar:
            for member in tar.getmembers():
                name = member.name.partition("/")[2]
                stream = tar.extractfile(member) if name.startswith("verl/") and member.isfile() else None
                if stream is not None and name.endswith((".py", "version/version")):
                    files[name] = stream.read().decode()
    return files.get


def _named(body: list[ast.stmt], name: str) -> list[ast.AST]:
    """Definitions and assignments of a name, also inside `if`, `try` and `with`, in their order."""
    found: list[ast.AST] = []
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found += [node] if node.name == name else []
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found += [node] if any(isinstance(target, ast.Name) and target.id == name for target in targets) else []
        else:
            for handler in getattr(node, "handlers", []):
                found += _named(handler.body, name)
            for field in ("body", "orelse", "finalbody"):
                found += _named(getattr(node, field, []), name)
    return found


def _assigned_to_self(node: ast.ClassDef, name: str) -> list[ast.AST]:
    """Every statement of a class that assigns `self.name`."""

    def is_it(target: ast.expr) -> bool:
        return isinstance(target, ast.Attribute) and target.attr == name and ast.unparse(target.value) == "self"

    assignments = [statement for statement in ast.walk(node) if isinstance(statement, ast.Assign)]
    return [statement for statement in assignments if any(is_it(target) for target in statement.targets)]


def _canonical(node: object) -> str:
    """A text of a syntax tree that is the same for Python 3.10 to 3.12, without docstrings."""
    if isinstance(node, list):
        return f"[{','.join(map(_canonical, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = {name: value for name, value in ast.iter_fields(node) if name not in _IGNORED}
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        body = node.body[1:] if ast.get_docstring(node) is not None else node.body
        if isinstance(node, ast.ClassDef):
            methods_and_texts = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Expr)
            body = [statement for statement in body if not isinstance(statement, methods_and_texts)]
        fields["body"] = body
    inner = ",".join(f"{name}={_canonical(value)}" for name, value in fields.items() if value not in (None, []))
    return f"{type(node).__name__}({inner})"
