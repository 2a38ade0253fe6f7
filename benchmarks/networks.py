"""Table "networks": what five blocks add to the time and the multiply-adds of a ResNet-50."""

import torch
from torch.utils.flop_counter import FlopCounterMode

import nonlocal_nets as nln
from benchmarks.measure import MODES, Target, in_turn, markdown, note, ratio


def table(target: Target, seconds: float = 20.0) -> str:
    """Forward + backward of images of 224 x 224, two on a CPU and 32 on a GPU."""
    import timm

    shape = (2 if target.device == "cpu" else 32, 3, 224, 224)
    plain = timm.create_model("resnet50").train()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        plain(torch.randn(2, *shape[1:]))
    multiply_adds = counter.get_total_flops() / 2 / 2  # of one image; the counter counts multiplications and additions
    step = MODES["forward + backward"]
    rows = []
    for name in nln.PAIRWISE:
        note(f"networks: {name}")
        model = timm.create_model("resnet50").train()
        report = nln.insert(model, "paper-5", example=torch.zeros(1, *shape[1:]), pairwise=name)
        share = sum(row.multiply_adds for row in report.rows) / multiply_adds
        calls = {"plain": step(plain.to(*target)), "blocks": step(model.to(*target))}
        times = in_turn(calls, shape, seconds, target=target)
        time = ratio(times["blocks"], times["plain"])
        rows.append([name, f"{share:.3f}", time, f"{(time.median - 1) / share:.2f}"])
    return markdown(["function", "multiply-adds added", "time, times", "added time / added multiply-adds"], rows)
