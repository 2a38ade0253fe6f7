"""environment.yml, the lock and pyproject.toml say the same; the oracle is `packaging`."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "constraints.txt").read_text()
BENCH = (ROOT / "benchmarks" / "constraints.txt").read_text()


def test_conda_gets_the_same_python_and_everything_else_from_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert conda == [f"python{PROJECT['requires-python']}", "pip"]
    assert pip == {"pip": ["-e .[dev]"]}
    assert "dev" in PROJECT["optional-dependencies"]


def test_the_lock_admits_what_pyproject_asks_for():
    locked = dict(re.findall(r"^([\w.-]+)==([\w.+]+)", LOCK, re.M))
    extras = PROJECT["optional-dependencies"]
    for line in PROJECT["dependencies"] + extras["dev"] + extras["sweep"]:
        requirement = Requirement(line)
        version = locked[requirement.name.lower()]
        assert requirement.specifier.contains(version), f"{line}, locked {version}"
    assert SpecifierSet(PROJECT["requires-python"]).contains("3.11")


@pytest.mark.parametrize("lock", [LOCK, BENCH], ids=["all", "benchmarks"])
def test_every_locked_package_has_a_hash_and_no_address(lock):
    entries = re.split(r"\n(?=\w)", lock.strip())
    assert len(entries) > 50
    assert all(re.match(r"[\w.-]+==\S+", entry) and "--hash=sha256:" in entry for entry in entries)
    assert not re.search(r"://|--index|--find-links| @ ", lock)


def test_the_lock_of_the_benchmarks_only_adds():
    packages, more = (set(re.findall(r"^([\w.-]+==[\w.+]+)", lock, re.M)) for lock in (LOCK, BENCH))
    assert packages < more
    assert any(name.startswith("mmcv-lite==") for name in more - packages)


def test_lightning_is_the_safe_one():
    """Before 2.6.6 load_from_checkpoint ran foreign code; the distribution called `lightning` once was malware."""
    locked = dict(re.findall(r"^([\w.-]+)==([\w.+]+)", BENCH, re.M))
    assert SpecifierSet(">=2.6.6").contains(locked["pytorch-lightning"])
    (ours,) = (line for line in PROJECT["dependencies"] if line.startswith("pytorch-lightning"))
    assert not Requirement(ours).specifier.contains("2.6.5")
    assert "lightning" not in locked


def test_aeon_is_locked_without_what_it_asks_for():
    """For its files; numba would hold numpy and pandas at older versions, see tool.uv in pyproject.toml."""
    for lock in (LOCK, BENCH):
        packages = set(re.findall(r"^([\w.-]+)==", lock, re.M))
        assert "aeon" in packages
        assert not packages & {"numba", "llvmlite"}
