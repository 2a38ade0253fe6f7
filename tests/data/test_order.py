"""The order of the training samples and their randomness, as functions of the seed and the epoch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset

from nonlocal_nets.data.image_folder import ImageFolder, fake
from nonlocal_nets.data.order import Seeded, TrainingLoader, TrainingOrder


class Noise(Dataset):
    """Samples of two random numbers and their index."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return torch.rand(2), index


def order(count, batch_size=2, epoch=0, **args):
    sampler = TrainingOrder(Noise(count), batch_size, **args)
    sampler.set_epoch(epoch)
    return list(sampler)


def test_each_epoch_has_each_sample_once_in_an_order_of_its_own():
    first, second = order(50), order(50, epoch=1)
    assert sorted(first) == [(0, k) for k in range(50)]
    assert sorted(second) == [(1, k) for k in range(50)]
    assert [k for _, k in first] != [k for _, k in second]
    assert [k for _, k in first] != list(range(50)) != [k for _, k in second]
    assert first == order(50)


def test_the_seed_determines_the_order(monkeypatch):
    orders = []
    for seed in ("0", "1", "1"):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        orders.append(order(50))
    assert orders[0] != orders[1] == orders[2]


@given(
    count=st.integers(1, 60),
    processes=st.integers(1, 4),
    batch_size=st.integers(1, 5),
    lengths=st.none() | st.lists(st.integers(1, 9), min_size=60, max_size=60),
)
def test_processes_together_see_the_batches_of_one(count, processes, batch_size, lengths):
    whole = order(count, batch_size * processes, lengths=lengths)
    parts = [order(count, batch_size, lengths=lengths, replicas=processes, rank=rank) for rank in range(processes)]
    assert len({len(part) for part in parts}) == 1, "else some processes would wait forever"
    size = batch_size * processes
    for batch in range(count // size):
        mine = [draw for part in parts for draw in part[batch * batch_size : (batch + 1) * batch_size]]
        assert sorted(mine) == sorted(whole[batch * size : (batch + 1) * size])
    assert {draw for part in parts for draw in part} == set(whole)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=90), st.integers(1, 4))
def test_batches_of_similar_lengths(lengths, batch_size):
    indices = [k for _, k in order(len(lengths), batch_size, lengths=lengths)]
    assert sorted(indices) == list(range(len(lengths)))
    whole = len(lengths) // batch_size * batch_size
    if whole <= TrainingOrder.CHUNK * batch_size:  # one chunk: its batches are those of the sorted samples
        batches = sorted(sorted(lengths[k] for k in indices[b : b + batch_size]) for b in range(0, whole, batch_size))
        assert [length for batch in batches for length in batch] == sorted(lengths[k] for k in indices[:whole])


def test_batches_of_similar_lengths_come_in_random_order():
    lengths = list(range(100))
    first = [[k for _, k in order(100, 5, epoch, lengths=lengths)][::5] for epoch in range(2)]
    assert first[0] != sorted(first[0])
    assert first[0] != first[1]


def test_only_samples_of_the_same_chunk_of_the_epoch_share_a_batch():
    """Else all epochs would have the same batches. A chunk is 32 batches of the random order, here 64 samples."""
    lengths = list(range(640))
    chunk_of = {k: place // 64 for place, (_, k) in enumerate(order(640))}
    epochs = [[k for _, k in order(640, epoch=epoch, lengths=lengths)] for epoch in range(2)]
    batches = [{tuple(indices[b : b + 2]) for b in range(0, 640, 2)} for indices in epochs]
    assert all(chunk_of[first] == chunk_of[second] for first, second in batches[0])
    assert len(batches[0] & batches[1]) < 32, "about one tenth of 320"


@pytest.mark.parametrize("rank", [0, 1])
def test_skipping_leaves_out_the_first_samples_of_a_process_in_one_epoch(rank):
    sampler = TrainingOrder(Noise(21), 2, replicas=2, rank=rank)
    whole = list(sampler)
    assert len(whole) == 11
    sampler.skip = 4
    assert list(sampler) == whole[4:]
    assert list(sampler) == whole


def test_the_randomness_of_a_sample_depends_on_seed_epoch_and_index_alone(monkeypatch):
    samples = Seeded(Noise(4))
    state = torch.get_rng_state()
    first = samples[0, 3][0]
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left as it was"
    torch.rand(5)
    assert torch.equal(samples[0, 3][0], first)
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    others = [samples[1, 3][0], samples[0, 2][0], Seeded(Noise(4))[0, 3][0], Noise(4)[3][0]]
    assert not any(torch.equal(first, other) for other in others)


def test_a_sample_that_fails_restores_the_random_state():
    class Fails(Noise):
        def __getitem__(self, index):
            return 1 / 0

    state = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError):
        Seeded(Fails(2))[0, 0]
    assert torch.equal(torch.get_rng_state(), state)


def test_the_loader_starts_with_the_first_batch():
    """Lightning creates the iterator first, and sets the epoch afterwards."""
    sampler = TrainingOrder(Noise(8), 2)
    loader = TrainingLoader(Seeded(Noise(8)), batch_size=2, sampler=sampler)
    batches = iter(loader)
    sampler.set_epoch(5)
    assert torch.cat([index for _, index in batches]).tolist() == [k for _, k in order(8, epoch=5)]


def test_augmented_images_do_not_depend_on_the_workers(tmp_path):
    args = {**fake(tmp_path), "image_size": 16, "batch_size": 5}
    epochs = []
    for workers in (0, 2):
        loader = ImageFolder(**args, num_workers=workers).train_dataloader()
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            epochs.append(torch.cat([images for images, _ in loader]))
    assert torch.equal(epochs[0], epochs[2])
    assert torch.equal(epochs[1], epochs[3])
    assert not torch.equal(epochs[0], epochs[1])
