"""Eq. 1 of the paper as functions of tensors, exact: y_i = 1 / C(x) * sum_j f(x_i, x_j) g(x_j).

Shape suffixes: B batch, N query positions, M key positions, D width of queries and keys, V width of values.

| pairwise function | f(x_i, x_j)            | C(x)    | the exact form that never builds the N x M map             |
|-------------------|------------------------|---------|------------------------------------------------------------|
| gaussian          | exp(q_i . k_j)         | sum_j f | "fused" or "tiled": f / C is a softmax, a tile at a time   |
| embedded_gaussian | exp(q_i . k_j)         | sum_j f | "fused" (torch's kernel) or "tiled" (plain products)       |
| dot_product       | q_i . k_j              | M       | "associative": q (k^T v) / M                               |
| concatenation     | relu(w_f . [q_i, k_j]) | M       | "sorted": relu(a_i + b_j) is linear on each side of a kink |

All four also have the form "materialised", which builds the map and is the faster one where the map is small; for the
softmax functions "rows" builds it some rows at a time and keeps it for backward only. With a mask, sums run over the
valid keys and M is their number. Sums run in float32 or wider, whatever the inputs.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from nonlocal_nets.nn.softmax_by_rows import softmax_by_rows
from nonlocal_nets.nn.sorted_sum import sorted_sum
from nonlocal_nets.nn.tiled_softmax import TILE, tiled_softmax

FORMS = {
    "gaussian": ("fused", "tiled", "rows", "materialised"),
    "embedded_gaussian": ("fused", "tiled", "rows", "materialised"),
    "dot_product": ("associative", "materialised"),
    "concatenation": ("sorted", "materialised"),
}

KEPT = 40_000_000  # entries of the largest map kept for a softmax's backward: 160 MB; 0 to save memory, not time

C_IS_A_SUM = {"gaussian": True, "embedded_gaussian": True, "dot_product": False, "concatenation": False}


def nonlocal_operation(
    pairwise: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None = None,
    scale: float = 1.0,
    weight: Tensor | None = None,
    form: str | None = None,
) -> Tensor:
    """The non-local operation, Eq. 1, in the cheapest exact form.

    Args:
        pairwise: "gaussian", "embedded_gaussian", "dot_product" or "concatenation".
        query: (B, N, D): x_i for the Gaussian, theta(x_i) for the others.
        key: (B, M, D): x_j or phi(x_j). Where it is `query` itself, only half of a softmax's map may be computed.
        value: (B, M, V): g(x_j).
        mask: bool (B, M), True where a key counts. A sample without any valid key gives y = 0.
        scale: factor on the logits of the two softmax functions; the paper has 1, the released code D ** -0.5.
        weight: (2 D,), w_f of the concatenation; with D = 1 it may be left out and stands for ones, so that
            f = relu(a_i + b_j) of queries a and keys b.
        form: one of `FORMS[pairwise]`; None takes the cheaper by `choose_form`.

    Returns:
        (B, N, V), in value's dtype from "fused", else in float32 or wider.

    Raises:
        ValueError: an unknown function or form, or shapes that do not fit.
    """
    _check(pairwise, query, key, value, mask, scale, weight)
    if form is None:
        sizes = query.shape[1], key.shape[1], key.shape[2], value.shape[2], query.shape[0]
        form = choose_form(pairwise, *sizes, value, key is query and mask is None)
    if form not in FORMS[pairwise]:
        raise ValueError(f"form {form!r} is not one of {pairwise}'s: {', '.join(FORMS[pairwise])}")
    if mask is not None:  # a zero value adds nothing to any sum, and stops whatever stands in the padding
        key, value = key.masked_fill(~mask[..., None], 0), value.masked_fill(~mask[..., None], 0)
    if form == "fused":
        return _fused(query, key, value, mask, scale)
    with autocast(query.device.type, enabled=False):
        wide = _wide(query)
        query, key, value = wide, wide if key is query else _wide(key), _wide(value)
        if form == "tiled":
            return tiled_softmax(query, key, value, mask, scale)
        if form == "rows":
            return softmax_by_rows(query, key, value, mask, scale)
        if C_IS_A_SUM[pairwise]:
            return weights(pairwise, query, key, mask=mask, scale=scale) @ value
        # C is the number of keys: it divides what is smallest, instead of the map or y
        count = key.shape[1] if mask is None else mask.sum(1)[:, None, None].clamp(min=1)
        if form == "associative":
            return query @ (key.transpose(1, 2) @ value / count)
        if form == "sorted":
            return sorted_sum(*_fold(query, key, weight), value / count)
        return _f(pairwise, query, key, weight) @ (value / count)


def weights(
    pairwise: str,
    query: Tensor,
    key: Tensor,
    *,
    mask: Tensor | None = None,
    scale: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    """The map f(x_i, x_j) / C(x): (B, N, M), in float32 or wider, zero at masked keys.

    Arguments as in `nonlocal_operation`; `mask` may also be (B, N, M), with keys of its own for each query.
    """
    with autocast(query.device.type, enabled=False):
        f_BNM = _f(pairwise, _wide(query), _wide(key), weight)
        return softmax(f_BNM * scale, mask) if C_IS_A_SUM[pairwise] else divide_by_count(f_BNM, mask)


def autocast(device: str, enabled: bool) -> AbstractContextManager[object]:
    """`torch.autocast`, which does not know the meta device: where tensors have no values, nothing is cast."""
    return nullcontext() if device == "meta" else torch.autocast(device, enabled=enabled)


def softmax(logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """exp(logits) / sum_j exp(logits), (B, N, M), over the keys that mask, bool (B, M) or (B, N, M), lets in.

    A row without any key is zero, and free of NaN in its gradient too.
    """
    if mask is None:
        return logits.softmax(-1)
    out = ~(mask[:, None] if mask.ndim == 2 else mask)
    return logits.masked_fill(out, torch.finfo(logits.dtype).min).softmax(-1).masked_fill(out, 0)


def divide_by_count(f: Tensor, mask: Tensor | None = None) -> Tensor:
    """f / M, (B, N, M), M the number of keys; with a mask as in `softmax`, of those that it lets in."""
    if mask is None:
        return f / f.shape[2]
    mask = mask[:, None] if mask.ndim == 2 else mask
    return f.masked_fill(~mask, 0) / mask.sum(-1, keepdim=True).clamp(min=1)


def reference(
    pairwise: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None = None,
    scale: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Eq. 1 as it is written, one pair (i, j) after the other: slow, and the oracle of every test.

    Arguments and shapes as in `nonlocal_operation`. Exponents are shifted by their largest, which f / C does not see.
    """
    _check(pairwise, query, key, value, mask, scale, weight)
    if weight is None:
        weight = query.new_ones(2)
    y = query.new_zeros(*query.shape[:2], value.shape[2])
    for b in range(len(query)):
        valid = [j for j in range(key.shape[1]) if mask is None or mask[b, j]]
        for i in range(query.shape[1] if valid else 0):
            if pairwise == "concatenation":
                f = [torch.relu(weight @ torch.cat([query[b, i], key[b, j]])) for j in valid]
            else:
                f = [query[b, i] @ key[b, j] for j in valid]
            c: Tensor | int = len(valid)
            if pairwise in ("gaussian", "embedded_gaussian"):
                largest = max(f)
                f = [torch.exp(scale * (logit - largest)) for logit in f]
                c = torch.stack(f).sum()
            for f_ij, j in zip(f, valid, strict=True):
                y[b, i] = y[b, i] + f_ij * value[b, j] / c
    return y


def choose_form(
    pairwise: str, n: int, m: int, d: int, v: int, batch: int = 1, like: Tensor | None = None, symmetric: bool = False
) -> str:
    """The cheapest exact form for n queries, m keys, and widths d and v, of tensors of the device and dtype of `like`;
    symmetric: the keys are the queries, without a mask.

    In an export, one that holds for any n and m: sizes are symbols there, and the sorted form has its own backward.
    By multiply-adds for the dot product. The other constants are where two forms took the same time in float32 on two
    cores of an EPYC (`python -m benchmarks choice`), for the concatenation of a Xeon too. Nothing of it was measured on
    a GPU: there, and in half precision, a softmax is left to the kernel that torch picks.
    """
    if torch.compiler.is_exporting():
        return "materialised" if pairwise == "concatenation" else FORMS[pairwise][0]
    if pairwise == "dot_product":
        return "associative" if n * m * (d + v) > (n + m) * d * v else "materialised"
    if pairwise == "concatenation":
        return "sorted" if n * m > 250 * (n + m) else "materialised"
    if like is not None and (like.device.type != "cpu" or like.dtype not in (torch.float32, torch.float64)):
        return "fused"
    gradient, padded = like is None or like.requires_grad, d != v  # torch's kernel pads a value narrower than the keys
    size, wide = batch * n * m, padded and max(d, v) > 128
    if torch.compiler.is_compiling():  # it would unroll the loops over tiles and rows
        return "materialised" if size <= 2 * TILE else "fused"
    if symmetric and n * m > TILE and (gradient or wide):  # with one tile there is no mirror image
        return "tiled"
    rows = n * m > TILE / 4
    if gradient:  # with the map kept, backward takes one product of five less
        most = KEPT if padded else min(KEPT, (d + v) * 2 ** (17 if rows else 14))
    elif padded:
        most = batch * n * 2**13
    else:
        most = 10_000_000 if d > 511 else 0
    if size <= most:
        return "rows" if rows else "materialised"
    return "tiled" if wide else "fused"


def multiply_adds(pairwise: str, n: int, m: int, d: int, v: int) -> int:
    """Multiply-adds of the form that `choose_form` takes, per sample (sorting and exponentials not counted)."""
    return {"associative": (n + m) * d * v, "sorted": (n + m) * (d + v)}.get(
        choose_form(pairwise, n, m, d, v), n * m * (d + v)
    )


def _fused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """softmax(scale q k^T) v. The tiled CPU kernel wants equal widths and a contiguous last dimension: without either,
    scaled_dot_product_attention silently builds the N x M map. Zeros added to q and k do not change their product."""
    v = value.shape[2]
    width = max(query.shape[2], v)
    q, k, g = (_widen(t, width).contiguous()[:, None] for t in (query, key, value))
    if mask is not None:  # where no key is valid all are let in: their values are zero, so y is, without a NaN
        mask = (mask | ~mask.any(1, keepdim=True))[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, g, attn_mask=mask, scale=scale)[:, 0, :, :v]


def _widen(t: Tensor, width: int) -> Tensor:
    """With zeros at the end of the last dimension; the tensor itself where nothing is missing (F.pad would copy it)."""
    return F.pad(t, (0, width - t.shape[2])) if t.shape[2] < width else t


def _f(pairwise: str, query: Tensor, key: Tensor, weight: Tensor | None) -> Tensor:
    """The map without its C: f of the dot product and of the concatenation, the logits of the others; (B, N, M)."""
    if pairwise == "concatenation":
        a_BN, b_BM = _fold(query, key, weight)
        return torch.relu(a_BN[:, :, None] + b_BM[:, None, :])
    return torch.bmm(query, key.transpose(1, 2))


def _fold(query: Tensor, key: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """a (B, N) and b (B, M) with w_f . [q_i, k_j] = a_i + b_j."""
    if weight is None:
        return query[..., 0], key[..., 0]
    w_query, w_key = weight.to(query.dtype).chunk(2)
    return query @ w_query, key @ w_key


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _check(
    pairwise: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    weight: Tensor | None,
) -> None:
    if pairwise not in FORMS:
        raise ValueError(f"pairwise {pairwise!r} is not one of {', '.join(FORMS)}")
    shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
    if not query.ndim == key.ndim == value.ndim == 3:
        raise ValueError(f"query, key and value must be (B, N, D), (B, M, D) and (B, M, V), got {shapes}")
    if not (query.shape[0], query.shape[2], key.shape[1]) == (key.shape[0], key.shape[2], value.shape[1]):
        raise ValueError(f"query (B, N, D), key (B, M, D) and value (B, M, V) do not fit together: {shapes}")
    if value.shape[0] != key.shape[0]:
        raise ValueError(f"key and value differ in the batch size: {shapes}")
    if mask is not None and (mask.dtype != torch.bool or mask.shape != key.shape[:2]):
        raise ValueError(f"mask must be bool {tuple(key.shape[:2])}, got {mask.dtype} {tuple(mask.shape)}")
    if scale != 1.0 and pairwise not in ("gaussian", "embedded_gaussian"):
        raise ValueError(f"scale is for the softmax functions, not for {pairwise}; got {scale}")
    if pairwise != "concatenation" and weight is not None:
        raise ValueError(f"weight is w_f of the concatenation, {pairwise} has none")
    width = query.shape[2]
    if pairwise == "concatenation" and not (width == 1 if weight is None else weight.shape == (2 * width,)):
        given = "none" if weight is None else str(tuple(weight.shape))
        raise ValueError(f"weight must be ({2 * width},) for queries of width {width}, got {given}")
