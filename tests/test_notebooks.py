"""The notebooks: what is committed came out of one run from start to end, and such a run still works."""

import re

import nbformat
import pytest
from notebooks.execute import FOLDER, KERNEL, NOTEBOOKS, execute

LARGEST = 300_000  # bytes
ALL = [pytest.param(path, id=path.stem) for path in NOTEBOOKS]


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(notebook):
    """What kinds of output each cell has."""
    return [[output.output_type for output in cell.outputs] for cell in code_cells(notebook)]


def test_all_six_are_there():
    assert [path.name[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05", "06"]


@pytest.mark.parametrize("path", ALL)
def test_outputs_are_committed(path):
    text = path.read_text()
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert notebook.metadata == {"kernelspec": KERNEL}
    assert all(cell.metadata == {} for cell in notebook.cells)
    assert len(text) < LARGEST
    written = "".join(output.get("text", "") for output in outputs)
    assert not re.search(r"/(?:home|root|tmp|work|usr|Users)/|site-packages", written)


@pytest.mark.parametrize("path", ALL)
def test_text_has_a_title_and_links_that_exist(path):
    texts = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
    assert [text for text in texts if text.startswith("# ")] == texts[:1]
    files = re.findall(r"\]\((?!https?://)([^)]+)\)", "\n".join(texts))
    assert all((FOLDER / file).exists() for file in files)


@pytest.mark.slow
@pytest.mark.parametrize("path", ALL)
def test_runs_from_start_to_end(path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # all cores, as for its reader
    assert kinds(execute(path)) == kinds(nbformat.read(path, as_version=4))
