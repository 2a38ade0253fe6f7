"""Peak memory and counted operations grow linearly with N; the oracle is the CPU allocator's own log of every tensor.

The profiler sees what kernels allocate inside, the dispatcher which kernels run. The slow tests measure the peak of a
fresh process (its ru_maxrss), which nothing can hide from.
"""

import subprocess
import sys
from unittest import mock

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nonlocal_nets.nn import NonLocalBlock, functional, tiled_softmax
from tests.nn.oracle import PAIRWISE, SOFTMAX, Memory, Operations, randomise

C = 8
FLASH = "_scaled_dot_product_flash_attention_for_cpu"


def step(block, x, mask=None):
    """Forward and backward."""
    block(x, mask=mask).square().sum().backward()


def setting(pairwise, n, masked=False, **kwargs):
    block = randomise(NonLocalBlock(C, pairwise=pairwise, **kwargs))
    x = torch.randn(1, C, n, generator=torch.Generator().manual_seed(0)).requires_grad_()
    return block, x, torch.arange(n)[None] < 0.9 * n if masked else None


def measure(pairwise, n, masked=False, autocast=False, **kwargs):
    block, x, mask = setting(pairwise, n, masked, **kwargs)
    with Memory() as memory, torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        step(block, x, mask)
    return memory


def test_the_meter_sees_a_map():
    """The other tests can fail: a map that is built is counted, at its size at least."""
    args = [torch.randn(1, 512, C, requires_grad=True) for _ in range(3)]
    with Memory() as memory:
        functional.nonlocal_operation("gaussian", *args, form="materialised").sum().backward()
    assert memory.largest == 512 * 512 * 4
    assert memory.peak >= 2 * 512 * 512 * 4
    with Operations() as operations:
        functional.nonlocal_operation("gaussian", *args, form="materialised")
    assert operations.largest == 512 * 512


@pytest.mark.parametrize(
    ("pairwise", "masked", "autocast"),
    [
        pytest.param(
            pairwise, masked, autocast, marks=[pytest.mark.slow] * (pairwise in SOFTMAX and masked != autocast)
        )
        for pairwise in PAIRWISE
        for masked in (False, True)
        for autocast in (False, True)
    ],
)
def test_memory_grows_linearly(pairwise, masked, autocast):
    """Four times the positions take at most 4.4 times the memory, and no tensor comes near an N x M map."""
    small, large = (measure(pairwise, n, masked, autocast) for n in (2048, 8192))
    assert large.peak < 4.4 * small.peak
    assert large.largest < 8192 * 8192 / 4


@pytest.mark.parametrize("kwargs", [{"pool": 2}, {"pool": 2, "pool_position": "embedding"}, {"window": (1024,)}])
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_memory_grows_linearly_with_pool_and_window(pairwise, kwargs):
    small, large = (measure(pairwise, n, **kwargs) for n in (3072, 12_288))
    assert large.peak < 4.4 * small.peak
    kept = 12_288 * 1024 * 4 if pairwise == "gaussian" and "window" in kwargs else 0  # the maps of twelve windows
    assert large.largest <= max(kept, 3072 * 3072 - 1)


def sdpa_of(query, key, value, masked, autocast=False):
    """The operators of forward and backward of the fused form."""
    mask = (torch.arange(key.shape[1]) < 0.9 * key.shape[1]).expand(len(key), -1) if masked else None
    with Operations() as operations, torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        y = functional.nonlocal_operation("gaussian", query, key, value, mask=mask, form="fused")
        y.sum().backward()
    return operations


LAYOUTS = {
    "contiguous": lambda n, d: torch.randn(2, n, d),
    "last dimension not contiguous": lambda n, d: torch.randn(2, d, n).transpose(1, 2),
    "strided": lambda n, d: torch.randn(2, n, 2 * d)[..., ::2],
    "expanded": lambda n, d: torch.randn(2, n, 1).expand(-1, -1, d),
}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("d", "v"), [(7, 7), (16, 8), (3, 13)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_neither_trap_of_scaled_dot_product_attention(layout, d, v, masked, autocast):
    """Whatever the layout and the widths, the tiled kernel runs, forward and backward, and no map is built."""
    query, key, value = (LAYOUTS[layout](n, width).requires_grad_() for n, width in ((211, d), (223, d), (223, v)))
    operations = sdpa_of(query, key, value, masked, autocast)
    assert FLASH in operations.names
    assert f"{FLASH}_backward" in operations.names
    assert not {"bmm", "_softmax", "_safe_softmax", "_scaled_dot_product_attention_math"} & set(operations.names)
    assert operations.largest < 211 * 223


def test_the_traps_are_there():
    """What the test above guards against: without care, the same operator builds the map."""
    for query, value in (
        (torch.randn(2, 1, 7, 211).mT, torch.randn(2, 1, 211, 7)),
        (torch.randn(2, 1, 211, 7), torch.randn(2, 1, 211, 5)),
    ):
        with Operations() as operations:
            torch.nn.functional.scaled_dot_product_attention(query, query, value)
        assert FLASH not in operations.names
        assert operations.largest >= 2 * 211 * 211


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("pairwise", "masked"), [("embedded_gaussian", False), ("embedded_gaussian", True), ("gaussian", True)]
)
def test_the_block_runs_the_tiled_kernel(pairwise, masked, channels_last):
    """Also for the plain Gaussian, whose queries are twice as wide as its values, and for an image in either format."""
    rows = 128 if pairwise == "gaussian" else 64  # fewer positions of this one have a faster form
    block, x, mask = setting(pairwise, rows * 64, masked)
    x = x.detach().unflatten(2, (rows, 64))
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    with Operations() as operations:
        step(block, x.requires_grad_(), None if mask is None else mask.unflatten(1, (rows, 64)))
    assert operations.names.count(FLASH) == operations.names.count(f"{FLASH}_backward") == 1
    assert operations.largest < (rows * 64) ** 2 / 4


@pytest.mark.parametrize("kwargs", [{}, {"window": (2048,)}])
def test_the_plain_gaussian_computes_half_of_its_map(kwargs):
    """Its keys are its queries, which the block hands on as one tensor: torch's kernel does not run."""
    block, x, _ = setting("gaussian", 4096, **kwargs)
    with mock.patch.object(tiled_softmax, "_tiles", wraps=tiled_softmax._tiles) as tiles, Operations() as operations:
        step(block, x)
    assert [call.args[0] is call.args[1] and call.args[-1] for call in tiles.call_args_list] == [True, True]
    assert FLASH not in operations.names
    assert operations.largest <= tiled_softmax.TILE < 4096 * 4096 / 4


@pytest.mark.parametrize("masked", [False, True])
def test_wide_queries_of_narrow_values_are_not_padded(masked, monkeypatch):
    """The plain Gaussian of a wide input goes through its map in tiles, whose number does not change the memory."""
    monkeypatch.setattr(tiled_softmax, "TILE", 2**18)
    peaks = []
    for n in (1024, 4096):
        query, key, value = (torch.randn(1, n, width, requires_grad=True) for width in (256, 256, 16))
        mask = torch.arange(n)[None] < 0.9 * n if masked else None
        with Memory() as memory:
            functional.nonlocal_operation("gaussian", query, key, value, mask=mask, form="tiled").sum().backward()
        assert memory.largest <= 2 * 256 * n * 4
        peaks.append(memory.peak)
    assert peaks[1] < 4.4 * peaks[0]


def test_multiply_adds_of_the_dot_product_grow_linearly():
    counts = []
    for n in (1024, 4096, 32_768):
        with FlopCounterMode(display=False) as counter:
            step(*setting("dot_product", n))
        counts.append(counter.get_total_flops() / n)
    assert counts[0] > 0
    assert counts[0] == pytest.approx(counts[1], rel=0.01) == pytest.approx(counts[2], rel=0.01)


@pytest.mark.parametrize("pairwise", ["dot_product", "concatenation"])
def test_elements_written_grow_linearly(pairwise):
    """All tensors that forward and backward write, together: a bound below on time that no clock disturbs."""
    counts = []
    for n in (1024, 4096, 32_768):
        with Operations() as operations:
            step(*setting(pairwise, n))
        counts.append(operations.elements / n)
    assert counts[2] < 1.02 * counts[0]
    assert counts[1] < 1.02 * counts[0]


@pytest.mark.parametrize("pairwise", ["dot_product", "concatenation"])
def test_memory_at_32768_positions(pairwise):
    assert measure(pairwise, 32_768).peak < 32_768 * C * 4 * 100


PROGRAM = """
import resource, sys, torch
from nonlocal_nets.nn import NonLocalBlock
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
def step(n):
    x = torch.randn(1, {C}, n, requires_grad=True)
    block(x).square().sum().backward()
block = NonLocalBlock({C}, pairwise=sys.argv[1])
step(1024)
before = peak()
step(int(sys.argv[2]))
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_peak_of_a_process_at_32768_positions(pairwise):
    """The map alone would take 4 GiB; 1,000 bytes for each of the 8 channels of a position are 250 MiB."""
    command = [sys.executable, "-c", PROGRAM.replace("{C}", str(C)), pairwise, "32768"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(result.stdout) < 32_768 * C * 1000


@pytest.mark.slow
@pytest.mark.parametrize("pairwise", SOFTMAX)
def test_memory_of_the_softmax_at_32768_positions(pairwise):
    small, large = measure(pairwise, 4096), measure(pairwise, 32_768)
    assert large.peak < 8.8 * small.peak
    assert large.largest < 32_768 * 4096
