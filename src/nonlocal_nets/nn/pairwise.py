"""The pairwise functions f of Eq. 1: what each one learns, and how positions become its queries and keys.

To add one: subclass `Pairwise` here or anywhere, and give the class to `NonLocalBlock(pairwise=...)`. The layers it
names in `layers` become children of the block, so that a block's parameters read theta, phi, g, out, norm.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nonlocal_nets.nn import functional
from nonlocal_nets.nn.pointwise import Pointwise, linear

Pool = Callable[[Tensor], Tensor]


class Pairwise:
    """f(x_i, x_j) and its C(x). Holds no tensors: what it learns belongs to the block, which is passed in as `block`.

    Shapes: x (B, *S, C); queries (B, *S, D) and keys (B, *S', D); after flattening the positions (B, N, D), (B, M, D).
    x may be a view of channels first, which `Pointwise` reads without a copy; where `.view` fails `.flatten` works.
    """

    def __init__(self, channels: int, inner_channels: int, scale: bool = False) -> None:
        if scale:
            raise ValueError(f"scale is for pairwise='embedded_gaussian' only, got {type(self).__name__}")
        self.channels, self.inner_channels = channels, inner_channels

    def layers(self) -> dict[str, nn.Module]:
        """The layers that f learns, by the name that they get in the block."""
        return {}

    def reset_parameters(self, block: Any) -> None:
        """Initialise what He initialisation, done before by the block, does not suit."""

    def query(self, block: Any, x: Tensor) -> Tensor:
        return x

    def key(self, block: Any, x: Tensor, pool: Pool | None) -> Tensor:
        """`pool` subsamples what f embeds the keys in, or is None (no subsampling, or done on x before)."""
        return pool(x) if pool else x

    def weights(self, query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
        """f / C(x): (B, N, M), zero where mask, bool (B, M) or (B, N, M), is False. A new f must have this method."""
        raise TypeError(f"{type(self).__name__} does not define weights(query, key, mask)")

    def operation(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """y of Eq. 1: (B, N, V). By default through the map; override it where there is a cheaper way."""
        weights = self.weights(query, key, mask)
        return weights @ value.to(weights.dtype)

    def embedding_multiply_adds(self, n: int, m: int, pooled_after: bool) -> int:
        """Multiply-adds a sample of n queries and m keys; the keys may be pooled from n after their embedding."""
        return 0

    def multiply_adds(self, n: int, m: int) -> int:
        """Multiply-adds of `operation` a sample."""
        return n * m * (self.width + self.inner_channels)

    @property
    def width(self) -> int:
        """D, the width of queries and keys."""
        return self.inner_channels


class Embedded(Pairwise):
    """Learns theta and phi, the embeddings that f is computed on; a base for functions of one's own."""

    def layers(self) -> dict[str, nn.Module]:
        return {name: Pointwise(self.channels, self.inner_channels) for name in ("theta", "phi")}

    def embedding_multiply_adds(self, n: int, m: int, pooled_after: bool) -> int:
        return self.channels * self.inner_channels * (n + (n if pooled_after else m))

    def query(self, block: Any, x: Tensor) -> Tensor:
        theta: Tensor = block.theta(x)
        return theta

    def key(self, block: Any, x: Tensor, pool: Pool | None) -> Tensor:
        phi: Tensor = block.phi(x)
        return pool(phi) if pool else phi


class _Exact(Pairwise):
    """A function of the paper: `functional` computes it, under its name, without the map where that is cheaper."""

    name: str
    logit_scale = 1.0

    def weights(self, query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
        return functional.weights(self.name, query, key, mask=mask, scale=self.logit_scale)

    def operation(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        return functional.nonlocal_operation(self.name, query, key, value, mask=mask, scale=self.logit_scale)

    def multiply_adds(self, n: int, m: int) -> int:
        return functional.multiply_adds(self.name, n, m, self.width, self.inner_channels)


class Gaussian(_Exact):
    """f = exp(x_i . x_j), C = sum_j f (Eq. 2). Learns nothing."""

    name = "gaussian"

    @property
    def width(self) -> int:
        return self.channels


class EmbeddedGaussian(_Exact, Embedded):
    """f = exp(theta_i . phi_j), C = sum_j f (Eq. 3). `scale` divides the logits by sqrt(d), as the released code."""

    name = "embedded_gaussian"

    def __init__(self, channels: int, inner_channels: int, scale: bool = False) -> None:
        super().__init__(channels, inner_channels)
        self.logit_scale = inner_channels**-0.5 if scale else 1.0


class DotProduct(_Exact, Embedded):
    """f = theta_i . phi_j, C = the number of keys (Eq. 4)."""

    name = "dot_product"


class Concatenation(_Exact, Embedded):
    """f = relu(w_f . [theta_i, phi_j]), C = the number of keys (Eq. 5).

    w_f . [theta_i, phi_j] = a_i + b_j with two scalars a position, so theta and phi fold into w_f and neither map is
    built (phi's is where it is pooled after phi: the largest of a sum is not the sum of the largest).
    """

    name = "concatenation"

    def layers(self) -> dict[str, nn.Module]:
        return super().layers() | {"w_f": nn.Linear(2 * self.inner_channels, 1, bias=False)}

    def reset_parameters(self, block: Any) -> None:
        """Biases with which f starts as relu(a_i + b_j + 2), positive for most pairs: y is at first the mean of g.

        With zero biases y_i is at first a_i times a sum that hardly differs between samples, and the norm after W_z
        gives this local part nearly all the variance; where a_i + b_j < 0, f is zero, and so is its gradient. On the
        cued digits some seeds then stayed at the majority vote.
        """
        with torch.no_grad():
            w = block.w_f.weight[0]
            for layer, part in zip((block.theta, block.phi), w.chunk(2), strict=True):
                layer.bias.copy_(2 * part / w.square().sum())

    def query(self, block: Any, x: Tensor) -> Tensor:
        return _fold(block.theta, x, block.w_f.weight[:, : self.inner_channels])

    def key(self, block: Any, x: Tensor, pool: Pool | None) -> Tensor:
        w_key = block.w_f.weight[:, self.inner_channels :]
        return nn.functional.linear(pool(block.phi(x)), w_key) if pool else _fold(block.phi, x, w_key)

    def embedding_multiply_adds(self, n: int, m: int, pooled_after: bool) -> int:
        keys = self.inner_channels * (self.channels * n + m) if pooled_after else self.channels * m
        return self.channels * n + keys

    @property
    def width(self) -> int:
        return 1


def _fold(layer: nn.Linear, x: Tensor, w: Tensor) -> Tensor:
    """w . layer(x), (B, *S, C) -> (B, *S, 1), without layer(x)."""
    return linear(x, w @ layer.weight, w @ layer.bias)


PAIRWISE: dict[str, type[_Exact]] = {f.name: f for f in (Gaussian, EmbeddedGaussian, DotProduct, Concatenation)}
