"""Second derivatives, forward mode and torch.func: as exact on large maps, in every form, as on small ones."""

import pytest
import torch
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap

from nonlocal_nets.nn import NonLocalBlock, functional
from nonlocal_nets.nn.higher_order import is_transformed

FORMS = [(name, form) for name, forms in functional.FORMS.items() for form in forms]
SIZES = [(2, 2), (30, 30)]
# torch.func scripts decompositions of its own when it is first used
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")


def normal(*size, seed=0):
    return torch.randn(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def arguments(pairwise):
    q, k, v = normal(2, 5, 3), normal(2, 6, 3, seed=1), normal(2, 6, 4, seed=2)
    weight = [normal(6, seed=3)] if pairwise == "concatenation" else []
    return [t.requires_grad_() for t in (q, k, v, *weight)]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("pairwise", "form"), FORMS)
def test_second_derivatives_of_each_form(pairwise, form, masked):
    mask = torch.tensor([[True, False, True, True, False, True], [False] * 6]) if masked else None

    def operation(q, k, v, weight=None):
        return functional.nonlocal_operation(pairwise, q, k, v, mask=mask, weight=weight, form=form)

    assert torch.autograd.gradgradcheck(operation, arguments(pairwise))


@pytest.mark.parametrize("form", functional.FORMS["gaussian"])
def test_second_derivatives_where_the_keys_are_the_queries(form):
    q, v = normal(2, 5, 3).requires_grad_(), normal(2, 5, 4).requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda q, v: functional.nonlocal_operation("gaussian", q, q, v, form=form), (q, v)
    )


@pytest.mark.parametrize(("pairwise", "form"), FORMS)
def test_a_second_gradient_that_does_not_pass_the_form_again(pairwise, form):
    """That of the length of the gradient of a sum: the gradient that enters the form is constant."""

    def second(form):
        q, k, v, *weight = arguments(pairwise)
        y = functional.nonlocal_operation(pairwise, q, k, v, weight=weight[0] if weight else None, form=form)
        (slope,) = torch.autograd.grad(y.sum(), q, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), (k, v), materialize_grads=True)

    assert second(form)[1].abs().max() > 0.01
    for given, expected in zip(second(form), second("materialised"), strict=True):
        torch.testing.assert_close(given, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("pairwise", "form"), FORMS)
def test_training_takes_the_gradients_of_the_form(pairwise, form, monkeypatch):
    def not_called(*_args, **_kwargs):
        raise AssertionError("slow")

    monkeypatch.setattr(functional, "_plain", not_called)
    q, k, v, *weight = arguments(pairwise)
    functional.nonlocal_operation(pairwise, q, k, v, weight=weight[0] if weight else None, form=form).sum().backward()


def block_loss(pairwise, size, masked):
    block = NonLocalBlock(4, 2, pairwise=pairwise, norm="layer").double()
    with torch.no_grad():
        for k, parameter in enumerate(block.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=k) / 2)
    x = normal(2, 4, *size, seed=9)
    mask = torch.rand(2, *size, generator=torch.Generator().manual_seed(0)) < 0.7 if masked else None
    parameters = {name: parameter.detach() for name, parameter in block.named_parameters()}

    def loss(parameters, x=x, mask=mask):
        return functional_call(block, parameters, (x, mask)).pow(3).mean()

    return loss, parameters, x, mask


def close(given, expected):
    assert given.keys() == expected.keys()
    for name in given:
        torch.testing.assert_close(given[name], expected[name], rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("pairwise", functional.FORMS)
def test_derivatives_of_a_block_in_all_ways(pairwise, size, masked):
    loss, parameters, x, mask = block_loss(pairwise, size, masked)
    vector = {name: normal(*value.shape, seed=k + 50) for k, (name, value) in enumerate(parameters.items())}
    leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    first = dict(zip(leaves, torch.autograd.grad(loss(leaves), list(leaves.values()), create_graph=True), strict=True))
    along = sum((first[name] * vector[name]).sum() for name in first)
    products = torch.autograd.grad(along, list(leaves.values()), materialize_grads=True)
    second = dict(zip(leaves, products, strict=True))

    first = {name: value.detach() for name, value in first.items()}
    close(grad(loss)(parameters), first)
    close(jacrev(loss)(parameters), first)
    torch.testing.assert_close(jvp(loss, (parameters,), (vector,))[1], along.detach())
    close(jvp(grad(loss), (parameters,), (vector,))[1], second)

    def of_a_sample(parameters, x, mask):
        return loss(parameters, x[None], None if mask is None else mask[None])

    each = vmap(grad(of_a_sample), (None, 0, None if mask is None else 0))(parameters, x, mask)
    close({name: value.mean(0) for name, value in each.items()}, first)

    with torch.autograd.forward_ad.dual_level():
        dual = {name: torch.autograd.forward_ad.make_dual(parameters[name], vector[name]) for name in parameters}
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(loss(dual)).tangent, along.detach())


@pytest.mark.parametrize("pairwise", ["gaussian", "embedded_gaussian", "dot_product"])  # without kinks
def test_second_derivatives_of_a_block_by_finite_differences(pairwise):
    loss, parameters, *_ = block_loss(pairwise, (30, 30), masked=True)
    vector = {name: normal(*value.shape, seed=k) for k, (name, value) in enumerate(parameters.items())}

    def slope(step):
        moved = {name: (value + step * vector[name]).requires_grad_() for name, value in parameters.items()}
        return torch.autograd.grad(loss(moved), list(moved.values()), create_graph=True), list(moved.values())

    first, leaves = slope(0)
    along = sum((value * vector[name]).sum() for name, value in zip(vector, first, strict=True))
    second = torch.autograd.grad(along, leaves, materialize_grads=True)
    (up, _), (down, _) = slope(1e-5), slope(-1e-5)
    for exact, one, other in zip(second, up, down, strict=True):
        torch.testing.assert_close(exact, (one - other).detach() / 2e-5, rtol=1e-4, atol=1e-6)


def test_the_hessian_of_an_input_and_batched_gradients():
    loss, parameters, x, _ = block_loss("embedded_gaussian", (2, 2), masked=False)
    by_func = hessian(lambda x: loss(parameters, x))(x[:1])
    by_autograd = torch.autograd.functional.hessian(lambda x: loss(parameters, x), x[:1], vectorize=True)
    torch.testing.assert_close(by_func, by_autograd)
    for pairwise, form in FORMS:
        inputs = arguments(pairwise)

        def operation(q, k, v, weight=None, pairwise=pairwise, form=form):
            return functional.nonlocal_operation(pairwise, q, k, v, weight=weight, form=form)

        slow, fast = (
            torch.autograd.functional.jacobian(operation, tuple(inputs), vectorize=vectorize)
            for vectorize in (False, True)
        )
        for one, other in zip(slow, fast, strict=True):
            torch.testing.assert_close(one, other)


def test_transforms_are_seen():
    seen = []

    def look(x):
        seen.append(is_transformed())
        return x.sum()

    x = torch.ones(2)
    look(x)
    for transform in (grad, vmap, jacrev):
        transform(look)(torch.ones(2, 2) if transform is vmap else x)
    jvp(look, (x,), (x,))
    assert seen == [False, True, True, True, True]
