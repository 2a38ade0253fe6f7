"""environment.yml, the lock and pyproject.toml say the same; the oracle is `packaging`."""

import re
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "constraints.txt").read_text()


def test_conda_gets_the_same_python_and_everything_else_from_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert conda == [f"python{PROJECT['requires-python']}", "pip"]
    assert pip == {"pip": ["-e .[dev]"]}
    assert "dev" in PROJECT["optional-dependencies"]


def test_the_lock_admits_what_pyproject_asks_for():
    locked = dict(re.findall(r"^([\w.-]+)==([\w.+]+)", LOCK, re.M))
    for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]:
        requirement = Requirement(line)
        version = locked[requirement.name.lower()]
        assert requirement.specifier.contains(version), f"{line}, locked {version}"
    assert SpecifierSet(PROJECT["requires-python"]).contains("3.11")


def test_every_locked_package_has_a_hash_and_no_address():
    entries = re.split(r"\n(?=\w)", LOCK.strip())
    assert len(entries) > 50
    assert all(re.match(r"[\w.-]+==\S+", entry) and "--hash=sha256:" in entry for entry in entries)
    assert not re.search(r"://|--index|--find-links| @ ", LOCK)
