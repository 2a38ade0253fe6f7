"""The video task: averages of views, frozen norms, weights from elsewhere, several labels, each sample counted once."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from sklearn.metrics import average_precision_score
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from nonlocal_nets.nn import blocks
from nonlocal_nets.tasks import Blocks, Loss, VideoClassification

SMALL = {"backbone": "local_video_net", "input_size": (3, 4, 8, 8), "blocks": Blocks(at="paper-5")}


def make(**options):
    torch.manual_seed(0)
    return VideoClassification(3, **SMALL | options)


def wake(task):
    """As if trained: norms with weights and statistics."""
    for module in task.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            torch.nn.init.uniform_(module.weight, 0.5, 1)
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
    return task


def decided(task):
    """With logits so far apart that a mean of probabilities differs from one of logits or of their logarithms."""
    task.network.fc.weight.data *= 100
    return task


@torch.no_grad()
def test_probabilities_of_views_are_averaged():
    task, views = decided(wake(make())).eval(), torch.randn(2, 5, 3, 4, 8, 8)
    each = torch.stack([task(views[:, v]).softmax(1) for v in range(5)])
    torch.testing.assert_close(task.predict_step((views, ["a", "b"]), 0), each.mean(0))
    target = torch.tensor([0, 2])
    outputs = task.evaluate((views, target), task.val_metrics)
    torch.testing.assert_close(outputs["logits"].softmax(1), each.mean(0))
    torch.testing.assert_close(outputs["loss"], -each.mean(0)[[0, 1], target].log().mean())
    assert float(task.val_metrics.compute()["val/accuracy"]) == (each.mean(0).argmax(1) == target).float().mean()


@torch.no_grad()
def test_a_single_view_keeps_its_axis():
    task, clips = wake(make()).eval(), torch.randn(2, 3, 4, 8, 8)
    predicted = task.predict_step((clips[:, None], ["a", "b"]), 0)
    torch.testing.assert_close(predicted, task(clips).softmax(1))


@torch.no_grad()
def test_with_several_labels_sigmoids_are_averaged():
    task, views = decided(wake(make(multi_label=True))).eval(), torch.randn(2, 5, 3, 4, 8, 8)
    each = torch.stack([task(views[:, v]).sigmoid() for v in range(5)])
    assert (task.monitor, task.mode) == ("val/mAP", "max")
    torch.testing.assert_close(task.predict_step((views, ["a", "b"]), 0), each.mean(0))


def precision_of_parts(logits, labels, *sizes):
    metric = make(multi_label=True).val_metrics
    for part, target in zip(torch.tensor(logits).split(sizes), torch.tensor(labels).split(sizes), strict=True):
        metric.update(part, target)
    return float(metric.compute()["val/mAP"])


def test_mean_average_precision_is_scikit_learns():
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(40, 3)), random.integers(2, size=(40, 3))
    expected = average_precision_score(labels, logits, average="macro")
    assert precision_of_parts(logits, labels, 25, 15) == pytest.approx(expected)
    in_any_range = precision_of_parts(logits, labels, *[1] * 40)  # of some samples all logits lie in [0, 1]
    assert in_any_range == pytest.approx(expected)


def test_mean_average_precision_is_that_of_the_classes_that_occur():
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(40, 3)), random.integers(2, size=(40, 3))
    labels[:, 1] = 0
    expected = average_precision_score(labels[:, ::2], logits[:, ::2], average="macro")
    assert precision_of_parts(logits, labels, 25, 15) == pytest.approx(expected)
    labels[:, 2] = 0
    assert precision_of_parts(logits, labels, 40) == pytest.approx(average_precision_score(labels[:, 0], logits[:, 0]))
    assert np.isnan(precision_of_parts(logits, np.zeros_like(labels), 40)), "no class at all"


def test_frozen_norms_do_not_move():
    task = make(freeze_norm=True, blocks=Blocks(at="paper-5", norm="none")).train()
    norms = task.norms()
    assert len(norms) == 7
    before = copy.deepcopy(norms)
    optimizer = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], lr=1.0)
    task.loss(task(torch.randn(4, 3, 4, 8, 8)), torch.tensor([0, 1, 2, 0])).backward()
    optimizer.step()
    for old, new in zip(before, norms, strict=True):
        assert not new.training
        for name, value in old.state_dict().items():
            assert torch.equal(value, new.state_dict()[name])
    assert task.network.layer1[0][0].weight.grad.any()


def test_frozen_new_blocks_are_refused():
    with pytest.raises(
        ValueError, match=r"freeze_norm: the norm of network.layer2.*non_local is zero and would stay so"
    ):
        make(freeze_norm=True)


def test_a_non_local_net_starts_from_its_baseline_and_longer_clips_from_shorter_ones(tmp_path):
    baseline, clip = wake(make(blocks=Blocks(at="none"))).eval(), torch.randn(1, 3, 4, 8, 8)
    torch.save({"state_dict": baseline.state_dict()}, tmp_path / "baseline.ckpt")
    task = make(weights=str(tmp_path / "baseline.ckpt")).eval()
    assert len(blocks(task)) == 5
    torch.testing.assert_close(task(clip), baseline(clip))
    torch.save(wake(task).state_dict(), tmp_path / "short.ckpt")
    long = make(weights=str(tmp_path / "short.ckpt"), input_size=(3, 8, 8, 8), freeze_norm=True).eval()
    torch.testing.assert_close(long(clip), task(clip))


def test_weights_of_a_2d_network_are_inflated(tmp_path):
    torch.manual_seed(0)
    flat = timm.create_model("resnet50", num_classes=10)
    torch.save(flat.state_dict(), tmp_path / "resnet50.pth")
    options = {"backbone": "i3d_resnet50", "input_size": (3, 8, 32, 32), "weights": str(tmp_path / "resnet50.pth")}
    task = VideoClassification(3, blocks=Blocks(at="paper-1"), stem="8x8", **options)
    ours, theirs = task.network.state_dict(), flat.state_dict()
    torch.testing.assert_close(ours["conv1.weight"].sum(2), theirs["conv1.weight"])
    torch.testing.assert_close(
        ours["layer1.0.conv1.weight"], theirs["layer1.0.conv1.weight"][:, :, None].expand(-1, -1, 3, -1, -1) / 3
    )
    assert torch.equal(ours["layer4.2.bn3.running_var"], theirs["layer4.2.bn3.running_var"])
    assert "but for fc, layer3.4.non_local" in task.report


def test_a_timm_network_is_inflated():
    task = make(backbone="resnet18", blocks=Blocks(at={"layer3": 1}), input_size=(3, 2, 32, 32))
    assert task(torch.randn(2, 3, 2, 32, 32)).shape == (2, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "c2d_resnet34"}, "depth must be one of 50, 101, got 34"),
        ({"backbone": "c3d"}, r"unknown backbone 'c3d'.*for videos also local_video_net, c2d_resnet50"),
        ({"backbone": "vit_tiny_patch16_224"}, "has no 3-D form"),
        (
            {"checkpointing": True},
            "checkpointing: only C2D and I3D have this option, not the backbone 'local",
        ),
        ({"stem": "8x8"}, "stem: only C2D and I3D have this option, not the backbone 'local_video_net'"),
        ({"pool_padding": False, "backbone": "resnet18"}, "pool_padding: only C2D and I3D .* 'resnet18'"),
        ({"dropout": 0.0}, "dropout: only C2D and I3D have this option, not the backbone 'local_video_net'"),
        ({"loss": Loss(label_smoothing=0.1), "multi_label": True}, "multi_label takes neither label_smoothing"),
        (
            {"blocks": Blocks(at="paper-5", window={"layer4": [4, None, None]})},
            r"windows by stage.*need blocks by stage that have these, got at='paper-5'",
        ),
        (
            {"blocks": Blocks(at="layer3", window={"layer2": [4, None, None]})},
            "need blocks by stage that have these, got at='layer3'",
        ),
    ],
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_data_with_other_labels_are_refused():
    task = make()
    task.trainer = SimpleNamespace(datamodule=SimpleNamespace(multi_label=True))
    with pytest.raises(ValueError, match="the data have multi_label=True, the model multi_label=False"):
        task.setup("fit")


@pytest.mark.parametrize("samples", [7, 8, 9, 1])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_samples_that_are_repeated_for_equal_shares_are_left_out(samples, batch_size):
    """All processes together see each sample once, where the sampler gives some twice."""
    task, counted = make(), []
    data = TensorDataset(torch.arange(samples), torch.arange(samples))
    for rank in range(3):
        sampler = DistributedSampler(data, num_replicas=3, rank=rank, shuffle=False)
        loader = DataLoader(data, batch_size=batch_size, sampler=sampler)
        task.trainer = SimpleNamespace(testing=True, test_dataloaders=loader)
        for index, batch in enumerate(loader):
            unique = task._without_duplicates(batch, index)
            assert unique is None or len(unique[1]), "a network cannot run on nothing"
            counted += [] if unique is None else unique[1].tolist()
    assert sorted(counted) == list(range(samples))


@torch.no_grad()
def test_the_loss_of_several_labels_is_the_mean_over_classes_and_samples():
    task, views = wake(make(multi_label=True)).eval(), torch.randn(2, 1, 3, 4, 8, 8)
    labels = torch.tensor([[1.0, 0, 1], [0, 0, 0]])
    p = task(views[:, 0]).sigmoid()
    expected = -(labels * p.log() + (1 - labels) * (1 - p).log()).mean()
    torch.testing.assert_close(task.evaluate((views, labels), task.val_metrics)["loss"], expected)


def test_arguments_reach_the_network():
    options = {"backbone": "c2d_resnet50", "input_size": (3, 8, 32, 32), "blocks": Blocks(at="none")}
    default, other = (
        make(**options, **given).network
        for given in ({}, {"stem": "8x8", "pool_padding": False, "dropout": 0.0, "checkpointing": True})
    )
    pools = [module.padding for module in (default.maxpool, other.maxpool)]
    assert pools[0] != pools[1]
    assert (default.dropout.p, other.dropout.p) == (0.5, 0.0)
    assert (default.checkpointing, other.checkpointing) == (False, True)
    assert (default.conv1.stride, other.conv1.stride) == ((2, 2, 2), (1, 2, 2)), "8x8 keeps the frames there"


def test_the_memory_layout():
    for channels_last in (True, False):
        weight = make(channels_last=channels_last).network.layer1[0][0].weight
        assert weight.is_contiguous(memory_format=torch.channels_last_3d) == channels_last


@pytest.mark.parametrize("stage", ["val", "test", "predict"])
def test_clips_without_an_axis_of_views_are_refused_in_evaluation(stage):
    with pytest.raises(ValueError, match=r"must be views \(B, V, C, T, H, W\), got \(1, 3, 4, 8, 8\)"):
        make().logits((torch.zeros(1, 3, 4, 8, 8), torch.tensor([0])), stage)
