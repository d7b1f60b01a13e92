"""Every function under the transforms of ``torch.func`` and in forward-mode differentiation."""

import pytest
import torch
from checks import CALLS, make_calls
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap

pytestmark = pytest.mark.parametrize("call", CALLS)


def prepared(call, device):
    """The function, its tensors, tangents for them, and its Jacobians, row by row from eager autograd."""
    function, tensors = make_calls(device)[call]
    tangents = tuple(torch.randn_like(t) for t in tensors)
    leaves = tuple(t.clone().requires_grad_() for t in tensors)
    y = function(*leaves)
    rows = [torch.autograd.grad(value, leaves, retain_graph=True) for value in y.flatten()]
    jacobians = tuple(
        torch.stack(column).view(*y.shape, *t.shape)
        for column, t in zip(zip(*rows, strict=True), tensors, strict=True)
    )
    return function, tensors, tangents, jacobians


def tangent(jacobians, tangents):
    return sum(torch.tensordot(j, t, t.dim()) for j, t in zip(jacobians, tangents, strict=True))


def test_reverse_mode(call, device):
    function, tensors, _, jacobians = prepared(call, device)
    every = tuple(range(len(tensors)))
    y, pull = vjp(function, *tensors)
    cotangent = torch.randn_like(y)
    wanted = tuple(torch.tensordot(cotangent, j, y.dim()) for j in jacobians)
    torch.testing.assert_close(pull(cotangent), wanted)
    torch.testing.assert_close(grad(lambda *t: (function(*t) * cotangent).sum(), every)(*tensors), wanted)
    torch.testing.assert_close(jacrev(function, every)(*tensors), jacobians)
    torch.testing.assert_close(jacrev(function, every, chunk_size=3)(*tensors), jacobians)


def test_forward_mode(call, device):
    function, tensors, tangents, jacobians = prepared(call, device)
    wanted = tangent(jacobians, tangents)
    torch.testing.assert_close(jvp(function, tensors, tangents)[1], wanted)
    if call != "RSBU":  # linearize cannot follow a ReLU in place, PyTorch's own either
        torch.testing.assert_close(linearize(function, *tensors)[1](*tangents), wanted)
    torch.testing.assert_close(jacfwd(function, tuple(range(len(tensors))))(*tensors), jacobians)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, d) for t, d in zip(tensors, tangents, strict=True)]
        torch.testing.assert_close(forward_ad.unpack_dual(function(*duals)).tangent, wanted)


def test_second_derivatives(call, device):
    function, tensors, _, _ = prepared(call, device)

    def loss(x):
        return function(x, *tensors[1:]).sin().sum()

    wanted = torch.autograd.functional.hessian(loss, tensors[0])
    torch.testing.assert_close(hessian(loss)(tensors[0]), wanted)
    torch.testing.assert_close(jacrev(jacrev(loss))(tensors[0]), wanted)


@pytest.mark.parametrize("randomness", ["error", "same", "different"])
def test_vmap(call, device, randomness):
    function, tensors, _, _ = prepared(call, device)
    scales = torch.tensor([1.0, 0.5, 0.75], dtype=torch.float64, device=device)
    for batched in [*([i] for i in range(len(tensors))), range(len(tensors))]:
        args = [scales.view(-1, *[1] * t.dim()) * t if i in batched else t for i, t in enumerate(tensors)]
        axes = tuple(0 if i in batched else None for i in range(len(tensors)))
        wanted = torch.stack(
            [function(*[a[n] if i in batched else a for i, a in enumerate(args)]) for n in range(3)]
        )
        found = vmap(function, axes, randomness=randomness)(*args)
        torch.testing.assert_close(found, wanted)
        # along the last axis, and one level inside another
        moved = [a.movedim(0, -1) if i in batched else a for i, a in enumerate(args)]
        last = tuple(None if axis is None else -1 for axis in axes)
        torch.testing.assert_close(vmap(function, last)(*moved), wanted)

        def scaled(scale, batched=batched):
            return function(*[scale * t if i in batched else t for i, t in enumerate(tensors)])

        inner = vmap(scaled)
        nested = vmap(inner)(torch.stack([scales, 2 * scales]))
        torch.testing.assert_close(nested[0], wanted)
        torch.testing.assert_close(nested[1], inner(2 * scales))


def test_vmap_of_derivatives(call, device):
    function, tensors, _, _ = prepared(call, device)
    x, *others = tensors
    stack = torch.stack([x, x * 0.5])

    def derivative(x):
        return grad(lambda x: function(x, *others).square().sum())(x)

    torch.testing.assert_close(vmap(derivative)(stack), torch.stack([derivative(x) for x in stack]))


def test_functions_of_autograd(call, device):
    """`gradcheck` with every mode that it knows, batched ones too."""
    function, tensors, _, _ = prepared(call, device)
    leaves = tuple(t.clone().requires_grad_() for t in tensors)
    torch.autograd.gradcheck(
        function,
        leaves,
        eps=1e-7,
        fast_mode=True,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )
    torch.autograd.gradgradcheck(
        function, leaves, eps=1e-7, fast_mode=True, check_fwd_over_rev=True, check_batched_grad=True
    )


def test_gradients_that_are_not_finite(call, device):
    """What is 0 in a derivative stays 0 beside an infinite gradient: a batch of gradients equals them one by one."""
    function, tensors, _, _ = prepared(call, device)
    leaves = tuple(t.clone().requires_grad_() for t in tensors)
    y = function(*leaves)
    grads = torch.ones(2, *y.shape, dtype=y.dtype, device=device)
    grads[1].view(-1)[::3] = torch.inf
    wanted = [torch.autograd.grad(y, leaves, g, retain_graph=True) for g in grads]
    found = torch.autograd.grad(y, leaves, grads, is_grads_batched=True)
    for column, f in zip(zip(*wanted, strict=True), found, strict=True):
        torch.testing.assert_close(f, torch.stack(column), equal_nan=True)


def test_without_elements(call, device):
    """A batch of derivatives of nothing: the masks have no bytes."""
    function, tensors = make_calls(device)[call]
    empty = tuple(t[:0] if t.shape[0] == 3 else t for t in tensors)
    leaves = tuple(t.clone().requires_grad_() for t in empty)
    y = function(*leaves)
    grads = torch.ones(2, *y.shape, dtype=y.dtype, device=device)
    found = torch.autograd.grad(y, leaves, grads, is_grads_batched=True)
    assert [f.shape for f in found] == [(2, *t.shape) for t in empty]
    assert all(not f.any() for f in found)
