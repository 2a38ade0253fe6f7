"""The non-local block, Eq. 1 and Eq. 6 of the paper, for any number of axes.

Shape suffixes: B batch, S the axes of the positions, N their number, C channels, D and V inner widths, M keys.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.modules.batchnorm import _BatchNorm

from nonlocal_nets.nn import functional, grid
from nonlocal_nets.nn.norms import EPS, MOMENTUM, NORMS, normalise
from nonlocal_nets.nn.pairwise import Pairwise, resolve_pairwise
from nonlocal_nets.nn.pointwise import Pointwise, is_channels_last

POOL_POSITIONS = ("input", "embedding")


class _Grids(NamedTuple):
    """The grid of positions, the pool that makes the grid of keys from it, and the windows (None: a single one)."""

    size: tuple[int, ...]
    pool: tuple[int, ...]
    windows: tuple[int, ...] | None

    @property
    def keys(self) -> tuple[int, ...]:
        return grid.pooled_sizes(self.size, self.pool)

    @property
    def key_windows(self) -> tuple[int, ...] | None:
        return self.windows and grid.pooled_sizes(self.windows, self.pool)


class NonLocalBlock(nn.Module):
    r"""z_i = W_z y_i + x_i (Eq. 6) with y_i = 1 / C(x) sum_j f(x_i, x_j) g(x_j) (Eq. 1), over all positions j.

    The paper's names: `theta`, `phi` and `g` are its embeddings, `out` its W_z, `norm` the normalisation after W_z.
    All are pointwise, so that one class and one state dict serve sequences (B, C, L), images (B, C, H, W) and videos
    (B, C, T, H, W). With He initialisation and a zero weight in the norm, a new block is the identity (Sec. 4.1).

    Args:
        channels: C of the input (B, C, \*S), where S has one axis or more.
        inner_channels: width of theta, phi and g; default C // 2, at least 1 (Sec. 3.3).
        pairwise: "gaussian", "embedded_gaussian", "dot_product", "concatenation", a subclass of `Pairwise`, or the
            path of one, such as "mypackage.mymodule.Distance".
        scale: multiply the logits by inner_channels ** -0.5, as the released code does and the paper does not
            (embedded_gaussian only).
        pool: subsampling of the keys by max pooling, an int or one per axis, as in (1, 2, 2) (Sec. 3.3).
        pool_position: "input" pools x, then embeds it (released code); "embedding" pools phi and g (paper, Sec. 3.3).
        window: attend within windows of this extent, an int or one per axis, None for a whole axis:
            (1, None, None) is space only, (None, 1, 1) time only, (4, None, None) groups of 4 frames.
        norm: "batch", "group" (32 groups, or fewer where 32 does not divide the channels), "layer" (over the channels
            of a position) or "none" (then `out` starts at zero).
        norm_eps: added to the variance.
        norm_momentum: share of a batch in the running statistics of batch norm.

    Raises:
        ValueError: an argument, or an input of `forward`, that is not as described.
    """

    def __init__(
        self,
        channels: int,
        inner_channels: int | None = None,
        pairwise: str | type[Pairwise] = "embedded_gaussian",
        scale: bool = False,
        pool: int | Sequence[int] | None = None,
        pool_position: str = "input",
        window: int | Sequence[int | None] | None = None,
        norm: str = "batch",
        norm_eps: float = EPS,
        norm_momentum: float = MOMENTUM,
    ) -> None:
        super().__init__()
        _check_choice("pool_position", pool_position, POOL_POSITIONS)
        _check_choice("norm", norm, tuple(NORMS))
        if not (0 < norm_eps < math.inf and 0 <= norm_momentum <= 1):
            given = f"got {norm_eps} and {norm_momentum}"
            raise ValueError(f"norm_eps must be above 0 and norm_momentum from 0 to 1, {given}")
        if norm == "none" and norm_eps != EPS:
            raise ValueError(f"norm_eps has no effect with norm='none', got {norm_eps}")
        if norm != "batch" and norm_momentum != MOMENTUM:
            raise ValueError(f"norm_momentum is for norm='batch' only, got {norm_momentum} with {norm!r}")
        if inner_channels is None:
            inner_channels = max(channels // 2, 1)
        for name, value in (("channels", channels), ("inner_channels", inner_channels)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.channels, self.inner_channels = channels, inner_channels
        self.pool, self.pool_position = _check_sizes("pool", pool), pool_position
        self.window = _check_sizes("window", window)
        self.pairwise = resolve_pairwise(pairwise)(channels, inner_channels, scale)
        for name, layer in self.pairwise.layers().items():
            self.add_module(name, layer)
        self.g = Pointwise(channels, inner_channels)
        self.out = Pointwise(inner_channels, channels)
        self.norm = NORMS[norm](channels, norm_eps, norm_momentum)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """He initialisation, zero biases, and the zero weight that makes the block the identity (Sec. 4.1)."""
        for layer in self.children():
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
            elif isinstance(layer, (_BatchNorm, nn.GroupNorm, nn.LayerNorm)):
                layer.reset_parameters()
        self.pairwise.reset_parameters(self)
        zero: nn.Module = self.out if isinstance(self.norm, nn.Identity) else self.norm
        nn.init.zeros_(zero.get_parameter("weight"))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Eq. 6: (B, C, *S) -> (B, C, *S).

        Args:
            x: (B, C, *S).
            mask: bool (B, *S), True at valid positions. The others, padding, then affect neither the valid outputs nor
                gradients nor running statistics, and are returned unchanged. (In training, batch norm gathers the valid
                positions, whose number depends on the data, so that torch.compile needs fullgraph=False.)
        """
        if isinstance(x, Proxy):  # fx is tracing a model, which gets a call of the block: its code depends on shapes
            path = x.tracer.path_of_module(self)
            return x.tracer.create_proxy("call_module", path, (x,) if mask is None else (x, mask), {})
        grids = self._check_input(x, mask)
        query, key, value, key_mask = self._embed(x, mask, grids)
        queries = grid.to_windows(query, grids.size, grids.windows)
        y = self.pairwise.operation(
            queries,
            queries if key is query else grid.to_windows(key, grids.keys, grids.key_windows),
            grid.to_windows(value, grids.keys, grids.key_windows),
            None if key_mask is None else grid.to_windows(key_mask, grids.keys, grids.key_windows),
        )
        y_BNV = grid.from_windows(y, grids.size, grids.windows)
        residual_BCN = self._out(y_BNV, None if mask is None else mask.flatten(1), x)
        return x + torch.unflatten(residual_BCN, 2, grids.size).to(x.dtype)

    def weights(self, x: Tensor, queries: Sequence[int] | Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """The exact map f / C(x): (B, Q, M) in float32 or wider, with Q x M entries in memory per sample.

        Args:
            x: (B, C, *S).
            queries: Q flat indices of positions; default all N.
            mask: as in `forward`.

        Returns:
            A row per query. Its M entries are the keys of the whole (pooled) grid, `key_size`, in row-major order. Keys
            that are masked or outside of the query's window have weight 0.
        """
        grids = self._check_input(x, mask)
        query, key, _, key_mask = self._embed(x, mask, grids)
        n = query.shape[1]
        index = torch.arange(n, device=x.device) if queries is None else torch.as_tensor(queries, device=x.device)
        if index.ndim != 1 or index.is_floating_point() or ((index < -n) | (index >= n)).any():
            raise ValueError(f"queries must be flat indices of the {n} positions {grids.size}, got {queries}")
        if grids.windows is not None and grids.key_windows is not None:
            window_of_query = grid.window_index(grids.size, grids.windows, x.device)[index]
            same = window_of_query[:, None] == grid.window_index(grids.keys, grids.key_windows, x.device)
            key_mask = same.expand(len(x), -1, -1) if key_mask is None else same & key_mask[:, None]
        return self.pairwise.weights(query[:, index], key, key_mask)

    def key_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """The grid of keys for an input of size *S, to which the last axis of `weights` can be unflattened."""
        return self._grids(size).keys

    def multiply_adds(self, size: Sequence[int]) -> int:
        """Multiply-adds of the forward pass of a sample of size *S: of the layers, and of Eq. 1 in its fastest form."""
        grids = self._grids(size)
        n, m = math.prod(grids.size), math.prod(grids.keys)
        n_window, m_window = math.prod(grids.windows or grids.size), math.prod(grids.key_windows or grids.keys)
        pooled_after = self.pool_position == "embedding" and m < n
        layers = self.g.weight.numel() * (n if pooled_after else m) + self.out.weight.numel() * n
        embeddings = self.pairwise.embedding_multiply_adds(n, m, pooled_after)
        return layers + embeddings + n // n_window * self.pairwise.multiply_adds(n_window, m_window)

    def map_size(self, size: Sequence[int]) -> int:
        """Number of entries that the map f / C(x) of a sample of size *S would have."""
        grids = self._grids(size)
        return math.prod(grids.size) * math.prod(grids.key_windows or grids.keys)

    def extra_repr(self) -> str:
        text = f"{self.channels}, inner_channels={self.inner_channels}, pairwise={type(self.pairwise).__name__}"
        if self.pool is not None:
            text += f", pool={self.pool}, pool_position={self.pool_position!r}"
        return text if self.window is None else f"{text}, window={self.window}"

    def _embed(self, x: Tensor, mask: Tensor | None, grids: _Grids) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Queries (B, N, D), keys (B, M, D), values (B, M, V) and the mask of the keys (B, M), from x (B, C, *S)."""
        x_BSC = x.movedim(1, -1)
        if mask is not None:  # padding may hold NaN
            x_BSC = x_BSC.masked_fill(~mask[..., None], 0)
        keys_BSC, subsample = x_BSC, None
        if math.prod(grids.pool) > 1:
            subsample = partial(grid.max_pool, pool=grids.pool, mask=mask)
        if subsample is not None and self.pool_position == "input":
            keys_BSC, subsample = subsample(x_BSC), None
        query = self.pairwise.query(self, x_BSC)
        key = self.pairwise.key(self, keys_BSC, subsample)
        value = self.g(keys_BSC)
        if subsample is not None:
            value = subsample(value)
        query_BND = query.flatten(1, -2)
        key_BMD = query_BND if key is query else key.flatten(1, -2)  # the plain Gaussian's keys are its queries
        key_mask = None if mask is None else grid.pool_mask(mask, grids.pool).flatten(1)
        return query_BND, key_BMD, value.flatten(1, -2), key_mask

    def _out(self, y: Tensor, valid: Tensor | None, x: Tensor) -> Tensor:
        """norm(W_z y), (B, N, V) -> (B, C, N), zero at padding, with the statistics of the valid positions."""
        device = y.device.type
        autocast = device != "meta" and torch.is_autocast_enabled(device)
        if autocast and torch.get_autocast_dtype(device) == torch.float16 and y.dtype == torch.float32:
            autocast = False  # sums of the dot product and the concatenation can overflow float16
        with functional.autocast(device, autocast):
            u_BCN: Tensor = self.out(y if autocast else y.to(self.out.weight.dtype)).mT
            # in the layout of x, which the gradient of the norm's output has too: on a CPU, the backward pass of batch
            # norm takes ten times as long if its input has another
            return normalise(self.norm, u_BCN if is_channels_last(x) else u_BCN.contiguous(), valid)

    def _check_input(self, x: Tensor, mask: Tensor | None) -> _Grids:
        if x.ndim < 3 or x.shape[1] != self.channels:
            raise ValueError(f"input must be (B, {self.channels}, *S) with one axis or more in S, got {tuple(x.shape)}")
        if mask is not None and (mask.dtype != torch.bool or mask.shape != (x.shape[0], *x.shape[2:])):
            expected = (x.shape[0], *x.shape[2:])
            raise ValueError(f"mask must be bool {expected}, got {mask.dtype} {tuple(mask.shape)}")
        return self._grids(x.shape[2:])

    def _grids(self, size: Sequence[int]) -> _Grids:
        pool = grid.pool_sizes(self.pool, size)
        return _Grids(tuple(size), pool, grid.window_sizes(self.window, size, pool))


def _check_choice(name: str, given: object, accepted: tuple[str, ...]) -> None:
    if given not in accepted:
        raise ValueError(f"{name} must be one of {', '.join(accepted)}, got {given!r}")


def _check_sizes(name: str, given: grid.Axes) -> grid.Axes:
    sizes = [given] if given is None or isinstance(given, int) else list(given)
    if any(size is not None and (not isinstance(size, int) or size < 1) for size in sizes):
        raise ValueError(f"{name} must be an int of at least 1, or one per axis, got {given!r}")
    return given if given is None or isinstance(given, int) else tuple(given)
