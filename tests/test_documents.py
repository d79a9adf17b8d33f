"""README, docs and CONTRIBUTING against the checkout: links, paths, names of code, maps of files."""

import ast
import re
from functools import cache

import pytest

from srpo_verl.upstream.points import RELIED_ON
from tests.pages import FENCE, PAGES, ROOT, page_id, prose
from tests.test_layers import PACKAGE, SOURCES, TREES, relative

LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)")


def anchors(path):
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_link_leads_somewhere(page):
    for target, anchor in LINK.findall(prose(page)):
        goal = page.parent / target if target else page
        assert goal.exists(), f"{page_id(page)} links to {target}"
        if anchor:
            assert anchor in anchors(goal), f"{page_id(page)} links to {target}#{anchor}"


# --- names of code ---------------------------------------------------------------------------------------------------


@cache
def defined(path):
    """Names that a module defines; of a class's methods and fields as Class.name."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        targets = getattr(node, "targets", None) or [getattr(node, "target", None)]
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            members = (
                getattr(inner, "name", getattr(getattr(inner, "target", None), "id", None)) for inner in node.body
            )
            names |= {f"{node.name}.{member}" for member in members if member}
    return names


def find(path):
    """A path as the pages write it, from the root of the checkout or of the package."""
    return next((root / path for root in (ROOT, PACKAGE) if (root / path).exists()), None)


PAIR = re.compile(r"((?:`[\w.]+`,? (?:and )?)+)(?:of|in) `((?:[\w*]+/)*\w+\.py)`")


def pairs(page):
    """`names` of or in `file`, wherever a line ends."""
    return PAIR.findall(" ".join(prose(page).split()))


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_what_is_said_to_be_in_a_file_is_in_it(page):
    for names, path in pairs(page):
        file = find(path)
        assert file is not None, f"{page_id(page)}: {path}"
        for name in re.findall(r"`([\w.]+)`", names):
            assert name in defined(file), f"{page_id(page)}: {name} is not in {path}"


def test_the_reader_of_names_can_fail():
    assert defined(PACKAGE / "verl_ext" / "worker.py") >= {"SrpoWorker", "SrpoWorker.update_actor", "TEACHER_TIME"}
    assert len(pairs(ROOT / "CONTRIBUTING.md")) >= 20


def test_every_name_of_the_five_tasks_is_looked_up():
    """What CONTRIBUTING names of the code in them is in a file that it names, or a name of veRL that is relied on."""
    page = ROOT / "CONTRIBUTING.md"
    tasks = " ".join(prose(page).partition("Five changes")[2].partition("\n## ")[0].split())
    assert tasks.count("* **") == 5
    looked_up = {name for names, _ in pairs(page) for name in re.findall(r"`([\w.]+)`", names)}
    looked_up |= {point.rpartition(".")[2] for point in RELIED_ON}
    named = set(re.findall(r"`([A-Za-z_][\w.]*)`", tasks))
    assert {name for name in named if not name.endswith(".py")} - looked_up == {"srpo"}
    assert all(find(name) for name in named if name.endswith(".py"))


FOLDERS = "|".join(
    ["srpo_verl", "recipes", "scripts", "tests", *sorted({p.parent.name for p in PACKAGE.glob("*/*.py")})]
)
MENTION = re.compile(rf"`((?:{FOLDERS})/[\w/.-]+\.\w+)`")


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=page_id)
def test_every_file_that_is_named_exists(page):
    for path in MENTION.findall(prose(page)):
        assert find(path) is not None, f"{page_id(page)}: {path}"
    for name in set(re.findall(r"`(\w+\.py)`", prose(page))) - {"my_task.py", "my_tools.py"}:
        assert (ROOT / name).exists() or any(list((ROOT / tree).rglob(name)) for tree in TREES), (
            f"{page_id(page)}: {name}"
        )


def test_the_map_of_files_is_complete():
    """docs/architecture.md names every module of the package, and no other."""
    (tree,) = (
        text for language, text in FENCE.findall((ROOT / "docs/architecture.md").read_text()) if language == "text"
    )
    folders, named = [], set()
    for line in tree.split("recipes/")[0].splitlines()[1:]:
        depth = (len(line) - len(line.lstrip())) // 2
        entry = re.split(r" {2,}|: ", line.strip())[0]
        folders = folders[: depth - 1]
        for part in entry.split(", "):
            if part.endswith("/"):
                folders.append(part)
                named.add("".join(folders))
            elif part.endswith(".py"):
                named.add("".join(folders) + part)
        named |= {"".join(folders) + extra for extra in re.findall(r"(\w+\.py):", line)}
    modules = {relative(path) for path in SOURCES if path.name != "__init__.py"}
    listed = {name for name in named if name.endswith(".py") and not name.endswith("__init__.py")}
    assert listed - modules == set()
    # A folder that has one line alone stands for its files.
    alone = {folder for folder in named if folder.endswith("/")}
    alone -= {name[: name.rindex("/", 0, -1) + 1] for name in named if "/" in name[:-1]}
    assert {name for name in modules - listed if not name.startswith(tuple(alone))} == set()


def test_the_axis_letters_are_those_of_the_table():
    letters = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            name = node.id if isinstance(node, ast.Name) else node.arg if isinstance(node, ast.arg) else ""
            axes = re.fullmatch(r"[a-z][a-z0-9_]*_([A-Z1]{1,3})", name)
            letters |= set(axes[1]) if axes and name != "verl_F" else set()
    table = (ROOT / "CONTRIBUTING.md").read_text().split("| Letter | Axis |")[1].split("\n\n")[0]
    listed = set(re.findall(r"^\| ([A-Z]) \|", table, re.MULTILINE))
    assert letters - listed == {"1"}
    assert listed - letters <= {"L"}  # of ragged fields, which go without a suffix


# --- metrics and refusals --------------------------------------------------------------------------------------------


def test_every_metric_is_on_a_page_and_every_metric_of_a_page_is_logged():
    made = [path.read_text() for path in SOURCES if not relative(path).startswith("report/")]
    logged = {name for text in made for name in re.findall(r'"(srpo/[a-z_0-9]+)"', text)}
    # Of one kind in several: f"srpo/frac_shown_{source}".
    beginnings = tuple(name for text in made for name in re.findall(r'f"(srpo/[a-z_]+_)\{', text))
    shown = {name for page in PAGES for name in re.findall(r"`(srpo/[a-z_0-9]+)`", page.read_text())}
    assert len(logged) > 30
    # The worker's name for what is logged as timing_s/srpo_teacher.
    assert logged - shown == {"srpo/teacher_seconds"}
    assert {name for name in shown - logged if not name.startswith(beginnings)} == set()


def test_every_key_that_can_be_refused_is_on_the_page_of_the_configuration():
    page = (ROOT / "docs" / "configuration.md").read_text()
    refusal = re.compile(r'(?:ConfigError|_require)\(\s*(?:config, )?"([\w.]+)"')
    keys = {key for path in (PACKAGE / "config").glob("*.py") for key in refusal.findall(path.read_text())}
    assert len(keys) > 15
    assert {key for key in keys if key.rpartition(".")[2] not in page} == set()
