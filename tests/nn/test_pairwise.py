"""Pairwise functions of a user's own, as classes and by import path; oracle: two loops over Eq. 1 in numpy."""

import math
import re
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import nn

from nonlocal_nets.nn import PAIRWISE, Concatenation, Embedded, NonLocalBlock, Pairwise, functional, insert
from nonlocal_nets.nn.pairwise import resolve_pairwise
from tests.nn.oracle import randomise

C = 5
PACKAGE = "functions_of_a_user"
IMPORTS = "import torch\nfrom nonlocal_nets.nn import Embedded, functional\n\n\n"


class Distance(Embedded):
    """f = exp(-||theta_i - phi_j||^2), C = sum_j f."""

    def weights(self, query, key, mask):
        return functional.softmax(-torch.cdist(query, key).square(), mask)


@pytest.fixture(name="package")
def _package(tmp_path, monkeypatch):
    """A package on the path whose module `euclidean` is the example in the documentation of `Pairwise`."""
    lines = Pairwise.__doc__.splitlines()
    start = next(k for k, line in enumerate(lines) if line.lstrip().startswith("class Distance"))
    example = textwrap.dedent("\n".join(lines[start : start + 3]))
    (folder := tmp_path / PACKAGE).mkdir()
    (folder / "__init__.py").touch()
    (folder / "euclidean.py").write_text(f"{IMPORTS}{example}\n\n\nclass Other:\n    pass\n\n\nNUMBER = 3\n")
    (folder / "broken.py").write_text("import a_package_that_is_missing\n")
    (folder / "wrong.py").write_text("raise RuntimeError('first line\\nsecond line')\n")
    (folder / "syntax.py").write_text("def f(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield f"{PACKAGE}.euclidean.Distance"
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
        del sys.modules[name]


def expected(block, x, mask):
    """Eq. 1 and Eq. 6 of a block with `Distance`, without norm, on sequences (B, C, L)."""
    state = {name: t.double().numpy() for name, t in block.state_dict().items()}
    z = x.numpy().copy()
    for b in range(len(x)):
        valid = [i for i in range(x.shape[2]) if mask[b, i]]
        embedded = {
            name: [state[f"{name}.weight"] @ x[b, :, i].numpy() + state[f"{name}.bias"] for i in range(x.shape[2])]
            for name in ("theta", "phi", "g")
        }
        for i in valid:
            f = {j: math.exp(-np.sum((embedded["theta"][i] - embedded["phi"][j]) ** 2)) for j in valid}
            y = sum(f[j] * embedded["g"][j] for j in valid) / sum(f.values())
            z[b, :, i] += state["out.weight"] @ y + state["out.bias"]
    return torch.from_numpy(z)


@pytest.mark.parametrize("by", ["class", "path"])
@pytest.mark.parametrize("masked", [False, True])
def test_a_distance_is_the_double_loop(by, masked, package):
    x = torch.randn(2, C, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.arange(7) < torch.tensor([[7], [4]]) if masked else torch.ones(2, 7, dtype=torch.bool)
    block = NonLocalBlock(C, inner_channels=3, pairwise=Distance if by == "class" else package, norm="none")
    block = randomise(block.double())
    z = block(x, mask=mask if masked else None)
    torch.testing.assert_close(z, expected(block, x, mask), rtol=0, atol=1e-10)
    assert not torch.allclose(z, x, atol=0.1), "not the identity"


def test_a_block_by_path(package):
    """Its repr names the class, its parameters have the usual names, and `insert` takes the path too."""
    block = NonLocalBlock(6, pairwise=package)
    assert "pairwise=Distance" in repr(block)
    assert {name.partition(".")[0] for name in block.state_dict()} == {"theta", "phi", "g", "out", "norm"}
    assert type(block.pairwise).__module__ == f"{PACKAGE}.euclidean"
    model = nn.Sequential(nn.Conv1d(3, 6, 1), nn.ReLU())
    insert(model, "0", example=torch.zeros(1, 3, 4), pairwise=package)
    assert type(model[0].non_local.pairwise) is type(block.pairwise)


def test_names_classes_and_paths_of_the_functions_of_the_paper():
    assert {name: resolve_pairwise(name) for name in PAIRWISE} == PAIRWISE
    assert resolve_pairwise(Concatenation) is Concatenation is resolve_pairwise("nonlocal_nets.nn.Concatenation")


NAMES = "pairwise must be one of gaussian, embedded_gaussian, dot_product, concatenation, "
NAMES += "or the path of a class such as package.module.Class, got "
LOOKED = "; Python looks in the current folder, on PYTHONPATH and in installed packages"


@pytest.mark.parametrize(
    ("pairwise", "message"),
    [
        ("cosine", f"{NAMES}'cosine'"),
        ("gausian", f"{NAMES}'gausian'; did you mean 'gaussian'?"),
        ("", f"{NAMES}''"),
        ("no_such_package.m.F", f"pairwise 'no_such_package.m.F': no module 'no_such_package'{LOOKED}"),
        (f"{PACKAGE}.euclid.F", f"pairwise '{PACKAGE}.euclid.F': no module '{PACKAGE}.euclid'{LOOKED}"),
        (f"{PACKAGE}.euclidean.F.G", f"pairwise '{PACKAGE}.euclidean.F.G': no module '{PACKAGE}.euclidean.F'{LOOKED}"),
        (
            f"{PACKAGE}.euclidean.Distanse",
            f"pairwise '{PACKAGE}.euclidean.Distanse': module {PACKAGE}.euclidean has no 'Distanse'; "
            "did you mean 'Distance'?",
        ),
        (
            f"{PACKAGE}.euclidean.Cosine",
            f"pairwise '{PACKAGE}.euclidean.Cosine': module {PACKAGE}.euclidean has no 'Cosine'",
        ),
        (
            f"{PACKAGE}.euclidean.Other",
            f"pairwise must be a subclass of nonlocal_nets.Pairwise, got '{PACKAGE}.euclidean.Other'",
        ),
        (
            f"{PACKAGE}.euclidean.NUMBER",
            f"pairwise must be a subclass of nonlocal_nets.Pairwise, got '{PACKAGE}.euclidean.NUMBER'",
        ),
        (nn.Linear, f"pairwise must be a subclass of nonlocal_nets.Pairwise, got {nn.Linear!r}"),
        (None, "pairwise must be a subclass of nonlocal_nets.Pairwise, got None"),
        (
            f"{PACKAGE}.broken.F",
            f"pairwise '{PACKAGE}.broken.F': its module cannot be imported: ModuleNotFoundError: No module named "
            "'a_package_that_is_missing'",
        ),
        (
            f"{PACKAGE}.wrong.F",
            f"pairwise '{PACKAGE}.wrong.F': its module cannot be imported: RuntimeError: first line",
        ),
        (f"{PACKAGE}.syntax.F", f"pairwise '{PACKAGE}.syntax.F': its module cannot be imported: SyntaxError: "),
    ],
)
@pytest.mark.usefixtures("package")
def test_what_is_no_pairwise_function(pairwise, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}" + ("" if message.endswith(" ") else "$")):
        NonLocalBlock(C, pairwise=pairwise)


@pytest.mark.parametrize("pairwise", ["x" * 999, "x." * 999 + "F", f"{PACKAGE}.euclidean." + "F" * 999, ("x" * 999,)])
@pytest.mark.usefixtures("package")
def test_messages_fit_into_a_line(pairwise):
    with pytest.raises(ValueError, match=r"^pairwise ") as error:
        resolve_pairwise(pairwise)
    assert len(str(error.value)) <= 300
