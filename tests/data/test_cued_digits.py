"""The cued digits are real, disjoint and deterministic, and no local network with a pooling head can solve them."""

import itertools

import numpy as np
import pytest
import torch

from nonlocal_nets.data import CuedDigits
from nonlocal_nets.data.cued_digits import PARTS, CuedDigitsDataset
from nonlocal_nets.nn.backbones.image import LocalConvNet

FIELD = 7  # receptive field of LocalConvNet, in pixels


def cells(image):
    """The nine cells of an image, (9, 3, 16, 16)."""
    return image.unfold(1, 16, 16).unfold(2, 16, 16).permute(1, 2, 0, 3, 4).reshape(9, 3, 16, 16)


def is_cue(cell):
    square = torch.zeros(16, 16)
    square[5:11, 5:11] = 1
    return any(torch.equal(plane, square) for plane in cell)


def test_samples_are_three_digits_and_a_cue_in_four_cells():
    labels, positions, colours = [], set(), set()
    dataset = CuedDigitsDataset("train", 50)
    for image, label in (dataset[k] for k in range(50)):
        assert image.shape == (3, 48, 48)
        assert image.dtype == torch.float32
        assert image.min() == 0 <= image.max() <= 1
        occupied = {k: cell for k, cell in enumerate(cells(image)) if cell.any()}
        assert len(occupied) == 4
        (cue,) = (k for k, cell in occupied.items() if is_cue(cell))
        assert all((cell.amax((1, 2)) > 0).sum() == 1 for cell in occupied.values()), "one colour each"
        digits = [int(cell.amax((1, 2)).argmax()) for k, cell in occupied.items() if k != cue]
        assert sorted(digits) == [0, 1, 2], "one digit of each colour"
        positions.add(cue)
        colours.add(int(occupied[cue].amax((1, 2)).argmax()))
        labels.append(int(label))
    assert 10 < sum(labels) < 40
    assert (positions, colours) == (set(range(9)), {0, 1, 2})


def test_the_label_is_the_digit_with_the_colour_of_the_cue(mnist):
    """The digit of that colour is looked up among the images of the package, at half their size."""
    pixels, digits = mnist
    halved = torch.tensor(pixels.reshape(-1, 14, 2, 14, 2).mean((2, 4)) / 255, dtype=torch.float32)
    dataset, found = CuedDigitsDataset("test", 30), set()
    for image, label in (dataset[k] for k in range(30)):
        occupied = [cell for cell in cells(image) if cell.any()]
        colour = next(int(cell.amax((1, 2)).argmax()) for cell in occupied if is_cue(cell))
        (glyph,) = (cell[colour, 1:15, 1:15] for cell in occupied if cell[colour].any() and not is_cue(cell))
        distance, index = (halved - glyph).abs().amax((1, 2)).min(0)
        assert distance < 1e-6
        assert digits[index] == label
        found.add(int(index))
    assert len(found) > 20, "different glyphs"


def layout(image):
    """The positions of the cue and of the digits by colour, which do not depend on the glyphs."""
    occupied = {k: cell for k, cell in enumerate(cells(image)) if cell.any()}
    return sorted((is_cue(cell), int(cell.amax((1, 2)).argmax()), k) for k, cell in occupied.items())


def test_a_sample_depends_on_seed_part_and_index_alone():
    image, label = CuedDigitsDataset("train", 5, seed=1)[3]
    for count in (5, 500):
        again, label_again = CuedDigitsDataset("train", count, seed=1)[3]
        assert torch.equal(image, again)
        assert label == label_again
    for part, seed, index in (("val", 1, 3), ("train", 2, 3), ("train", 1, 4)):
        assert layout(image) != layout(CuedDigitsDataset(part, 5, seed=seed)[index][0])


def test_the_parts_share_no_glyphs_and_the_seed_determines_the_split():
    splits = []
    for seed in (0, 7):
        parts = [CuedDigitsDataset(part, 1, seed=seed).glyphs for part in PARTS]
        assert [part.shape[1] for part in parts] == [350, 50, 100]
        for digit in (0, 1):
            sets = [{glyph.tobytes() for glyph in part[digit]} for part in parts]
            assert all(not ours & theirs for ours, theirs in itertools.combinations(sets, 2))
            splits.append(sets)
    assert splits[0] != splits[2]


def test_no_receptive_field_contains_pixels_of_a_digit_and_of_the_cue():
    dataset = CuedDigitsDataset("train", 300)
    for image, _ in (dataset[k] for k in range(300)):
        grid = cells(image)
        cue = next(k for k in range(9) if is_cue(grid[k]))
        drawn = {k: np.argwhere(grid[k].amax(0).numpy() > 0) + 16 * np.array(divmod(k, 3)) for k in range(9)}
        for k, points in drawn.items():
            if k != cue and len(points):
                apart = np.abs(drawn[cue][:, None] - points[None]).max(-1).min()
                assert apart >= FIELD


def test_the_receptive_field_of_the_local_network():
    torch.manual_seed(0)
    network = LocalConvNet(2).eval()
    x = torch.rand(1, 3, 48, 48, requires_grad=True)
    network.layer4(network.layer3(network.layer2(network.layer1(x))))[0, :, 6, 6].sum().backward()
    seen = x.grad[0].abs().amax(0).nonzero()
    extent = seen.amax(0) - seen.amin(0) + 1
    assert extent.tolist() == [FIELD, FIELD]


def test_no_additive_rule_is_right_in_more_than_19_of_24_cases():
    """Integers up to 4 produce every order of sums that three weights can produce; each cue has its own threshold."""

    def right(weights):
        total = 0
        for cue in range(3):
            cases = sorted((float(np.dot(weights, s)), s[cue]) for s in itertools.product((-1, 1), repeat=3))
            thresholds = {-99.0} | {value + 0.5 for value, _ in cases}
            total += max(sum((value > t) == (label > 0) for value, label in cases) for t in thresholds)
        return total

    assert right((1, 1, 1)) == 18, "the majority vote, 75 %"
    assert max(right(weights) for weights in itertools.product(range(-4, 5), repeat=3)) == 19


def test_the_query_point_is_the_centre_of_the_cue():
    dataset = CuedDigitsDataset("train", 20)
    for image, _ in (dataset[k] for k in range(20)):
        (cue,) = (k for k, cell in enumerate(cells(image)) if is_cue(cell))
        assert CuedDigits.query_point(image) == pytest.approx(((cue // 3 + 0.5) / 3, (cue % 3 + 0.5) / 3))


def test_data_module():
    data = CuedDigits(batch_size=6, train_samples=20, val_samples=7, test_samples=5, seed=3)
    assert (data.num_classes, data.class_names, data.input_size) == (2, ("0", "1"), (3, 48, 48))
    assert [len(images) for images, _ in data.train_dataloader()] == [6, 6, 6]
    for part, loader, count in (("val", data.val_dataloader(), 7), ("test", data.test_dataloader(), 5)):
        images, labels = (torch.cat(tensors) for tensors in zip(*loader, strict=True))
        expected = CuedDigitsDataset(part, count, seed=3)
        assert labels.tolist() == [int(expected[k][1]) for k in range(count)]
        assert torch.equal(images, torch.stack([expected[k][0] for k in range(count)]))


@pytest.mark.parametrize("name", ["batch_size", "train_samples", "val_samples", "test_samples"])
def test_sizes_are_checked(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        CuedDigits(**{name: 0})
