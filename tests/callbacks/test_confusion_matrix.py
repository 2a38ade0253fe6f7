"""The confusion matrix counts every test sample once; its table and its picture are compared with counts by hand."""

import csv
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from nonlocal_nets.callbacks import ConfusionMatrix
from nonlocal_nets.callbacks.confusion_matrix import draw, total

TRUE = [0, 0, 0, 1, 1, 0, 1]
PREDICTED = [0, 0, 1, 1, 2, 0, 0]
COUNTS = [[3, 1, 0], [1, 1, 1], [0, 0, 0]]  # a row is a true class
QUIET = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}


class Echo(pl.LightningModule):
    """Predicts what the batch says; None for its third batch."""

    def test_step(self, batch, batch_idx):
        predicted, target = batch
        if batch_idx == 2:
            return None
        return {"logits": torch.nn.functional.one_hot(predicted, 3).float(), "target": target, "loss": 0}


class Data(pl.LightningDataModule):
    class_names = ("cat", "dog", "elk")

    def test_dataloader(self):
        samples = [*zip(PREDICTED, TRUE, strict=True)]
        return DataLoader([*samples[:4], (2, 2), *samples[4:]], batch_sampler=[[0, 1, 2], [3, 5, 6], [4], [7]])


def run(module, data, folder):
    trainer = pl.Trainer(callbacks=[ConfusionMatrix()], default_root_dir=folder, enable_model_summary=False, **QUIET)
    for _ in range(2):  # a second test starts from zero
        trainer.test(module, data, verbose=False)


@pytest.fixture
def figures(monkeypatch):
    from matplotlib.figure import Figure

    saved = []

    def save(figure, path, **_):
        saved.append((figure, path))
        path.touch()

    monkeypatch.setattr(Figure, "savefig", save)
    return saved


def test_the_table_of_a_test(tmp_path):
    run(Echo(), Data(), tmp_path / "run")
    with (tmp_path / "run" / "classes.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows == [["class", "samples", "accuracy"], ["cat", "4", "0.7500"], ["dog", "3", "0.3333"], ["elk", "0", ""]]
    assert (tmp_path / "run" / "confusion.png").stat().st_size > 1000


def test_the_picture_of_a_test(tmp_path, figures, monkeypatch):
    monkeypatch.setattr("nonlocal_nets.callbacks.confusion_matrix.publish", lambda trainer, path: None)
    run(Echo(), Data(), tmp_path)
    figure, path = figures[-1]
    assert path == tmp_path / "confusion.part.png", "which takes the place of the picture"
    assert (tmp_path / "confusion.png").is_file()
    is_counts(figure, COUNTS, ["cat", "dog", "elk"])


def is_counts(figure, counts, names):
    """A row of the image is a true class, with its shares; a cell has its count; both axes have the names in order."""
    (axis,) = figure.axes
    (image,) = axis.images
    counts = np.array(counts)
    np.testing.assert_allclose(image.get_array(), counts / counts.sum(1, keepdims=True).clip(1))
    assert (image.norm.vmin, image.norm.vmax) == (0, 1)
    assert axis.yaxis_inverted(), "the first class is at the top"
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("predicted", "true")
    for labels in (axis.get_xticklabels(), axis.get_yticklabels()):
        assert [label.get_text() for label in labels] == names
    assert axis.get_xticks().tolist() == axis.get_yticks().tolist() == list(range(len(names)))
    texts = {tuple(int(k) for k in text.get_position()): text for text in axis.texts}
    for true in range(len(names)):
        for predicted in range(len(names)):
            text = texts.pop((predicted, true))
            assert int(text.get_text()) == counts[true, predicted]
            assert text.get_color() == ("white" if counts[true, predicted] > 0.5 * counts[true].sum() else "black")
    assert not texts


@pytest.mark.parametrize(("classes", "written", "named"), [(20, True, True), (21, False, True), (41, False, False)])
def test_many_classes(tmp_path, figures, classes, written, named):
    draw(torch.eye(classes).long(), [str(k) for k in range(classes)], tmp_path / "a.png")
    ((figure, _),) = figures
    (axis,) = figure.axes
    assert len(axis.texts) == (classes**2 if written else 0)
    assert ([label.get_text() for label in axis.get_xticklabels()] == [str(k) for k in range(classes)]) == named


@pytest.mark.parametrize(
    ("outputs", "got"),
    [
        ({"loss": torch.zeros(())}, "a dict of loss"),
        (torch.zeros(3), "Tensor"),
        ({"logits": torch.zeros(3, 2), "target": torch.zeros(3, 2)}, r"\(3, 2\) and \(3, 2\)"),
        ({"logits": torch.zeros(3, 2, 4), "target": torch.zeros(3, 4)}, r"\(3, 2, 4\) and \(3, 4\)"),
    ],
)
def test_other_tasks_are_refused(outputs, got):
    with pytest.raises(ValueError, match=rf"^ConfusionMatrix needs .* logits \(B, K\) and target \(B,\), got {got}$"):
        ConfusionMatrix().on_test_batch_end(None, None, outputs, None, 0)


def test_a_task_that_returns_nothing_is_refused(tmp_path):
    class Silent(Echo):
        def test_step(self, batch, batch_idx):
            pass

    with pytest.raises(ValueError, match=r"^ConfusionMatrix needs .*, got None for every batch$"):
        run(Silent(), Data(), tmp_path)


class Processes:
    """Collectives as threads meet in them; a thread that waits alone fails after a few seconds."""

    def __init__(self, number):
        self.barrier, self.values = threading.Barrier(number, timeout=5), {}

    def reduce(self, value, reduce_op):
        self.values[threading.get_ident()] = (value.clone(), reduce_op)
        self.barrier.wait()
        values, operations = zip(*self.values.values(), strict=True)
        self.barrier.wait()
        assert len(set(operations)) == 1, "all take part in the same one"
        return torch.stack(values).sum(0) if reduce_op == "sum" else torch.stack(values).amax(0)


@pytest.mark.parametrize("counts", [[COUNTS, None], [None, COUNTS], [COUNTS, COUNTS], [None, None]])
def test_processes_without_samples_take_part(counts):
    processes, results = Processes(2), {}

    def work(rank):
        own = None if counts[rank] is None else torch.tensor(counts[rank])
        try:
            results[rank] = total(own, processes.reduce, torch.device("cpu")).tolist()
        except (ValueError, threading.BrokenBarrierError) as error:
            results[rank] = repr(error)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results[0] == results[1]
    seen = sum(each is not None for each in counts)
    if seen:
        assert results[0] == (seen * np.array(COUNTS)).tolist()
    else:
        assert "None for every batch" in results[0]


def test_only_the_first_process_writes(tmp_path):
    trainer = SimpleNamespace(
        is_global_zero=False,
        default_root_dir=tmp_path / "run",
        strategy=SimpleNamespace(reduce=lambda value, reduce_op: torch.tensor(3) if reduce_op == "max" else value),
    )
    callback = ConfusionMatrix()
    callback.on_test_epoch_end(trainer, Echo())
    assert not (tmp_path / "run").exists()
