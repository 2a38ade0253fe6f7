"""Eq. 1 of the paper as functions of tensors, exact: y_i = 1 / C(x) * sum_j f(x_i, x_j) g(x_j).

Shape suffixes: B batch, N query positions, M key positions, D width of queries and keys, V width of values.

| pairwise function | f(x_i, x_j)            | C(x)    | exact forms without the N x M map                             |
|-------------------|------------------------|---------|---------------------------------------------------------------|
| gaussian          | exp(q_i . k_j)         | sum_j f | "fused": torch's attention kernel; "tiled": plain products,   |
| embedded_gaussian | exp(q_i . k_j)         | sum_j f | a tile of the map at a time                                   |
| dot_product       | q_i . k_j              | M       | "associative": q (k^T v) / M                                  |
| concatenation     | relu(w_f . [q_i, k_j]) | M       | "sorted": relu(a_i + b_j) is linear on each side of its kink  |

Every function also has the form "materialised", which builds the map and is faster where the map is small. For the
softmax functions, "rows" builds it a block of rows at a time and keeps it for the backward pass only. With a mask, sums
run over the valid keys and M is their number. Sums run in float32 or wider, whatever the inputs. Gradients can be
differentiated again, by plain operations on the whole map (`higher_order.py`).

`forms.py` has each function's forms and says which one is the fastest. `reference`, below, is the equation as written.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor

from nonlocal_nets.nn.forms import FUNCTIONS, Function, Sizes, divide_by_count, softmax
from nonlocal_nets.nn.higher_order import differentiable_again, is_transformed

__all__ = [
    "FORMS",
    "autocast",
    "choose_form",
    "divide_by_count",
    "multiply_adds",
    "nonlocal_operation",
    "reference",
    "softmax",
    "weights",
]

FORMS = {name: tuple(function.forms) for name, function in FUNCTIONS.items()}


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
    """The non-local operation, Eq. 1, in the fastest exact form.

    Args:
        pairwise: "gaussian", "embedded_gaussian", "dot_product" or "concatenation".
        query: (B, N, D): x_i for the Gaussian, theta(x_i) for the others.
        key: (B, M, D): x_j or phi(x_j). If it is the same object as `query`, half of a softmax's map may be enough.
        value: (B, M, V): g(x_j).
        mask: bool (B, M), True at valid keys. A sample without any valid key gives y = 0.
        scale: factor on the logits of the two softmax functions; the paper has 1, the released code D ** -0.5.
        weight: (2 D,), w_f of the concatenation. With D = 1 it may be left out, which means ones: f = relu(a_i + b_j)
            for queries a and keys b.
        form: one of `FORMS[pairwise]`; None: the one that `choose_form` returns.

    Returns:
        (B, N, V), in value's dtype from "fused", else in float32 or wider.

    Raises:
        ValueError: an unknown function or form, or shapes that do not fit.
    """
    function = _check(pairwise, query, key, value, mask, scale, weight)
    if form is None and (is_transformed() or torch._C._get_tracing_state()):
        form = function.plain
    elif form is None:
        sizes = query.shape[1], key.shape[1], key.shape[2], value.shape[2], query.shape[0]
        form = choose_form(pairwise, *sizes, value, key is query and mask is None)
    if form not in function.forms:
        raise ValueError(f"form of {pairwise} must be one of {', '.join(function.forms)}, got {form!r}")
    if mask is not None:  # a zero value adds nothing to any sum, and keeps NaN in the padding out of it
        key, value = key.masked_fill(~mask[..., None], 0), value.masked_fill(~mask[..., None], 0)
    run = function.forms[form]
    plain = partial(_plain, function, mask=mask, scale=scale)
    if form == "fused":  # sums in float32 by itself
        return differentiable_again(run(query, key, value, mask, scale), plain, query, key, value)
    with autocast(query.device.type, enabled=False):
        wide = _wide(query)
        query, key = function.fold(wide, wide if key is query else _wide(key), weight)
        value = _wide(value)
        y = run(query, key, value, mask, scale)
        return y if form in ("materialised", function.plain) else differentiable_again(y, plain, query, key, value)


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

    Arguments as in `nonlocal_operation`; `mask` may also be (B, N, M), with valid keys for each query.
    """
    function = FUNCTIONS[pairwise]
    with autocast(query.device.type, enabled=False):
        return function.weights(*function.fold(_wide(query), _wide(key), weight), mask, scale)


def choose_form(
    pairwise: str, n: int, m: int, d: int, v: int, batch: int = 1, like: Tensor | None = None, symmetric: bool = False
) -> str:
    """The fastest exact form, by the thresholds in `forms.py`; in an export, one that holds for any n and m.

    On a GPU, and in half precision, where the thresholds were not measured, a softmax gets torch's kernel.

    Args:
        pairwise: as in `nonlocal_operation`.
        n: number of queries.
        m: number of keys.
        d: width of queries and keys.
        v: width of values.
        batch: number of samples.
        like: a tensor with the device, the dtype and the requires_grad of the values; default float32 on a CPU, with a
            gradient.
        symmetric: the keys are the queries, without a mask.
    """
    return FUNCTIONS[pairwise].choose(Sizes(n, m, d, v, batch, like, symmetric))


def multiply_adds(pairwise: str, n: int, m: int, d: int, v: int) -> int:
    """Multiply-adds per sample of the form that `choose_form` returns (sorting and exponentials are not counted)."""
    return FUNCTIONS[pairwise].multiply_adds(choose_form(pairwise, n, m, d, v), n, m, d, v)


def autocast(device: str, enabled: bool) -> AbstractContextManager[object]:
    """`torch.autocast`, which does not know the meta device: tensors there have no values, and nothing is cast."""
    return nullcontext() if device == "meta" else torch.autocast(device, enabled=enabled)


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
    """Eq. 1 as written, one pair (i, j) at a time: slow, differentiable, and independent of the forms that it checks.

    Arguments and shapes as in `nonlocal_operation`. Exponents are shifted by the largest, which cancels in f / C.
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


def _plain(function: Function, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Eq. 1 by operations that torch can differentiate again and again, in float32 or wider."""
    with autocast(query.device.type, enabled=False):
        return function.forms[function.plain](_wide(query), _wide(key), _wide(value), mask, scale)


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
) -> Function:
    """The function of that name, or an error about what does not fit it."""
    if pairwise not in FUNCTIONS:
        raise ValueError(f"pairwise must be one of {', '.join(FUNCTIONS)}, got {pairwise!r}")
    function = FUNCTIONS[pairwise]
    shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
    if not query.ndim == key.ndim == value.ndim == 3:
        raise ValueError(f"query, key and value must be (B, N, D), (B, M, D) and (B, M, V), got {shapes}")
    if not (query.shape[0], query.shape[2], key.shape[1]) == (key.shape[0], key.shape[2], value.shape[1]):
        raise ValueError(f"query (B, N, D), key (B, M, D) and value (B, M, V) do not fit together: {shapes}")
    if value.shape[0] != key.shape[0]:
        raise ValueError(f"key and value differ in batch size: {shapes}")
    if mask is not None and (mask.dtype != torch.bool or mask.shape != key.shape[:2]):
        raise ValueError(f"mask must be bool {tuple(key.shape[:2])}, got {mask.dtype} {tuple(mask.shape)}")
    if scale != 1.0 and not function.has_scale:
        raise ValueError(f"scale is for the softmax functions, not for {pairwise}; got {scale}")
    if weight is not None and not function.has_weight:
        raise ValueError(f"weight is w_f of the concatenation; {pairwise} has none")
    width = query.shape[2]
    if function.has_weight and not (width == 1 if weight is None else weight.shape == (2 * width,)):
        given = "none" if weight is None else str(tuple(weight.shape))
        raise ValueError(f"weight must be ({2 * width},) for queries of width {width}, got {given}")
    return function
