"""Table "compiled": eager over torch.compile(fullgraph=True)."""

import torch
from torch import nn

import nonlocal_nets as nln
from benchmarks.contestants import make_block
from benchmarks.measure import MODES, Target, in_turn, markdown, note, ratio


def table(target: Target, seconds: float = 10.0) -> str:
    """Forward + backward, after a comparison of the outputs."""
    block, network = "res3 block, pooled", "ResNet-50, paper-5"
    rows = [_row(block, (1, 512, 4, 28, 28), name, seconds, target) for name in nln.PAIRWISE]
    rows.append(_row(network, (2, 3, 224, 224), "embedded_gaussian", seconds, target))
    return markdown(["what", "function", "eager / compiled, time"], rows)


def _row(what: str, shape: tuple[int, ...], name: str, seconds: float, target: Target) -> list[object]:
    note(f"compiled: {what} {name}")
    model = _network(shape, name) if shape[1] == 3 else make_block(shape[1], {"pairwise": name, "pool": (1, 2, 2)})
    model = model.to(*target)
    fast = torch.compile(model, fullgraph=True)
    x = target.random(shape)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-2, atol=1e-2)
    step = MODES["forward + backward"]
    times = in_turn({"eager": step(model), "compiled": step(fast)}, shape, seconds, target=target)
    torch.compiler.reset()
    return [what, name, ratio(times["eager"], times["compiled"])]


def _network(shape: tuple[int, ...], name: str) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model("resnet50").train()
    nln.insert(model, "paper-5", example=torch.zeros(1, *shape[1:]), pairwise=name)
    return model
