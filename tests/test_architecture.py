"""Who may import whom, as the map of the tree in CONTRIBUTING.md says; read from the source, not from its claims."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "nonlocal_nets"
ALLOWED = {
    "files": set(),
    "nn": {"nn"},
    "data": {"data"},
    "attention": {"attention", "files", "nn"},
    "weights": {"weights", "nn"},
    "tasks": {"tasks", "nn", "weights"},
    "callbacks": {"callbacks", "files", "nn", "attention"},
    "run": {"run", "files", "nn", "data", "attention", "weights", "tasks", "callbacks"},
    "experiments": {"experiments", "files", "run"},
    "__init__": {"nn", "attention"},
    "__main__": {"run"},
}
NN_MAY_IMPORT = {"torch", "timm"}


def imported(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_one_way(path):
    ours = {name.split(".")[1] for name in imported(ast.parse(path.read_text())) if name.startswith("nonlocal_nets.")}
    assert ours <= ALLOWED[room(path)]


@pytest.mark.parametrize("path", sorted((SOURCE / "nn").rglob("*.py")), ids=lambda path: path.name)
def test_nn_stands_on_torch_alone(path):
    import sys

    tree = ast.parse(path.read_text())
    foreign = {name.split(".")[0] for name in imported(tree)} - {"nonlocal_nets"} - set(sys.stdlib_module_names)
    assert foreign <= NN_MAY_IMPORT
    at_import = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
    assert not any(name.split(".")[0] == "timm" for name in imported(at_import)), "timm takes seconds: import it late"


def test_train_imports_the_cli_only():
    tree = ast.parse((SOURCE.parents[1] / "train.py").read_text())
    assert imported(tree) == {"nonlocal_nets.run.cli.main"}
