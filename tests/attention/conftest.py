"""Figures are looked at by their artists, not by the file's bytes."""

import pytest


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved; no file is written, which takes a second or two."""
    from matplotlib.figure import Figure

    saved = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: saved.append(figure))
    return saved
