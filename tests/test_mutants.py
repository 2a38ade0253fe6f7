"""The list of mistakes is one that tests/mutants.py can make. (It runs for minutes: `make mutants`.)"""

import ast
import functools
from itertools import pairwise
from pathlib import Path

import pytest

from tests.mutants import mutants

ALL = mutants()


def test_there_are_enough_of_them_and_each_has_a_name_of_its_own():
    assert len(ALL) >= 60
    assert len({(mutant.file, mutant.name) for mutant in ALL}) == len(ALL)


@functools.cache
def text_of(path):
    return path.read_text()


@functools.cache
def statements(path):
    """The statements at the top of a file."""
    text = text_of(path)
    lines = text.splitlines(keepends=True)
    starts = [
        min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))])
        for node in ast.parse(text).body
    ]
    return ["".join(lines[start - 1 : end - 1]) for start, end in pairwise([1, *starts[1:], len(lines) + 1])]


def differ(one, other):
    return ast.dump(ast.parse(one)) != ast.dump(ast.parse(other))


@pytest.mark.parametrize("file", sorted({mutant.file for mutant in ALL}))
def test_it_changes_one_text_into_other_python_that_existing_tests_see(file):
    path = Path("src/nonlocal_nets") / file
    for mutant in ALL:
        if mutant.file == file:
            source = mutant.source()
            whole = text_of(path), source
            one = next(
                ((text, text.replace(mutant.old, mutant.new)) for text in statements(path) if mutant.old in text), whole
            )
            assert differ(*one), mutant.name
            assert mutant.tests, mutant.name
            for test in mutant.tests:
                name, _, function = test.partition("::")
                assert f"def {function}" in text_of(Path("tests") / name), mutant.name
