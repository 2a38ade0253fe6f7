"""The logged values of a run, from files written by hand."""

from pathlib import Path

from nonlocal_nets.experiments.history import history
from nonlocal_nets.run.folder import find


def test_values_by_step(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,epoch,a,b\n4,0,0.1,\n9,0,,7\n14,1,0.2,\n24,1,0.")
    assert history(tmp_path, "a") == ([0.1, 0.2], ["a", "b"]), "the last row is half written"
    assert history(tmp_path, "b") == ([7.0], ["a", "b"])
    assert history(tmp_path / "other", "a") == history(None, "a") == ([], [])


def test_a_run_is_found_in_any_project_of_its_root(tmp_path):
    for name in ("runs/one/a-000", "runs/two/a-001", "elsewhere/one/a-002"):
        (tmp_path / name).mkdir(parents=True)
    assert find(tmp_path / "runs", "a-001") == Path(tmp_path / "runs/two/a-001")
    assert find(tmp_path / "runs", "a-002") is None
    assert find(tmp_path / "absent", "a-000") is None
    assert find(tmp_path / "runs", "*") is None, "an id is no pattern"
