"""The benchmarks: contestants compute the same, a ratio is that of one round, memory is counted."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarks import choice, growth, kernels, measure, peers
from benchmarks.__main__ import README, TABLES, keep, main
from benchmarks.cases import CASES, Case
from benchmarks.contestants import contestants, make_block
from benchmarks.scaling import link

ROOT = Path(__file__).parents[1]
SMALL = [
    Case("1-D", 8, (12,), None, 2),
    Case("2-D", 8, (4, 6), None, 2),
    Case("3-D, pooled", 8, (2, 4, 6), (1, 2, 2), 2),
]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_peers_compute_what_we_compute(case):
    seen = set()
    for arguments in peers.variants(case):
        block = make_block(case.channels, arguments)
        x = torch.randn(case.batch, case.channels, *case.size)
        for name, peer in contestants(block, case.size).items():
            with torch.no_grad():
                torch.testing.assert_close(peer(x), block(x), rtol=1e-4, atol=1e-4)
                assert not torch.equal(peer(x), x), "not the identity"
            seen.add(name)
    assert {"ours", "equation", "attention"} <= seen
    assert ("timm" in seen) == (case.name == "2-D")


def test_a_ratio_is_of_the_same_round():
    slow_then_fast = [8.0, 4.0, 2.0, 1.0]
    assert measure.ratio([2 * t for t in slow_then_fast], slow_then_fast) == (2, 2, 2)


def test_contestants_take_turns_on_fresh_inputs():
    seen = {"a": [], "b": []}
    calls = {name: lambda x, name=name: seen[name].append(x) for name in seen}
    times = measure.in_turn(calls, (2, 3), seconds=0, least=4)
    assert {name: len(values) for name, values in times.items()} == {"a": 4, "b": 4}, "the first is not counted"
    inputs = torch.stack(seen["a"] + seen["b"])
    assert len(inputs.unique(dim=0)) == len(inputs) == 10


def test_training_reaches_the_input_and_every_parameter():
    layer, x = torch.nn.Linear(3, 2), torch.randn(4, 3)
    measure.training(layer)(x)
    assert x.grad is not None
    assert all(parameter.grad is not None for parameter in layer.parameters())


def make_a_map(mebibytes, _target):
    return (lambda x: torch.ones(x.numel() * 2**18)), (1, 1, mebibytes)


@pytest.mark.slow
def test_peak_memory_is_that_of_the_call():
    assert measure.peak_memory(make_a_map, 100) == pytest.approx(100, abs=10)
    assert measure.peak_memory(make_a_map, 8) == pytest.approx(8, abs=2), "a small one is not hidden by an earlier peak"


def test_slope_of_a_power():
    assert growth.slope([1, 2, 4, 8], [3 * n**1.5 for n in (1, 2, 4, 8)]) == pytest.approx(1.5)


def test_every_table_has_a_file_and_a_part_of_the_readme(tmp_path):
    assert set(re.findall(r"<!-- (\w+)(?:, .*)? -->", README.read_text())) == set(TABLES)
    assert all((ROOT / "benchmarks" / f"{name}.py").is_file() for name in TABLES)
    (copy := tmp_path / "README.md").write_text("before\n<!-- x -->\nold\n<!-- end of x -->\nafter\n")
    keep("x", "new", copy)
    assert copy.read_text() == "before\n<!-- x -->\nnew\n<!-- end of x -->\nafter\n"
    keep("y", "a new table", copy)
    keep("y", "again", copy)
    assert copy.read_text().endswith("after\n\n## y\n\n<!-- y -->\nagain\n<!-- end of y -->\n")
    keep("x", "first", fresh := tmp_path / "card-float16.md")
    assert fresh.read_text().count("first") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["speed"], "no table speed; the tables are startup, peers"),
        (["--dtype", "float16"], "--dtype on a CPU must be float32, got float16"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
    ],
)
def test_a_benchmark_that_there_is_not(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_benchmarks_need_torch_only():
    """`make bench DEVICE=cuda` on a machine with a card, a checkout and torch: what else they import is not needed."""
    program = """
import sys
for name in ("timm", "mmcv", "pytorch_lightning", "torchmetrics", "torchvision", "wandb", "lightning_utilities"):
    sys.modules[name] = None
import benchmarks.__main__
from benchmarks import choice, compiled, growth, kernels, limit, networks, peers, sequences
from benchmarks.cases import Case
from benchmarks.measure import CPU
print(peers.compare(Case("1-D", 8, (12,)), {"pairwise": "gaussian"}, "forward", 0.01, CPU))
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "'gaussian', '1-D'" in result.stdout


@pytest.mark.parametrize("name", ["choice", "kernels"])
def test_tables_of_the_forms(name, monkeypatch):
    monkeypatch.setattr(choice, "GRID", [(2, 9, 5, 4)])
    monkeypatch.setattr(kernels, "WIDTHS", (8,))
    text = {"choice": choice, "kernels": kernels}[name].table(measure.CPU, seconds=0)
    assert len(text.splitlines()) == (2 + 6 + 2 if name == "choice" else 4)
    assert ("**" if name == "choice" else "flash_attention_for_cpu") in text


def test_the_papers_shapes_are_there():
    shapes = {(case.channels, case.size, case.pool) for case in CASES}
    for channels, side in ((512, 28), (1024, 14)):
        assert {(channels, (frames, side, side), pool) for frames in (4, 16) for pool in (None, (1, 2, 2))} <= shapes
    assert Path(README).is_file()


@pytest.mark.slow
def test_the_table_of_links_is_what_its_arithmetic_gives():
    text = (ROOT / "cluster" / "README.md").read_text()
    assert f"<!-- link -->\n\n{link()}\n\n<!-- end of link -->" in text
