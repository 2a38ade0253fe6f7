"""The list of mistakes is one that tests/mutants.py can make. (It runs for minutes: `make mutants`.)"""

import ast
from pathlib import Path

import pytest

from tests.mutants import mutants

ALL = mutants()


def test_there_are_enough_of_them_and_each_has_a_name_of_its_own():
    assert len(ALL) >= 60
    assert len({(mutant.file, mutant.name) for mutant in ALL}) == len(ALL)


@pytest.mark.parametrize("mutant", ALL, ids=lambda mutant: f"{mutant.file}: {mutant.name}")
def test_it_changes_one_text_into_other_python_that_existing_tests_see(mutant):
    before = ast.parse((Path("src/nonlocal_nets") / mutant.file).read_text())
    assert ast.dump(ast.parse(mutant.source())) != ast.dump(before)
    assert mutant.tests
    for test in mutant.tests:
        file, _, function = test.partition("::")
        assert f"def {function}" in (Path("tests") / file).read_text()
