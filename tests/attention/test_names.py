"""`nln.attention` is the function, though the package beside it has the same name; whatever is imported first."""

import subprocess
import sys

import pytest

FIRST = [
    "import nonlocal_nets",
    "import nonlocal_nets.attention",
    "import nonlocal_nets.attention.rows",
    "from nonlocal_nets.attention import images",
    "from nonlocal_nets.attention.capture import capture",
    "import nonlocal_nets.callbacks",
]
CHECK = """
import nonlocal_nets as nln
from nonlocal_nets import attention
from nonlocal_nets.attention import capture, clips, images, queries, rows, series
from nonlocal_nets.attention.rows import attention as function

assert nln.attention is attention is function is rows.attention
assert callable(attention) and clips.draw is not images.draw
import nonlocal_nets.attention.series
assert nln.attention is function
"""
PROGRAM = """
import sys

for first in {first}:
    for name in [name for name in sys.modules if name.split(".")[0] == "nonlocal_nets"]:
        del sys.modules[name]
    exec(first, {{}})
    exec({check!r}, {{}})
    print(first)
"""


@pytest.mark.slow  # four processes that import torch
def test_the_function_and_the_package():
    program = PROGRAM.format(first=FIRST, check=CHECK)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == FIRST
