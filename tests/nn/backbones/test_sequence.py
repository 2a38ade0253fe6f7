"""The sequence ResNet: padding changes nothing, in evaluation and training; its size; oracle: each sample alone."""

import copy

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import pad

from nonlocal_nets.nn import PAIRWISE, blocks, insert
from nonlocal_nets.nn.backbones.sequence import SequenceResNet, sequence_backbone

TOKENS, CHANNELS = 11, 2
LENGTHS = st.lists(st.integers(9, 30), min_size=2, max_size=4)  # two: a norm in training wants two positions
STRIDES = [(1, 1), (2, 1), (2, 3)]  # of the stem, of the stages
FAST = {("embedded_gaussian", True), ("dot_product", False), ("concatenation", True)}
FUNCTIONS = [  # each pairwise function with signals and with tokens
    pytest.param(pairwise, tokens, marks=[pytest.mark.slow] * ((pairwise, tokens) not in FAST))
    for pairwise in PAIRWISE
    for tokens in (False, True)
]


def network(tokens, strides=(1, 1), dtype=torch.float64, wake=True, widths=(4, 6, 5), **block):
    """With a block in layer2 and in layer3, no longer the identity, and norms that are not fresh."""
    torch.manual_seed(0)
    stem, stage = strides
    net = SequenceResNet(3, TOKENS if tokens else CHANNELS, tokens, widths, stem_stride=stem, stage_stride=stage)
    example = torch.zeros(1, 60, dtype=torch.long) if tokens else torch.zeros(1, CHANNELS, 60)
    insert(net, {"layer2": 1, "layer3": 1}, example=example, **block)
    for one in blocks(net).values() if wake else []:
        nn.init.ones_(one.norm.weight)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d) and wake:
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.normal_(module.bias, std=0.3)  # so that padding would not stay zero by itself
            nn.init.constant_(module.running_var, 4.0)
    return net.eval().to(dtype)


def sequences(tokens, lengths, dtype=torch.float64):
    torch.manual_seed(len(lengths))
    return [torch.randint(TOKENS, (n,)) if tokens else torch.randn(CHANNELS, n, dtype=dtype) for n in lengths]


def batch(samples, extra=0, filling=0):
    """Padded to the longest and more, and the mask."""
    lengths = [x.shape[-1] for x in samples]
    longest = max(lengths) + extra
    x = torch.stack([pad(x, (0, longest - n), value=filling) for x, n in zip(samples, lengths, strict=True)])
    return x, torch.arange(longest) < torch.tensor(lengths)[:, None]


# --- padding changes nothing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pairwise", "tokens"), FUNCTIONS)
@settings(max_examples=5)
@given(lengths=LENGTHS, extra=st.integers(0, 9), strides=st.sampled_from(STRIDES))
def test_logits_of_a_sample_alone_are_those_in_any_batch(pairwise, tokens, lengths, extra, strides):
    net = network(tokens, strides, pairwise=pairwise)
    samples = sequences(tokens, lengths)
    with torch.no_grad():
        alone = torch.cat([net(x[None]) for x in samples])
        together = net(*batch(samples, extra, filling=7 if tokens else float("nan")))
    assert torch.allclose(together, alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("pool_position", ["input", "embedding"])
@settings(max_examples=5)
@given(lengths=LENGTHS)
def test_and_so_they_are_with_pooled_keys(pool_position, lengths):
    net, samples = network(False, pool=3, pool_position=pool_position), sequences(False, lengths)
    with torch.no_grad():
        alone = torch.cat([net(x[None]) for x in samples])
        assert torch.allclose(net(*batch(samples)), alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_default_networks_in_float32(pairwise, tokens):
    net = network(tokens, dtype=torch.float32, wake=False, widths=(64, 128, 128), pairwise=pairwise)
    samples = sequences(tokens, [50, 23, 37], torch.float32)
    with torch.no_grad():
        alone = torch.cat([net(x[None]) for x in samples])
        assert torch.allclose(net(*batch(samples)), alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("pairwise", "tokens"), FUNCTIONS)
@settings(max_examples=3)
@given(lengths=LENGTHS, strides=st.sampled_from(STRIDES))
@example(lengths=[12, 12], strides=(1, 1))
def test_training_does_not_depend_on_the_amount_of_padding(pairwise, tokens, strides, lengths):
    """Gradients of all parameters and the running statistics, also with no mask where all are equally long."""
    net, samples = network(tokens, strides, pairwise=pairwise).train(), sequences(tokens, lengths)
    cases = [batch(samples), batch(samples, 13)]
    if len(set(lengths)) == 1:
        cases.append((torch.stack(samples), None))
    seen = []
    for x, mask in cases:
        one = copy.deepcopy(net)
        logits = one(x, mask)
        (logits * torch.arange(3) + logits.square()).sum().backward()
        seen.append([logits.detach(), *(p.grad for p in one.parameters()), *one.buffers()])
    assert all(grad is not None for grad in seen[0])
    for other in seen[1:]:
        for a, b in zip(seen[0], other, strict=True):
            assert torch.allclose(a, b, rtol=1e-8, atol=1e-8 * max(1, float(a.abs().max())))


def test_the_running_statistics_are_those_of_the_valid_positions():
    """Of the stem's norm: by hand, from the convolution of each sample alone."""
    net, samples = network(False).train(), sequences(False, [9, 17])
    norm = net.stem.norms[0]
    values = torch.cat([net.stem.convs[0](x[None])[0] for x in samples], 1)
    expected = 0.9 * norm.running_mean + 0.1 * values.mean(1), 0.9 * norm.running_var + 0.1 * values.var(1)
    net(*batch(samples, 5))
    assert torch.allclose(norm.running_mean, expected[0])
    assert torch.allclose(norm.running_var, expected[1])


# --- the network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("units", [1, 2])
@pytest.mark.parametrize(("in_chans", "tokens"), [(1, False), (64, False), (3, False), (15, True)])
def test_parameters_against_a_count_by_hand(in_chans, tokens, units):
    """Convolutions without bias, two numbers a channel of each norm; a shortcut where the width changes."""

    def unit(channels, width, kernels):
        sizes = [channels] + [width] * (len(kernels) - 1)
        main = sum(a * width * k + 2 * width for a, k in zip(sizes, kernels, strict=True))
        return main + (channels * width + 2 * width if channels != width else 0)

    expected = (in_chans * 64 if tokens else 0) + unit(64 if tokens else in_chans, 64, [7])
    channels = 64
    for width in (64, 128, 128):
        for k in range(units):
            expected += unit(width if k else channels, width, [7, 5, 3])
        channels = width
    net = SequenceResNet(10, in_chans, tokens, units=units)
    assert sum(p.numel() for p in net.parameters()) == expected + 128 * 10 + 10


@pytest.mark.parametrize("length", [1, 7, 8, 9, 31])
def test_lengths_of_the_stages(length):
    """ceil(L / stride), from stride to stride."""
    net = SequenceResNet(3, CHANNELS, widths=(4, 6, 5), units=2, stem_stride=2, stage_stride=3)
    sizes = []
    for stage in net.stages:
        net.get_submodule(stage)[-1].register_forward_hook(lambda _, __, output: sizes.append(tuple(output.shape)))
    assert net.eval()(torch.randn(2, CHANNELS, length)).shape == (2, 3)
    first = -(-length // 2)
    second = -(-first // 3)
    assert sizes == [(2, 4, first), (2, 6, second), (2, 5, -(-second // 3))]


def test_tokens_are_embedded_signals():
    torch.manual_seed(0)
    net = sequence_backbone("token_resnet", 3, TOKENS, widths=(4, 6, 5)).eval()
    signal = sequence_backbone("signal_resnet", 3, 4, widths=(4, 6, 5)).eval()
    table = net.embedding.weight
    signal.load_state_dict({name: t for name, t in net.state_dict().items() if not name.startswith("embedding")})
    tokens = torch.randint(TOKENS, (2, 9))
    assert torch.allclose(net(tokens), signal(table[tokens].transpose(1, 2)))


def test_a_unit_by_hand():
    """relu(norm(conv(relu(norm(conv(x))))) + norm(shortcut(x))), with torch's functions."""
    torch.manual_seed(0)
    unit = SequenceResNet(3, CHANNELS, widths=(4, 6), kernels=(5, 3)).eval().layer2[0]
    x = torch.randn(2, 4, 9)
    inner = nn.functional.conv1d(x, unit.convs[0].weight, padding=2).relu()
    outer = nn.functional.conv1d(inner / (1 + 1e-5) ** 0.5, unit.convs[1].weight, padding=1)
    shortcut = nn.functional.conv1d(x, unit.shortcut.weight)
    assert torch.allclose(unit(x), ((outer + shortcut) / (1 + 1e-5) ** 0.5).relu(), atol=1e-5)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"widths": ()}, r"widths must be at least 1, got \[\]"),
        ({"widths": (8, 0)}, r"widths must be at least 1, got \[8, 0\]"),
        ({"kernels": (7, 4)}, r"kernels must be odd, got \[7, 4\]"),
        ({"kernels": ()}, r"kernels must be at least 1, got \[\]"),
        ({"units": 0}, r"units must be at least 1, got \[0\]"),
        ({"stem_stride": 0}, r"strides must be at least 1, got \[0, 1\]"),
        ({"stage_stride": -1}, r"strides must be at least 1, got \[1, -1\]"),
    ],
)
def test_refusals(kwargs, message):
    with pytest.raises(ValueError, match=message):
        SequenceResNet(3, CHANNELS, **kwargs)


def test_an_unknown_backbone():
    with pytest.raises(ValueError, match="backbone must be one of signal_resnet, token_resnet, got 'resnet'"):
        sequence_backbone("resnet", 3, 1)
