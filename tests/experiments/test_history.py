"""The logged values of a run, from files written by hand."""

from pathlib import Path

from nonlocal_nets.experiments.history import history
from nonlocal_nets.run.folder import find


def test_each_step_counts_once_and_its_latest_value(tmp_path):
    starts = {  # version_10 is the later one
        "version_9": "epoch,step,a,b\n0,4,0.1,\n0,9,,7\n1,14,0.2,\n",
        "version_10": "step,a\n9,0.15\n14,0.3\n19,0.4\n24,0.",
    }
    for name, text in starts.items():
        (tmp_path / "csv" / name).mkdir(parents=True)
        (tmp_path / "csv" / name / "metrics.csv").write_text(text)
    assert history(tmp_path, "a") == ([0.1, 0.15, 0.3, 0.4], ["a", "b"]), "the last row is half written"
    assert history(tmp_path, "b") == ([7.0], ["a", "b"])
    assert history(tmp_path / "other", "a") == history(None, "a") == ([], [])


def test_a_run_is_found_in_any_project_of_its_root(tmp_path):
    for name in ("runs/one/a-000", "runs/two/a-001", "elsewhere/one/a-002"):
        (tmp_path / name).mkdir(parents=True)
    assert find(tmp_path / "runs", "a-001") == Path(tmp_path / "runs/two/a-001")
    assert find(tmp_path / "runs", "a-002") is None
    assert find(tmp_path / "absent", "a-000") is None
