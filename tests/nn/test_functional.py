"""Eq. 1 as functions of tensors, against a numpy double sum of the tests' own (oracle.double_sum), in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from nonlocal_nets.nn import functional, tiled_softmax
from tests.nn.oracle import PAIRWISE, SOFTMAX, Memory, double_sum, tensors

pytestmark = pytest.mark.oracle
PRODUCTS = torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_  # of two dimensions, also into a given tensor
CASES = [(pairwise, form) for pairwise in PAIRWISE for form in (*functional.FORMS[pairwise], None)]


def close(a, b, atol=1e-10):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("pairwise", "form"), CASES)
@settings(max_examples=25)
@given(
    b=st.integers(1, 3),
    n=st.integers(1, 7),
    m=st.integers(1, 11),
    d=st.integers(1, 5),
    v=st.integers(1, 5),
    seed=st.integers(0, 999),
)
def test_every_form_is_the_double_sum(pairwise, form, masked, b, n, m, d, v, seed):
    args, kwargs = tensors(pairwise, b, n, m, d, v, masked, seed)
    y = functional.nonlocal_operation(pairwise, *args, **kwargs, form=form)
    assert y.dtype == torch.float64
    close(y, double_sum(pairwise, *args, **kwargs))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_reference_is_the_double_sum(pairwise, masked):
    args, kwargs = tensors(pairwise, b=3, masked=masked)
    close(functional.reference(pairwise, *args, **kwargs), double_sum(pairwise, *args, **kwargs))


@pytest.mark.parametrize("form", ["fused", "tiled", "rows", "materialised", "reference"])
@pytest.mark.parametrize("pairwise", SOFTMAX)
def test_scale_multiplies_the_logits(pairwise, form):
    args, kwargs = tensors(pairwise, masked=True)
    if form == "reference":
        y = functional.reference(pairwise, *args, **kwargs, scale=0.3)
    else:
        y = functional.nonlocal_operation(pairwise, *args, **kwargs, scale=0.3, form=form)
    close(y, double_sum(pairwise, *args, **kwargs, scale=0.3))
    assert not torch.allclose(y, double_sum(pairwise, *args, **kwargs))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_weights_are_f_over_c(pairwise, masked):
    """With g_j the j-th unit vector, y_i is the i-th row of the map."""
    (query, key, _), kwargs = tensors(pairwise, masked=masked)
    unit = torch.eye(key.shape[1], dtype=torch.float64).expand(len(key), -1, -1)
    w = functional.weights(pairwise, query, key, **kwargs)
    close(w, double_sum(pairwise, query, key, unit, **kwargs))
    if pairwise in SOFTMAX:
        close(w.sum(-1), torch.ones(query.shape[:2], dtype=torch.float64))
    if masked:
        assert (w[(~kwargs["mask"])[:, None].expand_as(w)] == 0).all()


@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_weights_with_a_mask_for_each_query(pairwise):
    (query, key, _), kwargs = tensors(pairwise)
    kwargs["mask"] = torch.rand(2, 5, 7, generator=torch.Generator().manual_seed(1)) < 0.5
    kwargs["mask"][0, 0] = False
    w = functional.weights(pairwise, query, key, **kwargs)
    assert (w[0, 0] == 0).all()
    unit = torch.eye(7, dtype=torch.float64).expand(2, -1, -1)
    for i in range(5):
        expected = double_sum(pairwise, query[:, i : i + 1], key, unit, kwargs["mask"][:, i], kwargs["weight"])
        close(w[:, i : i + 1], expected)


@pytest.mark.parametrize(("pairwise", "form"), CASES)
def test_a_sample_without_a_valid_key_gives_zero(pairwise, form):
    args, kwargs = tensors(pairwise, masked=True)
    kwargs["mask"][0], kwargs["mask"][1] = False, True
    for t in args:
        t.requires_grad_()
    y = functional.nonlocal_operation(pairwise, *args, **kwargs, form=form)
    assert (y[0] == 0).all()
    assert (y[1] != 0).any()
    y.square().sum().backward()
    assert all(torch.isfinite(t.grad).all() and (t.grad[0] == 0).all() for t in args)


@pytest.mark.parametrize(("pairwise", "form"), CASES)
def test_what_stands_in_the_padding_does_not_matter(pairwise, form):
    args, kwargs = tensors(pairwise, masked=True)
    clean = functional.nonlocal_operation(pairwise, *args, **kwargs, form=form)
    key, value = (t.masked_fill(~kwargs["mask"][..., None], float("nan")) for t in args[1:])
    assert key.isnan().any()
    assert torch.equal(functional.nonlocal_operation(pairwise, args[0], key, value, **kwargs, form=form), clean)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("pairwise", "form"), CASES)
def test_gradcheck(pairwise, form, masked):
    """The analytic gradient is the numeric one. Random logits of the concatenation do not lie on its kink."""
    args, kwargs = tensors(pairwise, n=3, m=5, masked=masked, seed=3)
    args = [t.requires_grad_() for t in args]
    if pairwise == "concatenation":
        args.append(kwargs.pop("weight").requires_grad_())

    def operation(query, key, value, *weight):
        extra = {"weight": weight[0]} if weight else {}
        return functional.nonlocal_operation(pairwise, query, key, value, **(kwargs | extra), form=form)

    assert torch.autograd.gradcheck(operation, args)


@pytest.mark.parametrize("n_and_m", [(1, 1), (1, 7), (7, 1), (11, 13)])
def test_gradcheck_of_the_sorted_form_in_scalars(n_and_m):
    n, m = n_and_m
    args, _ = tensors("dot_product", n=n, m=m, d=1, v=3, seed=5)

    def operation(*args):
        return functional.nonlocal_operation("concatenation", *args, form="sorted")

    assert torch.autograd.gradcheck(operation, [t.requires_grad_() for t in args])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_the_gradient_is_that_of_the_double_sum(pairwise, masked):
    """`reference` stands for the double sum here (it is tested above) as autograd sees through it."""
    exact, kwargs = tensors(pairwise, masked=masked, seed=7)
    weight, target = kwargs.pop("weight"), torch.randn(2, 5, 2, dtype=torch.float64)
    grads = []
    for run in (functional.reference, functional.nonlocal_operation):
        leaves = [t.clone().requires_grad_() for t in (*exact, *([weight] if weight is not None else []))]
        extra = {"weight": leaves[3]} if weight is not None else {}
        form = {} if run is functional.reference else {"form": functional.FORMS[pairwise][0]}
        y = run(pairwise, *leaves[:3], **kwargs, **extra, **form)
        grads.append(torch.autograd.grad((y * target).sum(), leaves))
    for got, expected in zip(*grads, strict=True):
        close(got, expected)


@pytest.mark.parametrize("scale", [0.5, 60.0])
@pytest.mark.parametrize("keys", ["others", "masked", "the queries"])
def test_many_tiles_are_one_map(keys, scale, monkeypatch):
    """Three tiles of rows and three of columns a sample, the last of each not full, queries wider than values."""
    monkeypatch.setattr(tiled_softmax, "TILE", 64)
    args, kwargs = tensors("gaussian", n=19 if keys == "the queries" else 20, m=19, d=4, v=3, masked=keys == "masked")
    target = torch.randn(2, args[0].shape[1], 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    results, products = [], {}
    for form in ("tiled", "rows", "materialised"):
        leaves = [t.clone().requires_grad_() for t in args]
        if keys == "the queries":
            del leaves[1]
        with MultiplyAdds() as counter:
            y = functional.nonlocal_operation("gaussian", leaves[0], *leaves[-2:], **kwargs, scale=scale, form=form)
        products[form] = counter.calls
        results.append([y, *torch.autograd.grad((y * target).sum(), leaves)])
    # of each sample two a tile, and of the queries' own six tiles three have mirror images, for which logits are there
    tiled = 6 + 9 if keys == "the queries" else 9 + 9
    assert products == {"tiled": 2 * tiled, "rows": 2 * (7 + 7), "materialised": 0}
    for got in results[:-1]:
        for mine, expected in zip(got, results[-1], strict=True):
            close(mine, expected)


@pytest.mark.parametrize("masked", [False, True])
def test_a_map_is_kept_by_rows_only_for_a_gradient(masked, monkeypatch):
    """Then once, with a block of rows beside it; without, a block of rows is all that there is."""
    monkeypatch.setattr(tiled_softmax, "TILE", 2**14)
    n, m = 512, 1024
    query, key, value = (torch.randn(1, size, 8) for size in (n, m, m))
    mask = torch.arange(m)[None] < 900 if masked else None
    with Memory() as memory:
        functional.nonlocal_operation("gaussian", query, key, value, mask=mask, form="rows")
    assert memory.largest <= 2**14 * 4
    with Memory() as memory, torch.no_grad():
        functional.nonlocal_operation("gaussian", query.requires_grad_(), key, value, mask=mask, form="rows")
    assert memory.largest <= 2**14 * 4
    with Memory() as memory:
        functional.nonlocal_operation("gaussian", query, key, value, mask=mask, form="rows").sum().backward()
    assert n * m * 4 == memory.largest < memory.peak < 1.25 * n * m * 4


def test_logits_that_overflow_downwards_weigh_nothing(monkeypatch):
    """Also where they are the whole of the first tile."""
    monkeypatch.setattr(tiled_softmax, "TILE", 64)
    (query, key, value), _ = tensors("gaussian", n=8, m=19, d=4, v=3)
    query = query.abs() * 1e10
    key[:, :7] = -1e300
    y = functional.nonlocal_operation("gaussian", query, key, value, form="tiled")
    close(y, torch.softmax(query @ key.mT, 2) @ value)


def test_keys_that_are_the_queries_take_fewer_products():
    """Of N^2 D multiply-adds with V = D / 2: 1.5 forward and 4 backward for a tile; 2 and 5 for one and its mirror
    image together. Of two by two tiles the two on the diagonal have no image: (5.5 + 5.5 + 7) / 4."""
    n, d = 1600, 64
    x, value = torch.randn(1, n, d, requires_grad=True), torch.randn(1, n, d // 2, requires_grad=True)
    counts = []
    for keys in (x.clone(), x):
        with MultiplyAdds() as counter:
            functional.nonlocal_operation("gaussian", x, keys, value, form="tiled").sum().backward()
        counts.append(counter.total / (n * n * d))
    assert counts == pytest.approx([5.5, 4.5], rel=0.02)


@pytest.fixture(name="denormals")
def _keep_denormals():
    flushed = bool(torch.tensor(1e-39) * 1 == 0)
    torch.set_flush_denormal(False)
    yield
    torch.set_flush_denormal(flushed)


@pytest.mark.usefixtures("denormals")
@pytest.mark.parametrize(("form", "keys"), [("tiled", "others"), ("tiled", "the queries"), ("rows", "others")])
def test_products_of_tiles_get_no_denormal_numbers(form, keys, monkeypatch):
    """Which make them a hundred times as slow on a CPU. Logits a row: 0 to -120; exp(-88) to exp(-103) are denormal."""
    monkeypatch.setattr(tiled_softmax, "TILE", 1024)
    x = torch.linspace(0, 120**0.5, 64)[None, :, None].requires_grad_()
    value = torch.randn(1, 64, 2, requires_grad=True)
    map_ = functional.weights("gaussian", x, x)
    assert ((map_ > 0) & (map_ < torch.finfo().tiny)).any()
    with Denormals() as counter:
        y = functional.nonlocal_operation("gaussian", x, x if keys == "the queries" else x.clone(), value, form=form)
        torch.autograd.grad(y.square().sum(), [x, value])
    assert counter.products > 0
    assert counter.denormals == 0
    torch.testing.assert_close(y, map_ @ value)


class Denormals(TorchDispatchMode):
    """How many there are among the operands of all matrix products."""

    products = denormals = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in PRODUCTS:
            self.products += 1
            self.denormals += sum(int(((t != 0) & (t.abs() < torch.finfo().tiny)).sum()) for t in args[-2:])
        return func(*args, **(kwargs or {}))


class MultiplyAdds(TorchDispatchMode):
    """Of every matrix product of two dimensions, also those into a given tensor."""

    total = calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in PRODUCTS:
            left, right = args[-2:]
            self.calls += 1
            self.total += left.shape[0] * left.shape[1] * right.shape[1]
        return func(*args, **(kwargs or {}))


def test_sorted_form_with_ties_and_on_the_kink():
    """Equal keys, and a_i + b_j exactly 0, where relu and its gradient at 0 are 0."""
    query = torch.tensor([[-2.0, -1.0, 0.0, 1.0, 2.0]], dtype=torch.float64)[..., None].requires_grad_()
    key = torch.tensor([[1.0, 1.0, -1.0, 0.0, 1.0, 2.0, -2.0]], dtype=torch.float64)[..., None].requires_grad_()
    value = torch.arange(14.0, dtype=torch.float64).view(1, 7, 2)
    y = functional.nonlocal_operation("concatenation", query, key, value, form="sorted")
    close(y, double_sum("concatenation", query, key, value))
    got = torch.autograd.grad(y.sum(), (query, key))
    active = (query + key.transpose(1, 2) > 0).double() / 7
    close(got[0], (active @ value.sum(2, keepdim=True)))
    close(got[1], active.sum(1)[..., None] * value.sum(2, keepdim=True))


def test_weight_of_the_concatenation_may_be_left_out_at_width_one():
    args, _ = tensors("dot_product", d=1)
    expected = double_sum("concatenation", *args, weight=torch.ones(2))
    for form in functional.FORMS["concatenation"]:
        close(functional.nonlocal_operation("concatenation", *args, form=form), expected)
    close(functional.reference("concatenation", *args), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("pairwise", "form"), [case for case in CASES if case[1]])
def test_dtype_of_the_result(pairwise, form, dtype):
    """In value's dtype from "fused", else in float32, and near the double sum of the same (rounded) tensors."""
    args, kwargs = tensors(pairwise, masked=True, dtype=dtype)
    y = functional.nonlocal_operation(pairwise, *args, **kwargs, form=form)
    assert y.dtype == (dtype if form == "fused" else torch.float32)
    error = 5 * torch.finfo(y.dtype).eps * max(1, y.abs().max().item())
    close(y.double(), double_sum(pairwise, *args, **kwargs), atol=error)


def test_sums_of_half_precision_run_in_float32():
    """300 x 300 keys and values of 1: a sum in bfloat16 would stop at 256, one in float16 at 65,504."""
    ones = torch.ones(1, 300, 1, dtype=torch.bfloat16)
    for form in functional.FORMS["dot_product"]:
        close(
            functional.nonlocal_operation("dot_product", ones, ones, ones, form=form), torch.ones(1, 300, 1), atol=1e-5
        )
    big = torch.full((1, 300, 1), 30.0, dtype=torch.float16)
    for form in functional.FORMS["dot_product"]:
        y = functional.nonlocal_operation("dot_product", big, big, big, form=form)
        close(y, torch.full_like(y, 27_000.0), atol=0.1)
    for form in functional.FORMS["concatenation"]:
        y = functional.nonlocal_operation("concatenation", ones, ones, ones, form=form)
        close(y, torch.full_like(y, 2.0), atol=1e-5)


@pytest.mark.parametrize("pairwise", SOFTMAX)
@pytest.mark.parametrize("form", ["fused", "tiled", "rows", "materialised"])
def test_large_logits_do_not_overflow(pairwise, form):
    args, _ = tensors(pairwise, dtype=torch.float32)
    y = functional.nonlocal_operation(pairwise, args[0] * 1e4, args[1] * 1e4, args[2], form=form)
    close(y.double(), double_sum(pairwise, args[0] * 1e4, args[1] * 1e4, args[2]), atol=1e-3)


@settings(max_examples=200)
@given(st.sampled_from(PAIRWISE), *[st.integers(0, 2**20) for _ in range(2)], *[st.integers(1, 2**12)] * 3)
def test_choose_form_never_raises(pairwise, n, m, d, v, batch):
    assert functional.choose_form(pairwise, n, m, d, v, batch) in functional.FORMS[pairwise]


@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_choose_form_never_builds_a_large_map(pairwise):
    assert functional.choose_form(pairwise, 2**15, 2**15, 16, 16) == functional.FORMS[pairwise][0] != "materialised"
    assert functional.choose_form(pairwise, 2, 2, 16, 16) == "materialised"


@pytest.mark.parametrize("pairwise", SOFTMAX)
@pytest.mark.parametrize(
    ("sizes", "form"),  # n, m, d, v, batch
    [
        ((724, 724, 64, 64), "materialised"),  # LARGEST_CACHED_MAP: 2**19, of a sample
        ((725, 725, 64, 64), "rows"),
        ((724, 724, 64, 64, 4), "materialised"),  # KEPT_PER_WIDTH["materialised"]: 2**14 * 128, of the batch
        ((724, 724, 64, 64, 5), "fused"),
        ((4096, 4096, 64, 64), "rows"),  # KEPT_PER_WIDTH["rows"]: 2**17 * 128
        ((4096, 4097, 64, 64), "fused"),
        ((6324, 6324, 256, 256), "rows"),  # LARGEST_KEPT_MAP: 4e7, of the batch
        ((6325, 6325, 256, 256), "fused"),
        ((784, 784, 256, 256, 65), "rows"),
        ((784, 784, 256, 256, 66), "fused"),
        ((4096, 4097, 64, 32), "rows"),  # a narrow map is kept where torch's kernel would pad
        ((6325, 6325, 128, 64), "fused"),  # LARGEST_PADDED_WIDTH
        ((6325, 6325, 129, 64), "tiled"),
        ((6325, 6325, 64, 129), "tiled"),
    ],
)
def test_thresholds_of_a_softmax_with_a_gradient(pairwise, sizes, form):
    assert functional.choose_form(pairwise, *sizes) == form


@pytest.mark.parametrize("pairwise", SOFTMAX)
@pytest.mark.parametrize(
    ("sizes", "form"),
    [
        ((196, 196, 512, 512), "fused"),  # torch's kernel keeps nothing and pads nothing
        ((784, 784, 64, 64), "fused"),
        ((196, 196, 128, 64), "materialised"),
        ((9999, 8192, 128, 64), "rows"),  # LONGEST_ROW; nothing is kept, however large the map
        ((9999, 8193, 128, 64), "fused"),
        ((9999, 8193, 512, 256), "tiled"),
    ],
)
def test_thresholds_of_a_softmax_without_a_gradient(pairwise, sizes, form):
    for symmetric in (False, True):
        assert functional.choose_form(pairwise, *sizes, 1, torch.zeros(1), symmetric) == form


@pytest.mark.parametrize("pairwise", SOFTMAX)
def test_keys_that_are_the_queries_are_tiled_with_a_gradient(pairwise):
    """From the first map of more than one tile: a single tile has no mirror image."""
    assert functional.choose_form(pairwise, 1448, 1448, 64, 32, symmetric=True) == "rows"
    assert functional.choose_form(pairwise, 1449, 1449, 64, 32, symmetric=True) == "tiled"
    assert functional.choose_form(pairwise, 9999, 9999, 64, 64, symmetric=True) == "tiled"


@pytest.mark.parametrize("pairwise", SOFTMAX)
@pytest.mark.parametrize("like", [torch.zeros(1, dtype=torch.bfloat16), torch.zeros(1, device="meta")], ids=str)
def test_a_softmax_elsewhere_gets_the_kernel_of_torch(pairwise, like):
    for n in (2, 784, 9999):
        assert functional.choose_form(pairwise, n, n, 512, 256, 1, like, symmetric=True) == "fused"


def test_threshold_of_the_concatenation():
    """One sorted position takes as long as 250 entries of the map: 2 N * 250 = N^2 at N = 500."""
    assert functional.choose_form("concatenation", 500, 500, 1, 64) == "materialised"
    assert functional.choose_form("concatenation", 501, 501, 1, 64) == "sorted"


def test_the_dot_product_takes_the_form_with_fewer_multiply_adds():
    """(7 + 11) * 3 * 5 = 270 against 7 * 11 * (3 + 5) = 616; at equal counts, the map."""
    assert functional.choose_form("dot_product", 7, 11, 3, 5) == "associative"
    assert functional.choose_form("dot_product", 4, 4, 4, 4) == "materialised"
    assert functional.choose_form("dot_product", 5, 4, 4, 4) == "associative"


@pytest.mark.parametrize(
    ("pairwise", "form", "operations"),
    [
        ("gaussian", "fused", 7 * 11 * (3 + 5)),
        ("embedded_gaussian", "materialised", 7 * 11 * (3 + 5)),
        ("dot_product", "associative", 11 * 3 * 5 + 7 * 3 * 5),
        ("dot_product", "materialised", 7 * 3 * 11 + 7 * 11 * 5),
        ("concatenation", "sorted", (7 + 11) * (3 + 5)),
    ],
)
def test_multiply_adds(pairwise, form, operations, monkeypatch):
    monkeypatch.setattr(functional, "choose_form", lambda *_: form)
    assert functional.multiply_adds(pairwise, 7, 11, 3, 5) == operations


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"pairwise": "cosine"},
            "one of gaussian, embedded_gaussian, dot_product, concatenation, got 'cosine'",
        ),
        ({"form": "sorted"}, "form of dot_product must be one of associative, materialised, got 'sorted'"),
        ({"query": (5, 3)}, r"\(B, N, D\).*\(5, 3\)"),
        ({"key": (2, 7, 4)}, r"do not fit.*\(2, 5, 3\).*\(2, 7, 4\)"),
        ({"key": (1, 7, 3)}, r"\(1, 7, 3\)"),
        ({"value": (2, 6, 2)}, r"\(2, 6, 2\)"),
        ({"value": (1, 7, 2)}, r"batch size.*\(1, 7, 2\)"),
        ({"mask": torch.ones(2, 7)}, r"bool \(2, 7\), got torch.float32 \(2, 7\)"),
        ({"mask": torch.ones(2, 5, dtype=torch.bool)}, r"bool \(2, 7\), got torch.bool \(2, 5\)"),
        ({"scale": 0.5}, "scale is for the softmax functions, not for dot_product; got 0.5"),
        ({"weight": torch.ones(6)}, "weight is w_f of the concatenation; dot_product has none"),
        ({"pairwise": "concatenation"}, r"weight must be \(6,\) for queries of width 3, got none"),
        ({"pairwise": "concatenation", "weight": torch.ones(5)}, r"weight must be \(6,\).*got \(5,\)"),
    ],
)
def test_errors_say_what_was_given_and_what_is_accepted(changed, message):
    shapes = {"query": (2, 5, 3), "key": (2, 7, 3), "value": (2, 7, 2)}
    given_shapes = shapes | {name: changed[name] for name in shapes if name in changed}
    args = {name: torch.zeros(shape) for name, shape in given_shapes.items()}
    rest = {"pairwise": "dot_product"} | {name: value for name, value in changed.items() if name not in shapes}
    with pytest.raises(ValueError, match=message):
        functional.nonlocal_operation(**args, **rest)
    if "form" not in changed:
        with pytest.raises(ValueError, match=message):
            functional.reference(**args, **rest)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("pairwise", "form"), CASES)
def test_nothing_waits_for_the_device(pairwise, form, masked):
    """Forward and backward never look at a value: on a GPU that would be a synchronisation. Fake tensors have none."""
    with FakeTensorMode():
        args = [torch.randn(2, size, width, requires_grad=True) for size, width in ((600, 4), (50, 4), (50, 3))]
        mask = torch.ones(2, 50, dtype=torch.bool) if masked else None
        weight = torch.randn(8, requires_grad=True) if pairwise == "concatenation" else None
        functional.nonlocal_operation(pairwise, *args, mask=mask, weight=weight, form=form).sum().backward()
        assert args[0].grad.shape == (2, 600, 4)
        with pytest.raises(DataDependentOutputException):  # this test can fail
            bool(args[0].any())
