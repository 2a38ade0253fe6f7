"""The oracles of the tests in nn: Eq. 1, the whole block, a meter of memory. Nothing here calls the code under test."""

import itertools
import math

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PAIRWISE = ("gaussian", "embedded_gaussian", "dot_product", "concatenation")
SOFTMAX = PAIRWISE[:2]


def row(pairwise, query, keys, weight=None, scale=1.0):
    """f(x_i, x_j) / C(x) of one query and a list of its keys, Eq. 1 to 5, as a list of floats."""
    if not keys:
        return []
    if pairwise == "concatenation":
        return [max(float(np.dot(weight, np.concatenate([query, key]))), 0.0) / len(keys) for key in keys]
    logits = [scale * float(np.dot(query, key)) for key in keys]
    if pairwise == "dot_product":
        return [logit / len(keys) for logit in logits]
    f = [math.exp(logit - max(logits)) for logit in logits]
    return [f_ij / sum(f) for f_ij in f]


def double_sum(pairwise, query, key, value, mask=None, weight=None, scale=1.0):
    """Eq. 1 by three loops: query (B, N, D), key (B, M, D), value (B, M, V), mask (B, M) -> (B, N, V)."""
    query, key, value = (t.detach().double().numpy() for t in (query, key, value))
    weight = np.ones(2 * query.shape[2]) if weight is None else weight.detach().double().numpy()
    y = np.zeros((*query.shape[:2], value.shape[2]))
    for b, i in np.ndindex(*query.shape[:2]):
        valid = [j for j in range(key.shape[1]) if mask is None or mask[b, j]]
        f_over_c = row(pairwise, query[b, i], [key[b, j] for j in valid], weight, scale)
        for f, j in zip(f_over_c, valid, strict=True):
            y[b, i] += f * value[b, j]
    return torch.from_numpy(y)


def tensors(pairwise, b=2, n=5, m=7, d=3, v=2, masked=False, seed=0, dtype=torch.float64):
    """Random arguments of `nonlocal_operation`: (query, key, value) and the keyword arguments mask and weight."""
    generator = torch.Generator().manual_seed(seed)
    sizes = ((b, n, d), (b, m, d), (b, m, v))
    args = [torch.randn(*size, generator=generator, dtype=dtype) for size in sizes]
    weight = torch.randn(2 * d, generator=generator, dtype=dtype) if pairwise == "concatenation" else None
    mask = torch.rand(b, m, generator=generator) < 0.6 if masked else None
    return args, {"mask": mask, "weight": weight}


class BlockOracle:
    """The whole block in float64 from the tensors of its state dict: Eq. 1, Eq. 6 and the subsampling of Sec. 3.3.

    Works position by position on x (B, C, *S). A pooled key stands for a cell of `pool` positions: it counts where the
    cell holds a valid position and lies wholly inside the sample (up to its last valid position along each axis).
    """

    def __init__(self, state, pairwise, *, scale=1.0, pool=None, pool_position="input", window=None, norm="batch"):
        self.state = {name: t.detach().double().numpy() for name, t in state.items()}
        self.pairwise, self.scale, self.pool, self.pool_position = pairwise, scale, pool, pool_position
        self.window, self.norm = window, norm

    def linear(self, name, x):
        return np.einsum("oc,...c->...o", self.state[f"{name}.weight"], x) + self.state[f"{name}.bias"]

    def embed(self, name, x):
        return x if self.pairwise == "gaussian" and name != "g" else self.linear(name, x)

    def keys(self, x, valid):
        """{cell: (key, value)} of one sample x (*S, C) with valid (*S)."""
        size = valid.shape
        pool = (self.pool or 1,) * len(size) if isinstance(self.pool or 1, int) else tuple(k or 1 for k in self.pool)
        extent = [1 + max((p[a] for p in np.argwhere(valid)), default=-1) for a in range(len(size))]
        keys = {}
        for cell in np.ndindex(*(e // k for e, k in zip(extent, pool, strict=True))):
            spans = [range(c * k, (c + 1) * k) for c, k in zip(cell, pool, strict=True)]
            members = [x[p] for p in itertools.product(*spans) if valid[p]]
            if members and self.pool_position == "input":
                pooled = np.max(members, axis=0)
                keys[cell] = self.embed("phi", pooled), self.embed("g", pooled)
            elif members:
                keys[cell] = tuple(np.max([self.embed(name, p) for p in members], axis=0) for name in ("phi", "g"))
        return keys, pool

    def window_of(self, position, size, pool):
        windows = (self.window,) * len(size) if not isinstance(self.window, tuple) else self.window
        axes = zip(position, size, windows, pool, strict=True)
        return tuple(0 if w is None or w == s else p // (w // k) for p, s, w, k in axes)

    def maps(self, x, mask=None):
        """Per sample, {query position: {cell: f / C}} and the values of the cells."""
        x = np.moveaxis(x.detach().double().numpy(), 1, -1)
        mask = np.ones(x.shape[:-1], bool) if mask is None else mask.numpy()
        weight = self.state["w_f.weight"][0] if self.pairwise == "concatenation" else None
        for sample, valid in zip(x, mask, strict=True):
            keys, pool = self.keys(sample, valid)
            rows = {}
            for i in np.ndindex(*valid.shape):
                home = self.window_of(i, valid.shape, (1,) * valid.ndim)
                seen = [cell for cell in keys if self.window_of(cell, valid.shape, pool) == home]
                query = self.embed("theta", np.where(valid[i], sample[i], 0.0))
                f = row(self.pairwise, query, [keys[cell][0] for cell in seen], weight, self.scale)
                rows[i] = dict(zip(seen, f, strict=True))
            yield rows, {cell: value for cell, (_, value) in keys.items()}

    def y(self, x, mask=None):
        """Eq. 1: (B, *S, V)."""
        out = np.zeros((x.shape[0], *x.shape[2:], len(self.state["g.bias"])))
        for b, (rows, values) in enumerate(self.maps(x, mask)):
            for i, f_over_c in rows.items():
                for cell, f in f_over_c.items():
                    out[(b, *i)] += f * values[cell]
        return out

    def normalise(self, u, training):
        """u (P, C), the valid positions of the batch."""
        if self.norm == "none" or not len(u):
            return u
        if self.norm == "group":  # of one sample
            groups = u.reshape(len(u), math.gcd(32, u.shape[1]), -1)
            mean, variance = groups.mean((0, 2), keepdims=True), groups.var((0, 2), keepdims=True)
            mean, variance = (np.broadcast_to(t, groups.shape).reshape(u.shape) for t in (mean, variance))
        elif self.norm == "layer":
            mean, variance = u.mean(1, keepdims=True), u.var(1, keepdims=True)
        elif training:
            mean, variance = u.mean(0), u.var(0)
        else:
            mean, variance = self.state["norm.running_mean"], self.state["norm.running_var"]
        return (u - mean) / np.sqrt(variance + 1e-5) * self.state["norm.weight"] + self.state["norm.bias"]

    def __call__(self, x, mask=None, training=False):
        """Eq. 6: (B, C, *S) -> (B, C, *S); padding is given back as it is."""
        valid = np.ones((x.shape[0], *x.shape[2:]), bool) if mask is None else mask.numpy()
        z = np.moveaxis(x.detach().double().numpy(), 1, -1).copy()
        u = self.linear("out", self.y(x, mask))
        parts = range(len(x)) if self.norm == "group" else [slice(None)]
        for part in parts:
            z[part][valid[part]] += self.normalise(u[part][valid[part]], training)
        return torch.from_numpy(np.moveaxis(z, -1, 1))


def randomise(block, seed=0):
    """Random values in every parameter and running statistic, so that no part of the block is at rest."""
    generator = torch.Generator().manual_seed(seed)
    for name, t in block.state_dict().items():
        if name.endswith("running_var"):
            t.copy_(0.5 + torch.rand(t.shape, generator=generator))
        elif t.is_floating_point():
            fan_in = t.shape[1] if t.ndim == 2 else 4
            t.copy_(torch.randn(t.shape, generator=generator) / math.sqrt(fan_in))
    return block


class Memory:
    """What the CPU allocator gave out inside the `with`, also inside kernels: bytes at the `peak`, the `largest`."""

    def __enter__(self):
        self.profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self.profile.__enter__()
        return self

    def __exit__(self, *error):
        self.profile.__exit__(*error)
        events = [e for e in self.profile.profiler.kineto_results.events() if e.name() == "[memory]"]
        sizes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
        self.peak = max(itertools.accumulate(sizes), default=0)
        self.largest = max(sizes, default=0)


class Operations(TorchDispatchMode):
    """The names of the aten operators that ran, in order, and how many elements they returned together."""

    def __init__(self):
        super().__init__()
        self.names, self.elements, self.largest = [], 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.names.append(func._schema.name.removeprefix("aten::"))
        if not func.is_view:
            sizes = [t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
            self.elements += sum(sizes)
            self.largest = max([self.largest, *sizes])
        return out
