"""What the documents show works: their Python runs, their paths and make targets exist."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCUMENTS = {
    str(path.relative_to(ROOT)): path.read_text()
    for folder in (".", "docs", "cluster", "benchmarks")
    for path in sorted((ROOT / folder).glob("*.md"))
}
CODE = [
    pytest.param(code, id=f"{name}-{k}")
    for name, text in DOCUMENTS.items()
    for k, code in enumerate(re.findall(r"```python\n(.*?)```", text, re.S))
]


@pytest.mark.parametrize("code", CODE)
def test_python_runs(code):
    exec(code, {"__name__": "document"})


@pytest.mark.parametrize("name", DOCUMENTS)
def test_linked_files_and_make_targets_exist(name):
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", DOCUMENTS[name]) if "://" not in link]
    missing = [link for link in links if not ((ROOT / name).parent / link).exists()]
    assert not missing
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", DOCUMENTS[name], re.M)) <= targets


def test_the_tests_that_the_readme_names_exist():
    named = set(re.findall(r"tests/[\w/.]+", DOCUMENTS["README.md"]))
    assert named
    assert not [path for path in named if not (ROOT / path).exists()]


def test_the_map_of_the_tree_is_true():
    tree = re.search(r"```\n(train\.py.*?)```", DOCUMENTS["CONTRIBUTING.md"], re.S)[1]
    stack, missing = [], []
    for line in tree.splitlines():
        entry = re.match(r"( *)(\S+)", line)
        if not entry or len(entry[1]) > 6:
            continue
        del stack[len(entry[1]) // 2 :]
        stack.append(entry[2])
        if not (ROOT / "/".join(stack)).exists():
            missing.append("/".join(stack))
    assert not missing


def test_citation_names_paper_and_repository():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["preferred-citation"]["title"] == "Non-local Neural Networks"
    assert citation["title"].startswith("nonlocal-nets")
    assert (ROOT / "LICENSE").read_text().split()[:2] == ["Apache", "License"]
    assert citation["license"] == "Apache-2.0"
