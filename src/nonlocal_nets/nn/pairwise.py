"""The pairwise functions f of Eq. 1 as parts of a block: what they learn, and how x becomes queries and keys.

A function of your own is a subclass of `Pairwise`, in any module; `functional` has the arithmetic of the paper's four.
"""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nonlocal_nets.nn import functional
from nonlocal_nets.nn.messages import did_you_mean, shorten
from nonlocal_nets.nn.pointwise import Pointwise, linear

Pool = Callable[[Tensor], Tensor]


class Pairwise:
    """A pairwise function f(x_i, x_j) with its normalisation C(x). Subclass it to write your own.

    Only `weights` is required: it returns f / C(x) for queries and keys. Derive from `Embedded` if f compares
    theta(x_i) with phi(x_j), from `Pairwise` if it compares x_i with x_j. For example, the Gaussian of a Euclidean
    distance (Sec. 3.2), f = exp(-||theta(x_i) - phi(x_j)||^2) with C = sum_j f, is

        class Distance(Embedded):
            def weights(self, query, key, mask):
                return functional.softmax(-torch.cdist(query, key).square(), mask)

    `functional.softmax` is f / C for f = exp(...) and C = sum_j f; `functional.divide_by_count` is f / C where C is the
    number of keys. Both take care of the mask. Name the class itself or its import path:

        NonLocalBlock(64, pairwise=Distance)
        NonLocalBlock(64, pairwise="mypackage.mymodule.Distance")   # in yaml and on the command line, the same string

    Override `operation` if y can be computed without the (B, N, M) map, `layers` if f learns something else.

    The object holds no tensors: the layers in `layers` become children of the block, whose parameters are thus named
    theta, phi, g, out and norm, and methods that need them get the block as an argument.

    Shapes: x (B, *S, C), queries (B, *S, D) and keys (B, *S', D); with flattened positions (B, N, D) and (B, M, D).
    x may be a channels-first tensor whose axes were moved, which `Pointwise` reads without a copy: use `.flatten`, not
    `.view`.
    """

    def __init__(self, channels: int, inner_channels: int, scale: bool = False) -> None:
        if scale:
            raise ValueError(f"scale is for pairwise='embedded_gaussian' only, got {type(self).__name__}")
        self.channels, self.inner_channels = channels, inner_channels

    def layers(self) -> dict[str, nn.Module]:
        """The layers that f learns, with their names in the block."""
        return {}

    def reset_parameters(self, block: Any) -> None:
        """Initialise the layers for which He initialisation, which the block has done before, does not suit."""

    def query(self, block: Any, x: Tensor) -> Tensor:
        """(B, *S, C) -> (B, *S, D)."""
        return x

    def key(self, block: Any, x: Tensor, pool: Pool | None) -> Tensor:
        """(B, *S, C) -> (B, *S', D). `pool` subsamples the embedded keys; None: there is nothing left to subsample."""
        return pool(x) if pool else x

    def weights(self, query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
        """f / C(x): (B, N, M), zero where mask, bool (B, M) or (B, N, M), is False. Every subclass must define it."""
        raise TypeError(f"{type(self).__name__} does not define weights(query, key, mask)")

    def operation(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """y of Eq. 1: (B, N, V), for values g(x_j) (B, M, V)."""
        weights = self.weights(query, key, mask)
        return weights @ value.to(weights.dtype)

    def embedding_multiply_adds(self, n: int, m: int, pooled_after: bool) -> int:
        """Multiply-adds of `query` and `key` per sample, for n queries and m keys.

        pooled_after: the keys are pooled from n to m after their embedding.
        """
        return 0

    def multiply_adds(self, n: int, m: int) -> int:
        """Multiply-adds of `operation` per sample."""
        return n * m * (self.width + self.inner_channels)

    @property
    def width(self) -> int:
        """D, the width of queries and keys."""
        return self.inner_channels


class Embedded(Pairwise):
    """A base for functions of theta(x_i) and phi(x_j), which it learns."""

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
    """A function of the paper: `functional` knows it by name, and computes it without the map where that is faster."""

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

    w_f . [theta_i, phi_j] = a_i + b_j with one scalar a_i and one b_j per position. So theta and phi are folded into
    w_f, and neither is computed, except phi where it is pooled: the maximum of a sum is not the sum of the maxima.
    """

    name = "concatenation"

    def layers(self) -> dict[str, nn.Module]:
        return super().layers() | {"w_f": nn.Linear(2 * self.inner_channels, 1, bias=False)}

    def reset_parameters(self, block: Any) -> None:
        """Biases with which f starts as relu(a_i + b_j + 2), positive for most pairs: y is at first the mean of g.

        With zero biases, y_i is at first a_i times a sum that hardly differs between samples, and the norm after W_z
        gives this local part nearly all the variance. Besides, f and its gradient are zero where a_i + b_j < 0. On the
        cued digits, some seeds then never got beyond the majority vote.
        """
        with torch.no_grad():
            w = block.w_f.weight[0]
            for layer, part in zip((block.theta, block.phi), w.chunk(2), strict=True):
                layer.bias.copy_(2 * part / w.square().sum())

    def query(self, block: Any, x: Tensor) -> Tensor:
        return _fold(block.theta, x, block.w_f.weight[:, : self.inner_channels])

    def key(self, block: Any, x: Tensor, pool: Pool | None) -> Tensor:
        w_key = block.w_f.weight[:, self.inner_channels :]
        return linear(pool(block.phi(x)), w_key) if pool else _fold(block.phi, x, w_key)

    def embedding_multiply_adds(self, n: int, m: int, pooled_after: bool) -> int:
        keys = self.inner_channels * (self.channels * n + m) if pooled_after else self.channels * m
        return self.channels * n + keys

    @property
    def width(self) -> int:
        return 1


def _fold(layer: nn.Linear, x: Tensor, w: Tensor) -> Tensor:
    """w . layer(x), (B, *S, C) -> (B, *S, 1), without computing layer(x)."""
    return linear(x, w @ layer.weight, w @ layer.bias)


PAIRWISE: dict[str, type[_Exact]] = {f.name: f for f in (Gaussian, EmbeddedGaussian, DotProduct, Concatenation)}


def resolve_pairwise(pairwise: str | type[Pairwise]) -> type[Pairwise]:
    """The class of a pairwise function.

    Args:
        pairwise: a name in `PAIRWISE`, the import path of a subclass of `Pairwise`, such as "package.module.Distance",
            or the subclass itself.

    Raises:
        ValueError: an unknown name, a path that cannot be imported, or something that is no subclass of `Pairwise`.
    """
    if isinstance(pairwise, str) and pairwise in PAIRWISE:
        return PAIRWISE[pairwise]
    found: object = _import(pairwise) if isinstance(pairwise, str) else pairwise
    if not (isinstance(found, type) and issubclass(found, Pairwise)):
        raise ValueError(f"pairwise must be a subclass of nonlocal_nets.Pairwise, got {shorten(repr(pairwise))}")
    return found


def _import(path: str) -> object:
    """The object at an import path."""
    given, (module_name, _, name) = shorten(repr(path)), path.rpartition(".")
    if not module_name:
        raise ValueError(
            f"pairwise must be one of {', '.join(PAIRWISE)}, or the path of a class such as package.module.Class, "
            f"got {given}{did_you_mean(path, PAIRWISE)}"
        )
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever a user's module raises
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            looked = "Python looks in the current folder, on PYTHONPATH and in installed packages"
            raise ValueError(f"pairwise {given}: no module {shorten(repr(error.name))}; {looked}") from error
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise ValueError(f"pairwise {given}: its module cannot be imported: {shorten(reason)}") from error
    if not hasattr(module, name):
        classes = [
            key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, Pairwise)
        ]
        hint = did_you_mean(name, classes)
        raise ValueError(f"pairwise {given}: module {shorten(module_name)} has no {shorten(repr(name), 40)}{hint}")
    return getattr(module, name)
