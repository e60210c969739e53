"""Data flows one way: a room may import an earlier one, never a later one."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "orchestrator": "orchestrator",
    "models": "orchestrator.models",
    "serve": "orchestrator.serve",
}

# Rooms of one line may import each other; a line may import the lines above it.
ORDER = [
    ["allocator", "errors", "files"],
    ["config", "seeding"],
    ["host"],
    ["data", "models"],
    ["losses", "tasks", "optim", "networks"],
    ["engine"],
    ["plan"],
    ["run_folder"],
    ["tracking", "teacher"],
    ["loop", "hooks", "evaluate"],
    ["compiling"],
    [
        "auto",
        "smallest_batch",
        "imported",
        "parts",
        "recovery",
        "recipe",
        "finish",
        "predict",
        "stages",
        "placement",
        "local_host",
    ],
    ["sweep", "ensemble"],
    ["distill", "table", "analysis", "doctor"],
    ["pipeline"],
    ["serve"],
    ["launch"],
    ["api"],
    ["cli", "__main__"],
]
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}


def modules():
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join([package, *parts]).removesuffix(".__init__")
            yield name, path


def imports(path):
    """Every module that a file imports, wherever in it; those for type checkers only left out."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            if node.module == "orchestrator":
                yield from (f"orchestrator.{alias.name}" for alias in node.names)
            else:
                yield node.module


def room(module):
    return module.split(".")[1] if module.startswith("orchestrator.") else None


MODULES = dict(modules())


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_one_way(name):
    here, path = room(name), MODULES[name]
    if here is None:  # orchestrator itself is the public surface
        return
    assert here in LEVEL, f"{name} is in a room without a place in the order"
    for module in imports(path):
        there = room(module)
        if there and there != here:
            assert LEVEL[there] <= LEVEL[here], f"{name} imports {module}, a later room"


def test_models_import_nothing_of_the_rest():
    for name, path in modules():
        if room(name) == "models":
            found = [module for module in imports(path) if module.startswith("orchestrator")]
            assert all(module.startswith("orchestrator.models") for module in found), name


def test_ray_is_imported_in_two_places_only():
    for name, path in modules():
        if room(name) == "launch" or name.startswith("orchestrator.serve.app"):
            continue
        found = [module for module in imports(path) if module.split(".")[0] == "ray"]
        assert not found, f"{name} imports {found}"


def test_configuration_imports_neither_torch_nor_ray():
    for name, path in modules():
        if room(name) in ("config", "errors"):
            heavy = {module.split(".")[0] for module in imports(path)} & {"torch", "ray", "numpy"}
            assert not heavy, f"{name} imports {heavy}"


def test_only_the_command_line_prints():
    for name, path in modules():
        if room(name) == "cli":
            continue
        calls = [
            node.lineno
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
        ]
        assert not calls, f"{name} prints in lines {calls}"
