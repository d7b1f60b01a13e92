"""Soft thresholding of groups: by hand, as complex numbers and single elements, at 0, and its conventions."""

import math

import pytest
import torch
from checks import REAL, assert_close

from drsn_ops import group_soft_threshold, soft_threshold


def features(*shape, dtype=torch.float64):
    torch.manual_seed(0)
    return torch.randn(*shape, dtype=dtype)


@pytest.mark.parametrize("dim", [1, -1, (1,), [1]])
def test_by_hand(dim, device):
    x = torch.tensor([[3.0, 4.0], [0.3, -0.4], [0.0, 0.0], [-6.0, 8.0]], dtype=torch.float64, device=device)
    y = group_soft_threshold(x, 2.5, dim)
    expected = torch.tensor([[1.5, 2], [0, 0], [0, 0], [-4.5, 6]], dtype=torch.float64, device=device)
    torch.testing.assert_close(y, expected, rtol=1e-15, atol=0)


def test_gradients_by_hand(device):
    x = torch.tensor([[3.0, 4.0], [0.3, 0.4]], dtype=torch.float64, device=device, requires_grad=True)
    tau = torch.full((2, 1), 2.5, dtype=torch.float64, device=device, requires_grad=True)
    group_soft_threshold(x, tau, 1)[:, 0].sum().backward()
    # 1 - tau / r + tau x x / r^3, tau x y / r^3, and -x / r, with r = 5
    expected = torch.tensor([[0.5 + 2.5 * 9 / 125, 2.5 * 12 / 125], [0, 0]], dtype=torch.float64)
    torch.testing.assert_close(x.grad.cpu(), expected)
    assert tau.grad.flatten().tolist() == [-0.6, 0]


@pytest.mark.parametrize("tau", [0.0, 0.5])
def test_the_gradient_at_zero_is_zero(tau, device):
    x = torch.zeros(3, 4, dtype=torch.float64, device=device, requires_grad=True)
    threshold = torch.full((3, 1), tau, dtype=torch.float64, device=device, requires_grad=True)
    y = group_soft_threshold(x, threshold, 1)
    gradients = torch.autograd.grad(y, (x, threshold), torch.ones_like(y))
    assert all((t == 0).all() for t in (y, *gradients))


def test_a_norm_equal_to_tau_is_in_the_band():
    x = torch.tensor([3.0, 4.0], requires_grad=True)
    tau = torch.tensor([5.0], requires_grad=True)
    y = group_soft_threshold(x, tau, 0)
    y.sum().backward()
    assert y.tolist() == x.grad.tolist() == [0, 0] and tau.grad.tolist() == [0]


def test_a_complex_number_is_a_group_of_two(device):
    z = features(20, 30, dtype=torch.complex128).to(device).requires_grad_()
    pairs = torch.view_as_real(z.detach()).clone().requires_grad_()
    y, expected = group_soft_threshold(pairs, 0.8, -1), soft_threshold(z, 0.8)
    torch.testing.assert_close(torch.view_as_complex(y), expected, rtol=1e-12, atol=1e-14)
    y.square().sum().backward()
    torch.view_as_real(expected).square().sum().backward()
    torch.testing.assert_close(pairs.grad, torch.view_as_real(z.grad), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_a_group_of_one_is_an_element(dtype, device):
    x = features(20, 30, dtype=dtype).to(device)
    torch.testing.assert_close(
        group_soft_threshold(x[..., None], 0.7, -1)[..., 0], soft_threshold(x, 0.7), rtol=1e-12, atol=1e-14
    )


def test_a_norm_loses_tau_and_the_direction_stays(device):
    x, tau = features(4, 6, 5, 3).to(device), torch.rand(6, 1, 3, dtype=torch.float64, device=device)
    y = group_soft_threshold(x, tau, (0, 2))
    before, after = (torch.linalg.vector_norm(t, dim=(0, 2), keepdim=True) for t in (x, y))
    torch.testing.assert_close(after, (before - tau).relu())
    torch.testing.assert_close(y * before, x * after)


@pytest.mark.parametrize("dim, shape", [(1, (3, 1, 2)), (1, (1, 2)), ((0, 2), (4, 1)), (2, ())])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_gradcheck(dtype, dim, shape, device):
    x = (2 * features(3, 4, 2, dtype=dtype)).to(device).requires_grad_()
    tau = torch.linspace(0.5, 0.9, math.prod(shape), dtype=torch.float64).reshape(shape).to(device)
    call = torch.autograd.gradcheck, torch.autograd.gradgradcheck
    assert all(
        check(lambda *given: group_soft_threshold(*given, dim), (x, tau.requires_grad_())) for check in call
    )


@pytest.mark.parametrize("dtype", (*REAL, torch.complex64))
def test_narrow_types(dtype, device):
    wide = torch.complex128 if dtype.is_complex else torch.float64
    x = features(40, 30, dtype=wide).to(dtype)
    y = group_soft_threshold(x.to(device), 1.25, 1)
    assert y.dtype == dtype
    assert_close(y.cpu(), group_soft_threshold(x.to(wide), 1.25, 1))


def test_numbers_that_are_none_and_infinity(device):
    nan, inf = math.nan, math.inf
    x = torch.tensor([[nan, 1.0], [1.0, 2.0], [inf, 1.0], [3.0, 4.0]], device=device)
    tau = torch.tensor([[1.0], [nan], [1.0], [inf]], device=device)
    expected = torch.tensor([[nan, nan], [nan, nan], [inf, 1.0], [0.0, 0.0]], device=device)
    torch.testing.assert_close(group_soft_threshold(x, tau, 1), expected, equal_nan=True)


@pytest.mark.parametrize("size", [1e-30, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_squares_out_of_range(dtype, size, device):
    x = (size * torch.tensor([[3.0, -4.0], [0.3, 0.4]])).to(device, dtype).requires_grad_()
    tau = torch.full((2, 1), 2.5 * size, device=device, requires_grad=True)
    y = group_soft_threshold(x, tau, 1)
    expected = (size * torch.tensor([[1.5, -2.0], [0.0, 0.0]])).to(device, dtype)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=0)
    y.real[:, 0].sum().backward()
    by_x = torch.tensor([[0.5 + 2.5 * 9 / 125, -2.5 * 12 / 125], [0, 0]]).to(device, dtype)
    torch.testing.assert_close(x.grad, by_x, rtol=1e-4, atol=0)
    torch.testing.assert_close(tau.grad.cpu(), torch.tensor([[-0.6], [0.0]]), rtol=1e-4, atol=0)


def test_a_negative_entry_acts_as_zero(device):
    x = torch.randn(3, 4, device=device)
    tau = torch.full((3, 1), -1.0, device=device, requires_grad=True)
    y = group_soft_threshold(x, tau, 1)
    y.sum().backward()
    assert torch.equal(y, x) and (tau.grad == 0).all()


def test_compiled_traced_and_transformed():
    def call(x, tau):
        return group_soft_threshold(x, tau, (1, 2))

    x, tau = features(3, 4, 5), torch.full((3, 1, 1), 2.0, dtype=torch.float64)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for given in (tau, 1.5, 1.75):
        torch.testing.assert_close(compiled(x, given), call(x, given))
    torch.testing.assert_close(torch.fx.symbolic_trace(call)(x, tau), call(x, tau))
    one = torch.func.vmap(lambda x: group_soft_threshold(x, 2.0, (0, 1)))
    torch.testing.assert_close(one(x), call(x, 2.0))
    assert group_soft_threshold(x[:0], 1.0, 1).shape == (0, 4, 5)
    assert group_soft_threshold(x[:, :0], 1.0, 1).shape == (3, 0, 5)


X = torch.zeros(2, 3, 4)


@pytest.mark.parametrize(
    "call, kind, message",
    [
        (lambda: group_soft_threshold(X.int(), 1.0, 1), TypeError, "x: got a tensor of torch.int32"),
        (lambda: group_soft_threshold(X, -1.0, 1), ValueError, "tau: got -1.0, expected a number >= 0"),
        (
            lambda: group_soft_threshold(X, torch.ones(3, 1), 1),
            ValueError,
            r"tau: got shape \(3, 1\), expected one that broadcasts to the norms, \(2, 1, 4\)",
        ),
        (
            lambda: group_soft_threshold(X, 1.0, 3),
            ValueError,
            r"dim: got 3, expected different axes of x, of shape \(2, 3, 4\)",
        ),
        (
            lambda: group_soft_threshold(X, 1.0, (1, -2)),
            ValueError,
            r"dim: got \(1, -2\), expected different axes",
        ),
        (lambda: group_soft_threshold(X, 1.0, None), ValueError, "dim: got None, expected different axes"),
        (lambda: group_soft_threshold(X, 1.0, 1.0), ValueError, "dim: got 1.0, expected different axes"),
        (lambda: group_soft_threshold(X, 1.0, True), ValueError, "dim: got True, expected different axes"),
        (lambda: group_soft_threshold(X, 1.0, ()), ValueError, r"dim: got \(\), expected different axes"),
        (lambda: group_soft_threshold(X[0, 0, 0], 1.0, 0), ValueError, "dim: got 0, expected different axes"),
    ],
)
def test_errors(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
