"""soft_threshold: values, derivatives, layouts and types, against the reference."""

import math

import pytest
import torch
from checks import (
    EMPTY,
    LAYOUTS,
    REAL,
    SHAPES,
    assert_close,
    at_kinks,
    away_from_kink,
    lay_out,
    leaf,
    pairwise,
)
from torch.autograd import gradcheck, gradgradcheck

import drsn_ops
from drsn_ops import reference
from drsn_ops.reference import accumulator

inf, nan = math.inf, math.nan

# How tau lies over x, from a single number to one for each element.
TAU_SHAPES = {
    "scalar": lambda s: (),
    "channel": lambda s: (1, s[1]) + (1,) * (len(s) - 2),
    "row": lambda s: s[:2] + (1,) * (len(s) - 2),
    "sample": lambda s: s[:1] + (1,) * (len(s) - 1),
    "last": lambda s: s[-1:],
    "every": lambda s: s,
    "alternating": lambda s: tuple(n if axis % 2 else 1 for axis, n in enumerate(s)),
    "one axis of one": lambda s: (1,),
}


def test_literal_values(device):
    x = torch.tensor([-3.0, -1.5, -1.0, -0.25, 0.0, 0.25, 1.0, 1.5, 3.0], device=device, requires_grad=True)
    tau = torch.tensor(1.0, device=device, requires_grad=True)
    y = drsn_ops.soft_threshold(x, tau)
    assert y.tolist() == [-2.0, -0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 2.0]
    y.backward(torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0], device=device))
    assert x.grad.tolist() == [1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 128.0, 256.0]
    assert tau.grad.item() == 1 + 2 - 128 - 256


@pytest.mark.parametrize("dtype", REAL)
def test_the_band_is_closed(device, dtype):
    x = torch.tensor([-0.5, 0.5], dtype=dtype, device=device, requires_grad=True)
    tau = torch.tensor([0.5], dtype=dtype, device=device, requires_grad=True)
    y = drsn_ops.soft_threshold(x, tau)
    y.sum().backward()
    assert y.tolist() == [0, 0] and x.grad.tolist() == [0, 0] and tau.grad.tolist() == [0]


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize(
    "x, tau, y",
    [
        (nan, 1.0, nan),
        (1.0, nan, nan),
        (0.0, nan, nan),
        (inf, 1.0, inf),
        (-inf, 1.0, -inf),
        (3.0, inf, 0.0),
        (inf, inf, nan),
        (-0.0, 0.0, 0.0),
        (2.0, 0.0, 2.0),
        (2.0, -3.0, 2.0),
        (-2.0, -3.0, -2.0),
    ],
)
def test_special_values(device, dtype, x, tau, y):
    # Nine elements: the whole vectors and the rest of a row go different ways.
    x = torch.full((9,), x, dtype=dtype, device=device)
    result = drsn_ops.soft_threshold(x, torch.full((9,), tau, dtype=dtype, device=device))
    torch.testing.assert_close(result, torch.full_like(x, y), equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", REAL)
def test_a_negative_entry_acts_as_zero_without_gradient(device, dtype):
    x = leaf(torch.tensor([-2.0, 0.0, 0.5, 3.0] * 5, dtype=dtype, device=device))
    tau = leaf(torch.tensor([-1.0, -1.0, -1.0, 1.0] * 5, dtype=dtype, device=device))
    y = drsn_ops.soft_threshold(x, tau)
    y.sum().backward()
    assert y.tolist() == [-2.0, 0.0, 0.5, 2.0] * 5
    assert x.grad.tolist() == [1.0, 0.0, 1.0, 1.0] * 5
    assert tau.grad.tolist() == [0.0, 0.0, 0.0, -1.0] * 5


@pytest.mark.parametrize("tau_shape", TAU_SHAPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_tau_shape_against_the_reference(device, shape, tau_shape):
    tau = torch.rand(TAU_SHAPES[tau_shape](shape), device=device)
    compare(*torch.randn(2, *shape, device=device), tau)


@pytest.mark.parametrize(
    "layout, dtype, shape, tau_shape",
    pairwise(
        LAYOUTS,
        REAL,
        ((3, 4, 9), (2, 3, 7, 7), (2, 64, 5, 5), (2, 3, 4, 5, 6)),
        ("channel", "every", "last"),
    ),
    ids=str,
)
def test_layouts_and_types_against_the_reference(device, layout, dtype, shape, tau_shape):
    tau = torch.rand(TAU_SHAPES[tau_shape](shape), device=device)
    x, grad = torch.randn(2, *shape, device=device).to(dtype)
    for tau_dtype in {dtype, accumulator(dtype)}:
        compare(x, grad, lay_out(tau.to(tau_dtype), "sliced"), layout)


def compare(x, grad, tau, layout="contiguous"):
    x = lay_out(x, layout)
    # of any sample: where the gradient is expanded, all have that of the first
    grad = lay_out(grad.masked_fill(at_kinks(x, tau).any(0, keepdim=True), 0), layout)
    x, tau = leaf(x), leaf(tau)
    wide_x, wide_tau = leaf(x.double()), leaf(tau.double())
    y = drsn_ops.soft_threshold(x, tau)
    expected = reference.soft_threshold(wide_x, wide_tau)
    assert y.shape == x.shape and y.dtype == x.dtype
    assert_close(y, expected)
    assert_close(drsn_ops.soft_threshold(x.detach(), tau.detach()), expected)
    dx, dtau = torch.autograd.grad(y, (x, tau), grad)
    want_x, want_tau = torch.autograd.grad(expected, (wide_x, wide_tau), grad.double())
    assert dtau.dtype == tau.dtype and dtau.shape == tau.shape
    assert_close(dx, want_x)
    assert_close(dtau, want_tau, terms=grad.abs().sum().item() / max(tau.numel(), 1) ** 0.5)
    alone = torch.autograd.grad(drsn_ops.soft_threshold(x, tau), x, grad)[0]
    assert torch.equal(alone, dx)
    assert torch.equal(torch.autograd.grad(drsn_ops.soft_threshold(x.detach(), tau), tau, grad)[0], dtau)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_is_kept(device, layout):
    x = leaf(lay_out(torch.randn(2, 3, 4, 5, device=device), layout))
    y = drsn_ops.soft_threshold(x, 0.5)
    dx = torch.autograd.grad(y.sum(), x)[0]
    last = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    assert y.is_contiguous(memory_format=last)
    assert dx.is_contiguous(memory_format=last)


@pytest.mark.parametrize("shape", [*EMPTY, (), (0,)], ids=str)
def test_without_elements_or_axes(device, shape):
    x = leaf(torch.randn(shape, device=device))
    tau = leaf(torch.tensor(0.1, device=device))
    y = drsn_ops.soft_threshold(x, tau)
    y.sum().backward()
    expected = reference.soft_threshold(x.detach(), tau.detach())
    torch.testing.assert_close(y.detach(), expected)
    assert x.grad.shape == x.shape and tau.grad.item() == (0 if x.numel() == 0 else -y.detach().sign().item())


def test_a_number_is_a_tensor_of_one(device):
    x = torch.randn(5, 7, device=device)
    assert torch.equal(drsn_ops.soft_threshold(x, 0.3), drsn_ops.soft_threshold(x, torch.tensor(0.3)))
    assert torch.equal(drsn_ops.soft_threshold(x, 1), torch.nn.functional.softshrink(x, 1.0))


def test_wide_tau_on_narrow_x(device):
    x = torch.randn(4, 6, device=device)
    tau = leaf(torch.rand(6, dtype=torch.float64, device=device))
    y = drsn_ops.soft_threshold(x, tau)
    y.sum().backward()
    assert y.dtype == torch.float32 and tau.grad.dtype == torch.float64


@pytest.mark.parametrize("numel", [1_000_003, 65_537])
def test_sums_over_many_elements(device, numel):
    x = leaf(torch.randn(numel, device=device))
    tau = leaf(torch.tensor(0.5, device=device))
    grad = torch.rand(numel, device=device) + 0.5
    drsn_ops.soft_threshold(x, tau).backward(grad)
    want = -(grad.double() * x.detach().sign() * (x.detach().abs() > 0.5)).sum()
    assert abs(tau.grad.item() - want.item()) < 1e-6 * grad.sum().item() ** 0.5 + 1e-7 * abs(want.item())


class TestInPlace:
    @pytest.mark.parametrize("layout", LAYOUTS[:-1])
    @pytest.mark.parametrize("needs_grad", [False, True])
    def test_overwrites_x(self, device, layout, needs_grad):
        start = torch.randn(3, 4, 5, device=device, requires_grad=needs_grad)
        x = lay_out(start * 1, layout)
        expected = drsn_ops.soft_threshold(x, 0.4)
        version = x._version
        y = drsn_ops.soft_threshold(x, 0.4, inplace=True)
        assert y is x and x._version > version
        torch.testing.assert_close(y, expected, rtol=0, atol=0)
        if needs_grad:
            y.sum().backward()
            assert torch.equal(start.grad, (start.detach().abs() > 0.4).float())

    def test_a_leaf_raises_what_pytorch_raises(self, device):
        x = torch.randn(4, device=device, requires_grad=True)
        before = x.detach().clone()
        with pytest.raises(RuntimeError, match="a leaf Variable that requires grad"):
            drsn_ops.soft_threshold(x, 0.5, inplace=True)
        assert torch.equal(x.detach(), before)

    def test_shared_memory_raises_what_pytorch_raises(self, device):
        with pytest.raises(RuntimeError, match="more than one element of the written-to tensor"):
            drsn_ops.soft_threshold(torch.ones(1, device=device).expand(4), 0.5, inplace=True)

    def test_a_view_passes_the_gradient_on_to_its_base(self, device):
        start = torch.tensor([-3.0, 0.2, 2.0, 5.0], device=device, requires_grad=True)
        base = start * 1
        drsn_ops.soft_threshold(base[1:3], 1.0, inplace=True)
        assert base.tolist() == pytest.approx([-3.0, 0.0, 1.0, 5.0])
        base.sum().backward()
        assert start.grad.tolist() == [1.0, 0.0, 1.0, 1.0]

    def test_autograd_notices(self, device):
        start = torch.randn(4, device=device, requires_grad=True)
        x = start * 1
        square = x * x
        drsn_ops.soft_threshold(x, 0.5, inplace=True)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            square.sum().backward()


def compare_complex(x, tau):
    x, tau, grad = leaf(x), leaf(tau), torch.randn(x.shape, dtype=x.dtype, device=x.device)
    wide_x, wide_tau = leaf(x.to(torch.complex128)), leaf(tau.double())
    y, expected = drsn_ops.soft_threshold(x, tau), reference.soft_threshold(wide_x, wide_tau)
    assert_close(y, expected)
    assert_close(drsn_ops.soft_threshold(x.detach() * 1, tau.detach(), inplace=True), expected)
    found = torch.autograd.grad(y, (x, tau), grad)
    wanted = torch.autograd.grad(expected, (wide_x, wide_tau), grad.to(torch.complex128))
    assert_close(found[0], wanted[0])
    assert_close(found[1], wanted[1], terms=grad.abs().sum().item())


class TestComplex:
    @pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
    @pytest.mark.parametrize("shape", [(3, 5), (2, 3, 7, 7), (2, 3, 1000)], ids=str)
    @pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
    @pytest.mark.parametrize("tau_shape", ["scalar", "channel", "every"])
    def test_against_the_reference(self, device, dtype, shape, layout, tau_shape):
        x = lay_out(torch.randn(shape, dtype=dtype, device=device), layout)
        compare_complex(x, torch.rand(TAU_SHAPES[tau_shape](shape), dtype=accumulator(dtype), device=device))

    def test_in_place_on_a_view(self, device):
        start = leaf(torch.tensor([3 + 4j, 0.1j, 6 - 8j], device=device))
        base = start * 1
        drsn_ops.soft_threshold(base[1:], 5.0, inplace=True)
        torch.testing.assert_close(base.detach(), torch.tensor([3 + 4j, 0, 3 - 4j], device=device))
        base.abs().sum().backward()
        assert start.grad[1] == 0 and start.grad[2].abs() > 0.9

    def test_zero_and_the_edge_of_the_band(self, device):
        x = leaf(torch.tensor([0, 3 + 4j, -5j, 1e-30 + 1e-30j], device=device))
        tau = leaf(torch.tensor(5.0, device=device))
        drsn_ops.soft_threshold(x, tau).abs().sum().backward()
        assert x.grad.tolist() == [0, 0, 0, 0] and tau.grad.item() == 0

    def test_agrees_with_the_real_operator(self, device):
        x = torch.randn(20, device=device)
        y = drsn_ops.soft_threshold(torch.complex(x, torch.zeros_like(x)), 0.5)
        torch.testing.assert_close(y.real, drsn_ops.soft_threshold(x, 0.5))
        assert y.imag.abs().max() == 0

    @pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
    def test_magnitudes_whose_squares_are_no_numbers(self, device, dtype):
        """Of the largest and the smallest normal numbers the magnitude is one, though its square is not."""
        limits = torch.finfo(dtype)
        for scale in (limits.max / 8, limits.tiny * 8):
            x = torch.tensor([3 + 4j, -4j, 0.5 + 0j], dtype=dtype, device=device) * scale
            y = drsn_ops.soft_threshold(x, 1.0 * scale)
            wanted = torch.tensor([2.4 + 3.2j, -3j, 0], dtype=dtype, device=device)
            torch.testing.assert_close(y / scale, wanted, rtol=4 * limits.eps, atol=0)

    def test_derivatives(self, device):
        x = leaf(torch.randn(3, 4, dtype=torch.complex128, device=device))
        tau = leaf(torch.rand(4, dtype=torch.float64, device=device))
        assert gradcheck(drsn_ops.soft_threshold, (x, tau))
        assert gradgradcheck(drsn_ops.soft_threshold, (x, tau))

        def inplace(x, tau):
            return drsn_ops.soft_threshold(x * 1, tau, inplace=True)

        assert gradcheck(inplace, (x, tau))
        assert gradgradcheck(inplace, (x, tau))

    @pytest.mark.parametrize("shape", EMPTY)
    def test_empty(self, device, shape):
        x = leaf(torch.zeros(shape, dtype=torch.complex64, device=device))
        tau = leaf(torch.rand(shape[-1:], device=device))
        drsn_ops.soft_threshold(x, tau).abs().sum().backward()
        assert x.grad.shape == shape
        assert torch.equal(tau.grad, torch.zeros_like(tau))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
@pytest.mark.parametrize("tau_shape", ["scalar", "channel", "every"])
def test_derivatives_of_every_order(device, layout, tau_shape):
    shape = (2, 3, 2, 2)
    tau = torch.rand(TAU_SHAPES[tau_shape](shape), dtype=torch.float64, device=device)
    x = lay_out(away_from_kink(torch.randn(shape, dtype=torch.float64, device=device), tau), layout)
    inputs = (leaf(x), leaf(tau))
    assert gradcheck(drsn_ops.soft_threshold, inputs, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(drsn_ops.soft_threshold, inputs, check_fwd_over_rev=True, check_rev_over_rev=True)


def test_higher_derivatives_work_from_the_mask(device):
    # The backward is linear in its gradient: a penalty on it has a derivative by the incoming gradient alone.
    x, weight = torch.randn(50, device=device), torch.randn(50, device=device, requires_grad=True)
    tau = torch.tensor(0.5, device=device, requires_grad=True)
    z = (x * weight).requires_grad_()
    dz, dtau = torch.autograd.grad((drsn_ops.soft_threshold(z, tau) ** 2).sum(), (z, tau), create_graph=True)
    (dz.square().sum() + dtau.square()).backward()
    found = weight.grad.clone()
    weight.grad = None
    z = x * weight
    dz, dtau = torch.autograd.grad((reference.soft_threshold(z, tau) ** 2).sum(), (z, tau), create_graph=True)
    (dz.square().sum() + dtau.square()).backward()
    torch.testing.assert_close(found, weight.grad)


@pytest.mark.parametrize("create_graph", [False, True])
def test_complex_tau_made_of_x_counts_once(device, create_graph):
    """With ``create_graph`` the gradient of x held tau's share too, which autograd then added again."""
    x = leaf(torch.randn(6, dtype=torch.complex128, device=device))
    y = drsn_ops.soft_threshold(x, x.abs() * 0.25)
    (dx,) = torch.autograd.grad(y.abs().sum(), x, create_graph=create_graph)
    torch.testing.assert_close(dx, 0.75 * x.detach().sgn())
