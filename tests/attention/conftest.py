"""Figures are looked at by their artists, not by the file's bytes."""

import pytest


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved; the files are empty, since drawing takes a second or two."""
    from matplotlib.figure import Figure

    saved = []

    def save(figure, path, **_):
        saved.append(figure)
        path.touch()

    monkeypatch.setattr(Figure, "savefig", save)
    return saved
