"""Peers: modules of other libraries that compute the same as one of our blocks, with its weights.

Each is made from a block, or is None if the peer has no such block. All end with batch norm in training mode and a
residual connection, as the block does.
"""

import math
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nonlocal_nets import NonLocalBlock


class Equation(nn.Module):
    """Eq. 1 written out with torch's operators: the map, its normalisation, its product with g."""

    def __init__(self, block: NonLocalBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        b = self.block
        x_BNC = x.flatten(2).transpose(1, 2)
        keys = x if b.pool is None else getattr(F, f"max_pool{x.ndim - 2}d")(x, b.pool)
        keys_BMC = keys.flatten(2).transpose(1, 2)
        name = getattr(b.pairwise, "name", "")
        if name == "gaussian":
            f = (x_BNC @ keys_BMC.transpose(1, 2)).softmax(2)
        elif name == "concatenation":
            w_query, w_key = b.w_f.weight.chunk(2, 1)  # as a sum: the literal equation needs a tensor (2 d, N, M)
            a, c = _linear(b.theta, x_BNC) @ w_query.T, _linear(b.phi, keys_BMC) @ w_key.T
            f = torch.relu(a + c.transpose(1, 2)) / c.shape[1]
        else:
            f = _linear(b.theta, x_BNC) @ _linear(b.phi, keys_BMC).transpose(1, 2)
            f = f / f.shape[2] if name == "dot_product" else (f * b.pairwise.logit_scale).softmax(2)
        u = b.out(f @ _linear(b.g, keys_BMC))
        return x + b.norm(u.transpose(1, 2)).view_as(x)


class Plain(nn.Module):
    """Eq. 1 and Eq. 6 with convolutions of (B, C, N): three of the functions, without subsampling."""

    def __init__(self, block: NonLocalBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        b, x_BCN = self.block, x.flatten(2)
        name = getattr(b.pairwise, "name", "")
        embedded = name != "gaussian"
        query, key = (_convolution(layer, x_BCN) for layer in (b.theta, b.phi)) if embedded else (x_BCN, x_BCN)
        g_BVN = _convolution(b.g, x_BCN)
        if name == "dot_product":
            y_BVN = torch.bmm(torch.bmm(g_BVN, key.transpose(1, 2)) / key.shape[2], query)
        else:
            logits = torch.bmm(query.transpose(1, 2), key) * b.pairwise.logit_scale
            y_BVN = torch.bmm(g_BVN, logits.softmax(-1).transpose(1, 2))
        return x + b.norm(_convolution(b.out, y_BVN)).view_as(x)


def _convolution(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.conv1d(x, layer.weight[:, :, None], layer.bias)


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Without the layer's own `forward`, which is part of what is compared."""
    return F.linear(x, layer.weight, layer.bias)


class Timm(nn.Module):
    """timm's NonLocalAttn: two axes, embedded Gaussian, no subsampling."""

    def __new__(cls, block: NonLocalBlock, axes: int) -> Any:
        from timm.layers import NonLocalAttn

        if axes != 2 or block.pool is not None or block.pairwise.name != "embedded_gaussian":
            return None
        peer = NonLocalAttn(block.channels, use_scale=False, rd_channels=block.inner_channels)
        peer.scale = block.pairwise.logit_scale
        for name, layer in (("t", block.theta), ("p", block.phi), ("g", block.g), ("z", block.out)):
            _copy(layer, getattr(peer, name))
        peer.norm.weight.data.copy_(block.norm.weight)
        return peer


class Mmcv(nn.Module):
    """mmcv's NonLocal1d, 2d and 3d: all four functions, subsampling of phi and g by (1, 2, 2)."""

    def __new__(cls, block: NonLocalBlock, axes: int) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from mmcv.cnn.bricks.non_local import NonLocal1d, NonLocal2d, NonLocal3d

        if block.pool is not None and (block.pool_position == "input" or block.pairwise.name == "gaussian"):
            return None  # it pools after phi and g, and cannot pool where there is no phi
        peer = (NonLocal1d, NonLocal2d, NonLocal3d)[axes - 1](
            block.channels,
            reduction=block.channels // block.inner_channels,
            use_scale=block.pairwise.logit_scale != 1,
            mode=block.pairwise.name,
            sub_sample=block.pool is not None,
            norm_cfg={"type": f"BN{axes}d"},
        )
        pairs = [("g", block.g), ("conv_out", block.out)]
        pairs += [(name, getattr(block, name)) for name in ("theta", "phi") if hasattr(block, name)]
        for name, layer in pairs:
            module = getattr(peer, name)
            _copy(layer, (module[0] if isinstance(module, nn.Sequential) else module).conv)
        if hasattr(block, "w_f"):
            peer.concat_project.conv.weight.data.copy_(block.w_f.weight.view_as(peer.concat_project.conv.weight))
        peer.conv_out.bn.weight.data.copy_(block.norm.weight)
        return peer


class Attention(nn.Module):
    """torch's MultiheadAttention with one head: embedded Gaussian with scale and d = C."""

    def __init__(self, block: NonLocalBlock) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(block.channels, 1, batch_first=True)
        layers = (block.theta, block.phi, block.g)
        self.attention.in_proj_weight.data.copy_(torch.cat([layer.weight for layer in layers]))
        self.attention.in_proj_bias.data.copy_(torch.cat([layer.bias for layer in layers]))
        _copy(block.out, self.attention.out_proj)
        self.norm, self.pool = block.norm, block.pool

    def forward(self, x: Tensor) -> Tensor:
        x_BNC = x.flatten(2).transpose(1, 2)
        keys = x if self.pool is None else getattr(F, f"max_pool{x.ndim - 2}d")(x, self.pool)
        keys_BMC = keys.flatten(2).transpose(1, 2)
        u, _ = self.attention(x_BNC, keys_BMC, keys_BMC, need_weights=False)
        return x + self.norm(u.transpose(1, 2)).view_as(x)


def _copy(ours: nn.Linear, theirs: Any) -> None:
    theirs.weight.data.copy_(ours.weight.view_as(theirs.weight))
    if theirs.bias is not None:
        theirs.bias.data.copy_(ours.bias)


def make_block(channels: int, arguments: dict[str, Any]) -> NonLocalBlock:
    """One of our blocks, made different from the identity by a weight of 1 in its norm."""
    torch.manual_seed(0)
    block = NonLocalBlock(channels, **arguments)
    block.norm.weight.data.fill_(1)  # type: ignore[operator,union-attr]
    return block


def contestants(block: NonLocalBlock, size: tuple[int, ...]) -> dict[str, nn.Module]:
    """Our block and those peers that are installed and compute the same (`make bench` installs all of them)."""
    makers: dict[str, Callable[[], Any]] = {
        "timm": lambda: Timm(block, len(size)),
        "mmcv": lambda: Mmcv(block, len(size)),
    }
    if block.pool is None or block.pool_position == "input":
        makers["equation"] = lambda: Equation(block)
        if block.pool is None and getattr(block.pairwise, "name", "") != "concatenation":
            makers["plain"] = lambda: Plain(block)
        if getattr(block.pairwise, "logit_scale", 1) != 1 and block.inner_channels == block.channels:
            makers["attention"] = lambda: Attention(block)
    peers: dict[str, Any] = {"ours": block}
    for name, make in makers.items():
        with suppress(ModuleNotFoundError):
            peers[name] = make()
    return {name: peer for name, peer in peers.items() if peer is not None}


def map_bytes(name: str, block: NonLocalBlock, batch: int, size: tuple[int, ...]) -> int:
    """Bytes of a peer's largest tensor: the map, or mmcv's (2 d, N, M) for the concatenation."""
    n, m = math.prod(size), math.prod(block.key_size(size))
    if name in ("ours", "attention"):
        return 0
    copies = 2 * block.inner_channels if name == "mmcv" and block.pairwise.name == "concatenation" else 1
    return 4 * batch * n * m * copies
