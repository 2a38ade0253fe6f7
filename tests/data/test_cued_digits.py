"""The cued digits are real, disjoint, deterministic, and no local network with a pooling head can solve them."""

import itertools

import numpy as np
import pytest
import torch

from nonlocal_nets.data import CuedDigits
from nonlocal_nets.data.cued_digits import PARTS, CuedDigitsDataset
from nonlocal_nets.nn.backbones.image import LocalConvNet

FIELD = 7  # pixels that a feature of LocalConvNet sees in each direction


def cells(image):
    """The nine cells of an image, (9, 3, 16, 16)."""
    return image.unfold(1, 16, 16).unfold(2, 16, 16).permute(1, 2, 0, 3, 4).reshape(9, 3, 16, 16)


def is_cue(cell):
    square = torch.zeros(16, 16)
    square[5:11, 5:11] = 1
    return any(torch.equal(plane, square) for plane in cell)


def test_samples_are_three_digits_and_a_cue_in_four_cells():
    labels = []
    for image, label in (CuedDigitsDataset("train", 50)[k] for k in range(50)):
        assert image.shape == (3, 48, 48)
        assert image.dtype == torch.float32
        assert image.min() == 0 <= image.max() <= 1
        occupied = [cell for cell in cells(image) if cell.any()]
        assert len(occupied) == 4
        assert sum(map(is_cue, occupied)) == 1
        assert all((cell.amax((1, 2)) > 0).sum() == 1 for cell in occupied), "one colour each"
        labels.append(int(label))
    assert 10 < sum(labels) < 40


def test_the_label_is_the_digit_whose_colour_the_cue_names(mnist):
    """Each digit is looked up in the package's own images: halved, the writing of the cued colour has the label."""
    pixels, digits = mnist
    halved = torch.tensor(pixels.reshape(-1, 14, 2, 14, 2).mean((2, 4)) / 255, dtype=torch.float32)
    dataset = CuedDigitsDataset("test", 30)
    for image, label in (dataset[k] for k in range(30)):
        occupied = [cell for cell in cells(image) if cell.any()]
        colour = next(int(cell.amax((1, 2)).argmax()) for cell in occupied if is_cue(cell))
        (writing,) = (cell[colour, 1:15, 1:15] for cell in occupied if cell[colour].any() and not is_cue(cell))
        distance, index = (halved - writing).abs().amax((1, 2)).min(0)
        assert distance < 1e-6
        assert digits[index] == label


def test_deterministic_by_seed_and_different_between_parts_and_seeds():
    same = [CuedDigitsDataset("train", 5, seed=1)[3][0] for _ in range(2)]
    assert torch.equal(*same)
    for part, seed in (("val", 1), ("train", 2)):
        assert not torch.equal(same[0], CuedDigitsDataset(part, 5, seed=seed)[3][0])


@pytest.mark.parametrize("seed", [0, 7])
def test_writings_are_disjoint_in_the_parts(seed):
    parts = [CuedDigitsDataset(part, 1, seed=seed).writings for part in PARTS]
    for ours, theirs in itertools.combinations(parts, 2):
        for digit in (0, 1):
            assert not {w.tobytes() for w in ours[digit]} & {w.tobytes() for w in theirs[digit]}
    assert [part.shape[1] for part in parts] == [350, 50, 100]


def test_no_field_of_view_holds_pixels_of_a_digit_and_of_a_cue():
    dataset = CuedDigitsDataset("train", 300)
    for image, _ in (dataset[k] for k in range(300)):
        grid = cells(image)
        cue = next(k for k in range(9) if is_cue(grid[k]))
        drawn = {k: np.argwhere(grid[k].amax(0).numpy() > 0) + 16 * np.array(divmod(k, 3)) for k in range(9)}
        for k, points in drawn.items():
            if k != cue and len(points):
                apart = np.abs(drawn[cue][:, None] - points[None]).max(-1).min()
                assert apart >= FIELD


def test_the_local_network_sees_no_further():
    torch.manual_seed(0)
    network = LocalConvNet(2).eval()
    x = torch.rand(1, 3, 48, 48, requires_grad=True)
    network.layer4(network.layer3(network.layer2(network.layer1(x))))[0, :, 6, 6].sum().backward()
    seen = x.grad[0].abs().amax(0).nonzero()
    extent = seen.amax(0) - seen.amin(0) + 1
    assert extent.tolist() == [FIELD, FIELD]


def test_no_additive_rule_is_right_in_more_than_19_of_24_cases():
    """All orders of sums that three weights can give are among the integers up to 4; a threshold for each cue."""

    def right(weights):
        total = 0
        for cue in range(3):
            cases = sorted((float(np.dot(weights, s)), s[cue]) for s in itertools.product((-1, 1), repeat=3))
            thresholds = {-99.0} | {value + 0.5 for value, _ in cases}
            total += max(sum((value > t) == (label > 0) for value, label in cases) for t in thresholds)
        return total

    assert right((1, 1, 1)) == 18, "the majority vote: 75 %"
    assert max(right(weights) for weights in itertools.product(range(-4, 5), repeat=3)) == 19


def test_data_module():
    data = CuedDigits(batch_size=6, train_samples=20, val_samples=7, test_samples=5)
    assert data.num_classes == len(data.class_names) == 2
    assert [len(image) for image, _ in data.train_dataloader()] == [6, 6, 6]
    assert [len(image) for image, _ in data.val_dataloader()] == [6, 1]
    assert [len(image) for image, _ in data.test_dataloader()] == [5]


@pytest.mark.parametrize("name", ["batch_size", "train_samples", "val_samples", "test_samples"])
def test_sizes_are_checked(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        CuedDigits(**{name: 0})
