"""Execute notebooks in place: `python notebooks/execute.py [notebook ...]`, all of them by default (make notebooks).

Each runs from start to end in a process of its own. What would differ from run to run without a meaning, such as the
times of the cells, is not kept, so that a diff shows what changed.
"""

import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
NOTEBOOKS = sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def execute(path: Path) -> nbformat.NotebookNode:
    """The notebook with new outputs; nbclient's CellExecutionError at the first cell that fails."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=1200, kernel_name="python3", record_timing=False, coalesce_streams=True)
    # tqdm says that there is no ipywidgets, for progress bars that no notebook here has
    client.execute(cwd=str(FOLDER), env=os.environ | {"PYTHONWARNINGS": "ignore:IProgress not found"})
    notebook.metadata = {"kernelspec": KERNEL}
    return notebook


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]) if sys.argv[1:] else NOTEBOOKS:
        start = time.perf_counter()
        nbformat.write(execute(path), path)
        print(f"{path.name}: {time.perf_counter() - start:.0f} s, {path.stat().st_size / 1000:.0f} kB", flush=True)
