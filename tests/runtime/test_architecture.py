"""The structure of the source: directions of imports, cycles, sizes of functions and modules.

Each rule has a list of today's exceptions. An entry that is no longer needed fails its test, so the
lists only shrink.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "ffd_runtime": ROOT / "runtime" / "ffd_runtime",
    "ffd_cluster": ROOT / "cluster" / "ffd_cluster",
    "ffd_train": ROOT / "train" / "ffd_train",
    "ffd_export": ROOT / "export" / "ffd_export",
}
MAX_FUNCTION_LINES = 50
MAX_PARAMETERS = 7
MAX_MODULE_LINES = 400

# Packages that each package may import.
MAY_IMPORT = {
    "ffd_runtime": frozenset[str](),
    "ffd_cluster": frozenset({"ffd_runtime"}),
    "ffd_train": frozenset({"ffd_runtime"}),
    "ffd_export": frozenset({"ffd_runtime", "ffd_train"}),
}
# Subpackages of the runtime that each subpackage may import.
ROOMS = {
    "core": frozenset[str](),
    "model": frozenset({"core"}),
    "image": frozenset({"core", "model"}),
    "inputs": frozenset({"core", "image"}),
    "outputs": frozenset({"core", "image", "inputs", "model"}),
    "video": frozenset({"core", "image", "inputs", "model", "outputs"}),
    "web": frozenset({"core", "image", "inputs", "model", "outputs", "video"}),
}
# These modules of core connect the subpackages: an image passes from inputs through image to model.
CONNECTING = {
    "ffd_runtime.core.pipeline": frozenset({"core", "image", "inputs", "model"}),
    "ffd_runtime.core.classifier": frozenset({"core", "image", "inputs", "model", "video"}),
}

# Known violations. Remove an entry when its violation is fixed.
LAZY_CYCLES: dict[str, str] = {}
WRONG_IMPORTS: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}
MANY_PARAMETERS: dict[str, str] = {}
LONG_MODULES: dict[str, str] = {}
SHARED_NAMES: dict[str, str] = {}


class Module:
    """One module of the source.

    Attributes:
        name: full, such as `ffd_runtime.core.text`.
        path: its file.
        tree: its syntax tree.
        lines: number of its lines.
    """

    def __init__(self, package: str, path: Path) -> None:
        parts = (package, *path.relative_to(PACKAGES[package]).with_suffix("").parts)
        self.is_package = parts[-1] == "__init__"
        self.name = ".".join(parts[:-1] if self.is_package else parts)
        self.path = path
        text = path.read_text("utf-8")
        self.tree = ast.parse(text)
        self.lines = len(text.splitlines())

    @property
    def room(self) -> str:
        """The first folder below the package; empty for modules beside it."""
        parts = self.name.split(".")
        return parts[1] if len(parts) > 2 or (self.is_package and len(parts) == 2) else ""


@cache
def modules() -> dict[str, Module]:
    found = (Module(name, path) for name, top in PACKAGES.items() for path in top.rglob("*.py"))
    return {module.name: module for module in found}


@cache
def imports(module: Module, *, lazy: bool) -> frozenset[str]:
    """Return the modules of ffd that a module imports.

    Args:
        module: the importing one.
        lazy: whether to include imports in functions, which run later.
    """
    names: list[str] = []
    for node in _statements(module.tree, lazy):
        if isinstance(node, ast.Import):
            names += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _base_of(module, node)
            names += (f"{base}.{alias.name}" for alias in node.names)
    return frozenset(filter(None, map(_module_of, names)))


def _statements(tree: ast.AST, lazy: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not lazy:
            continue
        yield node
        yield from _statements(node, lazy)


def _base_of(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.name.split(".")
    kept = len(parts) - node.level + module.is_package
    return ".".join([*parts[:kept], *filter(None, [node.module])])


def _module_of(name: str) -> str | None:
    """Return the module of a name: the name itself, or the part before its last dot."""
    for candidate in (name, name.rpartition(".")[0]):
        if candidate in modules():
            return candidate
    return None


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Return every function with its full name, including nested functions and methods."""

    def walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef]]:
        for child in ast.iter_child_nodes(node):
            name = prefix
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f"{prefix}.{child.name}"
                if not isinstance(child, ast.ClassDef):
                    yield name, child  # type: ignore[misc]
            yield from walk(child, name)

    for module in modules().values():
        yield from walk(module.tree, module.name)


def find_cycles(edges: dict[str, set[str]]) -> set[frozenset[str]]:
    """Return the strongly connected components of the imports (Tarjan, 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    cycles: set[frozenset[str]] = set()

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in edges[name]:
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            at = stack.index(name)
            component = frozenset(stack[at:])
            del stack[at:]
            if len(component) > 1 or name in edges[name]:
                cycles.add(component)

    for name in list(edges):
        if name not in index:
            visit(name)
    return cycles


def assert_listed(found: set[str], listed: Mapping[str, str]) -> None:
    """Fail for a violation that is not listed, and for an entry without a violation."""
    assert found - set(listed) == set(), "new"
    assert set(listed) - found == set(), "remove these entries from the list"


@pytest.mark.parametrize("lazy", [False, True], ids=["at import", "at any time"])
def test_modules_import_each_other_in_no_cycle(lazy: bool) -> None:
    edges = {
        name: set(imports(module, lazy=lazy)) - {name}
        if module.is_package
        else set(imports(module, lazy=lazy))
        for name, module in modules().items()
    }
    cycles = {" <-> ".join(sorted(cycle)) for cycle in find_cycles(edges)}
    assert_listed(cycles, LAZY_CYCLES if lazy else {})


def test_finds_a_cycle() -> None:
    edges = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a", "d"}}
    assert find_cycles(edges) == {frozenset("bc"), frozenset("d")}


def test_imports_follow_the_direction() -> None:
    wrong = set()
    for module in modules().values():
        package = module.name.partition(".")[0]
        for name in imports(module, lazy=True):
            other = modules()[name]
            target = name.partition(".")[0]
            if target != package:
                if target not in MAY_IMPORT[package]:
                    wrong.add(f"{module.name} -> {name}")
            elif other.room == "cli" != module.room:
                wrong.add(f"{module.name} -> {name}")
        if package == "ffd_runtime" and module.room in ROOMS:
            allowed = ROOMS[module.room] | {module.room, ""}
            allowed |= CONNECTING.get(module.name, frozenset())
            wrong |= {
                f"{module.name} -> {name}"
                for name in imports(module, lazy=True)
                if modules()[name].room not in allowed
            }
    assert_listed(wrong, WRONG_IMPORTS)


def test_functions_fit_on_a_screen() -> None:
    long = {
        name
        for name, node in functions()
        if (node.end_lineno or 0) - node.lineno + 1 > MAX_FUNCTION_LINES
    }
    assert_listed(long, LONG_FUNCTIONS)


def test_functions_have_few_parameters() -> None:
    many = set()
    for name, node in functions():
        a = node.args
        named = [*a.posonlyargs, *a.args, *a.kwonlyargs]
        if len([one for one in named if one.arg not in ("self", "cls")]) > MAX_PARAMETERS:
            many.add(name)
    assert_listed(many, MANY_PARAMETERS)


def test_modules_are_short() -> None:
    long = {name for name, module in modules().items() if module.lines > MAX_MODULE_LINES}
    assert_listed(long, LONG_MODULES)


def test_module_names_are_unique() -> None:
    names: dict[str, set[str]] = defaultdict(set)
    for name, module in modules().items():
        if not module.is_package:
            names[name.rpartition(".")[2]].add(name)
    shared = {name for name, owners in names.items() if len(owners) > 1}
    assert_listed(shared, SHARED_NAMES)
