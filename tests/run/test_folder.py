"""Where the things of a run are, and which id it has. (Ids that processes share: tests/run/test_survival.py.)"""

from pathlib import Path

from nonlocal_nets.run.folder import RunFolder, expanded, find


def test_everything_but_the_checkpoints_is_in_the_folder_of_the_run():
    root, path = Path("scratch"), Path("scratch/digits/first")
    folder = RunFolder(root, "digits", "first")
    assert (folder.path, folder.config, folder.checkpoints) == (path, path / "config.yaml", path / "checkpoints")
    elsewhere = RunFolder(root, "digits", "first", Path("far"))
    assert (elsewhere.path, elsewhere.config, elsewhere.checkpoints) == (path, path / "config.yaml", Path("far"))
    assert (folder.last, elsewhere.last) == (path / "checkpoints" / "last.ckpt", Path("far/last.ckpt"))


def test_home_and_variables_in_a_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch")
    assert expanded("~/runs") == Path("/home/me/runs")
    assert expanded("$SCRATCH/${SCRATCH}") == Path("/scratch/scratch")
    assert expanded("runs") == Path("runs")


def test_a_run_is_found_by_its_id_in_any_project(tmp_path):
    for name in ("a/first-2", "a/of-first", "b/first", "c/first", "first/other"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "a" / "first").touch()
    assert find(tmp_path, "first") == tmp_path / "b" / "first"
    assert find(tmp_path, "second") is None
