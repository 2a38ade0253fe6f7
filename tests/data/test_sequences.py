"""What the sequence data modules share: padding with a mask, and batches of similar lengths, also after a resume."""

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given
from hypothesis import strategies as st

from nonlocal_nets.data.sequences import SequenceDataModule, Sequences, collate
from nonlocal_nets.run.repeatable import Repeatable

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=5)


class Counts(SequenceDataModule):
    """Signals of given lengths; signal k has the value k everywhere, and the label k."""

    def __init__(self, lengths=range(1, 41), batch_size=4, num_workers=0):
        lengths = list(lengths)
        super().__init__(("a", "b"), 1, max(lengths), batch_size, num_workers)
        self.values = [torch.full((1, length), float(k)) for k, length in enumerate(lengths)]

    def dataset(self, part):
        return Sequences(self.values, range(len(self.values)))

    def predict_dataset(self):
        return Sequences(self.values, [f"series {k}" for k in range(len(self.values))])


def drawn(loader, epoch=0):
    """The labels of each batch of an epoch."""
    loader.sampler.set_epoch(epoch)
    return [labels.tolist() for _, labels in loader]


# --- padding ----------------------------------------------------------------------------------------------------------


@given(LENGTHS, st.integers(1, 3))
def test_signals_are_padded_at_the_end_with_zeros_to_the_longest(lengths, channels):
    samples = [(torch.rand(channels, n) + 1, k) for k, n in enumerate(lengths)]
    (x, mask), labels = collate(samples)
    assert (x.shape, x.dtype) == ((len(lengths), channels, max(lengths)), torch.float32)
    assert (labels.tolist(), labels.dtype) == (list(range(len(lengths))), torch.int64)
    for k, (value, _) in enumerate(samples):
        assert torch.equal(x[k, :, : lengths[k]], value)
        assert not x[k, :, lengths[k] :].any()
    if len(set(lengths)) == 1:
        assert mask is None
    else:
        assert mask.dtype == torch.bool
        assert mask.tolist() == [[True] * n + [False] * (max(lengths) - n) for n in lengths]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_tokens_of_any_type_become_int64(dtype):
    """So that a data set in memory needs one byte per token."""
    data = Sequences([torch.tensor([255], dtype=dtype), torch.tensor([1, 2], dtype=dtype)], ["a", "b"])
    assert data[0][0].dtype == torch.int64
    (x, mask), names = collate([data[0], data[1]])
    assert (x.tolist(), x.dtype) == ([[255, 0], [1, 2]], torch.int64)
    assert mask.tolist() == [[True, False], [True, True]]
    assert list(names) == ["a", "b"]


def test_sequences_have_values_targets_and_lengths():
    data = Sequences([torch.zeros(2, 3), torch.ones(2, 5)], ["x", "y"])
    assert (len(data), data.lengths) == (2, [3, 5])
    assert torch.equal(data[0][0], torch.zeros(2, 3))
    assert torch.equal(data[1][0], torch.ones(2, 5))
    assert (data[0][1], data[1][1]) == ("x", "y")


# --- batches ----------------------------------------------------------------------------------------------------------


def test_training_visits_each_sample_once_in_batches_of_similar_lengths():
    data = Counts()
    epochs = [drawn(data.train_dataloader(), epoch) for epoch in (0, 1)]
    for batches in epochs:
        assert sorted(label for batch in batches for label in batch) == list(range(40))
        assert all(max(batch) - min(batch) == 3 for batch in batches), "the lengths of a batch are consecutive"
    assert epochs[0] != epochs[1]
    assert epochs[0] == drawn(Counts().train_dataloader())
    assert epochs[0] == drawn(Counts(num_workers=2).train_dataloader())


def test_batches_are_mixed_if_all_lengths_are_equal():
    batches = drawn(Counts([7] * 40).train_dataloader())
    assert any(max(batch) - min(batch) > 3 for batch in batches)
    (_, mask), _ = next(iter(Counts([7] * 40).train_dataloader()))
    assert mask is None


def test_the_seed_determines_training(monkeypatch):
    first = drawn(Counts().train_dataloader())
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    assert drawn(Counts().train_dataloader()) != first


def test_training_drops_an_incomplete_batch_and_evaluation_does_not():
    data = Counts(range(1, 11))
    batches = drawn(data.train_dataloader())
    assert [len(batch) for batch in batches] == [4, 4]
    assert len({label for batch in batches for label in batch}) == 8
    for loader in (data.val_dataloader(), data.test_dataloader()):
        assert [labels.tolist() for _, labels in loader] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]], "in order"
    assert [len(batch) for batch in drawn(Counts(range(1, 4)).train_dataloader())] == [3], "else there would be none"


def test_predict_has_names():
    (x, mask), names = next(iter(Counts([2, 3]).predict_dataloader()))
    assert x.tolist() == [[[0, 0, 0]], [[1, 1, 1]]]
    assert mask.tolist() == [[True, True, False], [True] * 3]
    assert list(names) == ["series 0", "series 1"]


class Recording(pl.LightningModule):
    """Learns nothing and records the samples of each batch."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch[1].tolist()))
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(folder):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    callbacks = [Repeatable(), pl.callbacks.ModelCheckpoint(folder, "{step}", every_n_train_steps=4, save_top_k=-1)]
    return pl.Trainer(accelerator="cpu", callbacks=callbacks, max_epochs=3, **quiet)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_fit_sees_the_batches_of_the_loader_and_a_resumed_fit_sees_the_rest(tmp_path):
    """Ten batches per epoch, and a checkpoint in the middle of the second epoch."""
    whole = Recording()
    trainer(tmp_path).fit(whole, Counts())
    expected = [(epoch, batch) for epoch in range(3) for batch in drawn(Counts().train_dataloader(), epoch)]
    assert whole.seen == expected
    resumed = Recording()
    trainer(tmp_path).fit(resumed, Counts(), ckpt_path=tmp_path / "step=16.ckpt")
    assert resumed.seen == expected[16:]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"num_workers": -1}, "num_workers must be at least 0, got -1"),
    ],
)
def test_invalid_arguments(args, message):
    with pytest.raises(ValueError, match=message):
        Counts(**args)
