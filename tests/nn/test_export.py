"""Leaving Python: torch.export with any batch and size, ONNX as onnxruntime computes it, activation checkpointing."""

import warnings

import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.utils.checkpoint import checkpoint

from nonlocal_nets.nn import NonLocalBlock, insert
from tests.nn.oracle import PAIRWISE, randomise

C = 6
SHAPES = [(1, C, 6, 4), (3, C, 8, 10), (2, C, 24, 20)]  # the last is beyond the point where the fused form is taken


def dynamic(pool):
    """Any batch, height and width; where keys are pooled the pool must divide these, or the rest would be a branch."""
    height, width = Dim("height", min=2, max=256), Dim("width", min=2, max=256)
    return {"x": {0: Dim("batch", min=1, max=64), 2: (pool or 1) * height, 3: (pool or 1) * width}}


def make(pairwise, **arguments):
    return randomise(NonLocalBlock(C, pairwise=pairwise, **arguments)).float().eval()


def images(shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


FAST = {("gaussian", None), ("embedded_gaussian", 2), ("concatenation", 2)}


@pytest.mark.parametrize(
    ("pairwise", "pool"),
    [
        pytest.param(pairwise, pool, marks=[pytest.mark.slow] * ((pairwise, pool) not in FAST))
        for pairwise in PAIRWISE
        for pool in (None, 2)
    ],
)
def test_export_with_any_batch_and_size(pairwise, pool):
    block = make(pairwise, pool=pool)
    exported = torch.export.export(block, (images((2, C, 8, 6)),), dynamic_shapes=dynamic(pool)).module()
    for shape in SHAPES if pool else [*SHAPES, (1, C, 5, 7)]:
        x = images(shape)
        torch.testing.assert_close(exported(x), block(x), rtol=1e-4, atol=1e-4)


@pytest.mark.slow  # fast: torch.export above, from which ONNX is made
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_onnx_gives_what_we_give(pairwise, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    block, path = make(pairwise, pool=2), tmp_path / "block.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's, of its own dependencies
        program = torch.onnx.export(
            block, (images((2, C, 8, 6)),), dynamic_shapes=dynamic(2), dynamo=True, verbose=False
        )
    program.save(path)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (name,) = (given.name for given in session.get_inputs())
    for shape in SHAPES:
        x = images(shape)
        (got,) = session.run(None, {name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(got), block(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size", [(4, 5), (16, 20)])
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_activation_checkpointing_changes_nothing(pairwise, size):
    results = []
    for keep in (True, False):
        block = randomise(NonLocalBlock(C, pairwise=pairwise, norm="layer")).float()
        x = images((2, C, *size)).requires_grad_()
        z = block(x) if keep else checkpoint(block, x, use_reentrant=False)
        z.square().sum().backward()
        results.append([z, x.grad, *(parameter.grad for parameter in block.parameters())])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


def test_a_network_with_blocks_is_exported():
    network = nn.Sequential(nn.Conv2d(3, C, 3), nn.ReLU(), nn.Conv2d(C, 4, 3)).eval()
    insert(network, "1", example=torch.zeros(1, 3, 8, 8), pairwise="dot_product")
    randomise(network[1].non_local).float()
    exported = torch.export.export(network, (torch.randn(2, 3, 8, 8),)).module()
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(exported(x), network(x))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of python numbers in a trace of one size
@pytest.mark.filterwarnings("ignore:`torch.jit.trace.*` is deprecated")
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("size", [(4, 5), (70, 70)])
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_jit_trace_passes_its_own_check_with_gradients(pairwise, size, channels_last):
    block = randomise(NonLocalBlock(6, pairwise=pairwise, pool=2)).double()
    x = torch.randn(1, 6, *size, dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    traced = torch.jit.trace(block.eval(), x.requires_grad_())
    (expected,) = torch.autograd.grad(block(x).square().sum(), x)
    (got,) = torch.autograd.grad(traced(x).square().sum(), x)
    torch.testing.assert_close(traced(x), block(x))
    torch.testing.assert_close(got, expected)
    more = torch.randn(3, 6, *size, dtype=torch.float64)
    torch.testing.assert_close(traced(more), block(more))
