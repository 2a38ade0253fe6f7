"""What classifications share: accuracies against counts by hand, soft labels in training, and rows of predictions."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from nonlocal_nets.tasks import Classification, Optimizer, Schedule
from nonlocal_nets.tasks.classification import accuracies


def test_accuracies_are_those_of_numpy():
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(60, 7)), random.choice(7, 60, p=[0.4, 0.2, 0.1, 0.1, 0.1, 0.05, 0.05])
    logits[range(60), labels] += 0.5
    right = logits.argmax(1) == labels
    ranks = (logits > logits[range(60), labels][:, None]).sum(1)
    expected = {
        "accuracy": right.mean(),
        "balanced_accuracy": np.mean([right[labels == k].mean() for k in range(7)]),
        "top5": (ranks < 5).mean(),
    }
    assert len(set(expected.values())) == 3
    metrics = accuracies(7)
    for part in range(0, 60, 25):
        metrics.update(torch.tensor(logits[part : part + 25]), torch.tensor(labels[part : part + 25]))
    assert {name: float(value) for name, value in metrics.compute().items()} == pytest.approx(expected)
    assert set(accuracies(5)) == {"accuracy", "balanced_accuracy"}


class Soft(Classification):
    """Its inputs are logits; augmented they are the others' of the batch, and labels are shared by two classes."""

    def __init__(self):
        super().__init__(nn.Identity(), nn.CrossEntropyLoss(), accuracies(3), Optimizer(), Schedule(), "")

    def augment(self, inputs, labels):
        return inputs.flip(0), torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.2, 0.8]])


LOGITS, LABELS = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 1.0]]), torch.tensor([0, 0])


def test_training_sees_augmented_inputs_and_soft_labels_and_metrics_the_labels_of_the_batch():
    task = Soft()
    loss = task.training_loss((LOGITS, LABELS))
    mixed, soft = task.augment(LOGITS, LABELS)
    assert loss.item() == pytest.approx(-(soft * mixed.log_softmax(1)).sum(1).mean().item())
    assert float(task.train_metrics.compute()["train/accuracy"]) == 0.5, "the second of the flipped ones is of class 0"


def test_evaluation_sees_neither():
    task = Soft()
    outputs = task.evaluate((LOGITS, LABELS), task.val_metrics)
    assert outputs["loss"].item() == pytest.approx(cross_entropy(LOGITS, LABELS).item())
    assert torch.equal(outputs["logits"], LOGITS)
    assert torch.equal(outputs["target"], LABELS)
    assert float(task.val_metrics.compute()["val/accuracy"]) == 0.5
    torch.testing.assert_close(task.predict_step((LOGITS, ["a", "b"]), 0), LOGITS.softmax(1))


def test_rows_have_the_likeliest_classes_in_their_order():
    task = Soft()
    task.trainer = SimpleNamespace(datamodule=SimpleNamespace(class_names=("ant", "bee", "cat")))
    (row,) = task.rows((None, ["a.jpg"]), torch.tensor([[0.25, 0.125, 0.625]]))
    assert row == {
        **{"path": "a.jpg", "class": "cat", "class_1": "cat", "probability_1": "0.625000"},
        **{"class_2": "ant", "probability_2": "0.250000", "class_3": "bee", "probability_3": "0.125000"},
    }
