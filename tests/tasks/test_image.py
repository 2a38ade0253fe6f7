"""The image task: its loss and metrics against torch's own, its schedule, its arguments."""

import math

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

import nonlocal_nets as nln
from nonlocal_nets.tasks import Blocks, ImageClassification, Loss, Optimizer, Schedule

SCALED = {"optimizer": Optimizer(lr=0.5, lr_base_size=2), "schedule": Schedule(warmup_steps=3)}


def task(**options):
    return ImageClassification(3, "local_convnet", (3, 16, 16), **{"blocks": Blocks(at="layer3")} | options)


def trainer(folder, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options |= quiet | {"log_every_n_steps": 1, "enable_checkpointing": False}
    return pl.Trainer(accelerator="cpu", default_root_dir=folder, **options)


def loader(samples=10, batch_size=4):
    torch.manual_seed(1)
    return DataLoader(TensorDataset(torch.randn(samples, 3, 16, 16), torch.randint(3, (samples,))), batch_size)


def test_test_figures_are_those_of_the_whole_set_with_an_uneven_last_batch(tmp_path):
    torch.manual_seed(0)
    model, data = task(), loader()
    (figures,) = trainer(tmp_path).test(model, data, verbose=False)
    images, labels = data.dataset.tensors
    with torch.no_grad():
        logits = model.eval()(images)
    assert figures["test/accuracy"] == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    assert figures["test/loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)


def test_the_rate_in_force_and_the_global_batch_are_logged(tmp_path, caplog):
    model = task(**SCALED)
    few = trainer(tmp_path, max_steps=1, accumulate_grad_batches=2)
    few.fit(model, loader(12), loader())
    logged = few.logged_metrics
    assert {name: float(logged[f"train/{name}"]) for name in ("lr", "global_batch")} == {"lr": 0.5, "global_batch": 8}
    assert "8 samples in a step; the highest learning rate is 2" in caplog.text


def of_a_batch_sampler(samples=10, batch_size=4):
    data = loader(samples).dataset
    return DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data), batch_size, drop_last=True))


def of_a_dataset_of_batches(samples=10, batch_size=4):
    images, labels = loader(samples).dataset.tensors
    return DataLoader(list(zip(images.split(batch_size), labels.split(batch_size), strict=True)), batch_size=None)


def test_a_batch_sampler_says_the_global_batch(tmp_path):
    few = trainer(tmp_path, max_steps=1)
    few.fit(task(**SCALED), of_a_batch_sampler(), loader())
    assert few.logged_metrics["train/global_batch"] == 4
    assert few.optimizers[0].param_groups[0]["initial_lr"] == 1


def test_a_dataset_may_make_the_batches_where_the_rate_does_not_depend_on_their_size(tmp_path):
    few = trainer(tmp_path, max_steps=1)
    few.fit(task(), of_a_dataset_of_batches(), of_a_dataset_of_batches())
    assert few.global_step == 1
    assert "train/global_batch" not in few.logged_metrics
    with pytest.raises(
        ValueError, match="lr_base_size=2 needs the size of a batch, which the training data do not tell"
    ):
        trainer(tmp_path, max_steps=1).fit(
            task(optimizer=Optimizer(lr_base_size=2)), of_a_dataset_of_batches(), loader()
        )


def test_a_higher_rate_without_warm_up_is_warned_of(tmp_path):
    model = task(**SCALED | {"schedule": Schedule()})
    with pytest.warns(
        UserWarning, match="the learning rate is 2 times as high for 4 samples in a step; set schedule.warmup_steps"
    ):
        trainer(tmp_path, max_steps=1).fit(model, loader(), loader())


def test_learning_rate_rises_then_falls_by_a_cosine(tmp_path):
    rates = []

    class Record(pl.Callback):
        def on_train_batch_start(self, trainer, *_):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    model = task(optimizer=Optimizer(lr=0.5), schedule=Schedule(warmup_steps=3))
    trainer(tmp_path, max_epochs=4, callbacks=[Record()]).fit(model, loader(), loader())
    expected = [0.125, 0.25, 0.375] + [0.25 * (1 + math.cos(math.pi * k / 9)) for k in range(9)]
    assert rates == pytest.approx(expected)


def test_every_parameter_learns(tmp_path):
    blocks = Blocks(at="layer3", norm="layer")
    model = task(blocks=blocks, optimizer=Optimizer(lr=0.01), schedule=Schedule())
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    trainer(tmp_path, max_epochs=2).fit(model, loader(), loader())
    still = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    assert not still


def test_mixup_blends_images_and_labels_in_training_only():
    model = task(mixup=0.5)
    images, labels = torch.arange(4.0)[:, None, None, None].expand(-1, 3, 16, 16), torch.tensor([0, 1, 2, 0])
    mixed, soft = model.augment(images, labels)
    share = float(soft[0, 0])  # of the first image; it is mixed with the last, of the same label, and 1 with 2
    assert soft.shape == (4, 3)
    torch.testing.assert_close(soft.sum(1), torch.ones(4))
    kept = float((mixed[1] - 2).mean() / (1 - 2))
    torch.testing.assert_close(soft[1], torch.tensor([0.0, kept, 1 - kept]))
    assert share == 1
    assert torch.equal(images, torch.arange(4.0)[:, None, None, None].expand(-1, 3, 16, 16)), "the batch is left alone"
    metrics = model.val_metrics
    outputs = model.eval().evaluate((images, labels), metrics)
    torch.testing.assert_close(outputs["logits"], model(images))
    assert torch.equal(outputs["target"], labels)
    assert model.augment(images[:3], labels[:3])[1].ndim == 1, "timm mixes pairs"


def test_metrics_of_training_start_anew_each_epoch(tmp_path):
    """Loss and accuracy of an epoch are those of its own samples, seen by a network that does not learn."""
    torch.manual_seed(0)
    model, data = task(optimizer=Optimizer(lr=0.0), schedule=Schedule()), loader(8)
    seen = []

    class Record(pl.Callback):
        def on_train_epoch_end(self, trainer, module):
            seen.append({name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("train/")})

    class Changing(DataLoader):  # other labels in the second epoch
        epoch = 0

        def __iter__(self):
            images, labels = data.dataset.tensors
            shifted = (labels + self.epoch) % 3
            self.epoch += 1
            return iter([(images[:4], shifted[:4]), (images[4:], shifted[4:])])

    changing = Changing(data.dataset, 4)
    trainer(tmp_path, max_epochs=2, callbacks=[Record()]).fit(model, changing, loader())
    images, labels = data.dataset.tensors
    model.train()
    with torch.no_grad():
        logits = torch.cat([model(images[:4]), model(images[4:])])
    for epoch, figures in enumerate(seen):
        expected = (labels + epoch) % 3
        assert figures["train/accuracy"] == pytest.approx((logits.argmax(1) == expected).double().mean().item())
        loss = torch.nn.functional.cross_entropy(logits, expected).item()
        assert figures["train/loss_epoch"] == pytest.approx(loss, rel=1e-5)


def test_a_checkpoint_loads_by_itself_with_its_options(tmp_path):
    model = task(blocks=Blocks(at="layer3", pairwise="dot_product"), loss=Loss(label_smoothing=0.1))
    few = trainer(tmp_path, max_steps=1)
    few.fit(model, loader(), loader())
    few.save_checkpoint(tmp_path / "x.ckpt")
    kept = torch.load(tmp_path / "x.ckpt", weights_only=True)["hyper_parameters"]
    assert (kept["blocks"]["at"], kept["blocks"]["pairwise"], kept["loss"]["label_smoothing"]) == (
        "layer3",
        "dot_product",
        0.1,
    )
    again = ImageClassification.load_from_checkpoint(tmp_path / "x.ckpt")
    assert again.loss.label_smoothing == 0.1
    assert torch.equal(again.eval()(torch.ones(1, 3, 16, 16)), model.eval()(torch.ones(1, 3, 16, 16)))


@pytest.mark.parametrize(
    ("blocks", "count"), [("none", 0), ("paper-5", 4), (["layer1"], 1), ({"layer1": 2, "layer2": 1}, 3)]
)
def test_blocks_by_name_with_their_arguments(blocks, count):
    options = {"pairwise": "dot_product", "pool": 2, "norm": "layer", "inner_channels": 6, "pool_position": "embedding"}
    model = ImageClassification(3, "resnet18", (3, 64, 64), Blocks(at=blocks, **options))
    found = list(nln.blocks(model).values())
    assert len(found) == count
    for block in found:
        assert type(block.pairwise) is nln.PAIRWISE["dot_product"]
        assert (block.pool, block.pool_position, block.inner_channels) == (2, "embedding", 6)
        assert isinstance(block.norm, torch.nn.LayerNorm)
    assert model.report.startswith(f"{count} non-local block" if count else "no non-local blocks")
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 3)


def test_unknown_place_lists_the_places():
    with pytest.raises(ValueError, match=r"no module 'layer9' in LocalConvNet; insertion points: layer1, .*layer4"):
        ImageClassification(2, "local_convnet", (3, 48, 48), Blocks(at="layer9"))


def test_unknown_pairwise_function_lists_the_four():
    with pytest.raises(ValueError, match=r"pairwise must be one of gaussian, embedded_gaussian, .*, got 'cosine'"):
        task(blocks=Blocks(at="layer3", pairwise="cosine"))


def test_arguments_reach_mixup_and_the_memory_layout():
    assert task(mixup=0.3).mixup.mixup_alpha == 0.3
    assert task().mixup is None
    for channels_last in (True, False):
        weight = next(
            p for p in task(channels_last=channels_last).network.parameters() if p.ndim == 4 and p.shape[1] > 1
        )
        assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last


def test_images_may_have_other_channels():
    model = ImageClassification(3, "local_convnet", (5, 16, 16), Blocks(at="layer3"))
    assert model.eval()(torch.zeros(2, 5, 16, 16)).shape == (2, 3)
