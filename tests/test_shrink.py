"""abs_mean and shrink: values, derivatives, layouts and types, against the reference."""

import math

import pytest
import torch
from checks import EMPTY, LAYOUTS, REAL, SHAPES, assert_close, at_kinks, lay_out, leaf, pairwise
from torch.autograd import gradcheck, gradgradcheck

import drsn_ops
from drsn_ops import reference
from drsn_ops.reference import accumulator

STATISTICS = ("channel", "sample")
ALPHA_SHAPES = {"row": lambda n, c: (n, c), "sample": lambda n, c: (n, 1), "channel": lambda n, c: (c,)}


def make(shape, alpha_shape, dtype, device):
    """x and alpha."""
    alpha = torch.rand(ALPHA_SHAPES[alpha_shape](*shape[:2]), device=device)
    return torch.randn(shape, device=device).to(dtype), alpha


def test_literal_values(device):
    x = torch.tensor([[[1.0, -3.0], [0.0, 0.0]]], device=device, requires_grad=True)
    alpha = torch.tensor([[0.5, 0.5]], device=device, requires_grad=True)
    y, tau = drsn_ops.shrink(x, alpha, return_threshold=True)
    assert y.tolist() == [[[0.0, -2.0], [0.0, 0.0]]] and tau.tolist() == [[1.0, 0.0]]
    y.backward(torch.tensor([[[5.0, 8.0], [3.0, 7.0]]], device=device))
    # d_tau = 8, d_alpha = 8 * 2, d_mean = 8 / 2, shared by two elements along their signs; an all-zero row gets 0
    assert alpha.grad.tolist() == [[16.0, 0.0]]
    assert x.grad.tolist() == [[[2.0, 6.0], [0.0, 0.0]]]


def test_literal_values_of_a_sample(device):
    x = torch.tensor([[[1.0, -3.0], [0.0, 4.0]]], device=device, requires_grad=True)
    alpha = torch.tensor([[0.5]], device=device, requires_grad=True)
    y, tau = drsn_ops.shrink(x, alpha, statistic="sample", return_threshold=True)
    assert y.tolist() == [[[0.0, -2.0], [0.0, 3.0]]] and tau.tolist() == [[1.0]]
    y.backward(torch.tensor([[[1.0, 8.0], [1.0, 4.0]]], device=device))
    # d_tau = 8 - 4, d_alpha = 4 * 2, d_mean = 4 / 2, shared by four elements
    assert alpha.grad.tolist() == [[8.0]]
    assert x.grad.tolist() == [[[0.5, 7.5], [0.0, 4.5]]]


@pytest.mark.parametrize("shape, statistic, alpha_shape", pairwise(SHAPES, STATISTICS, ALPHA_SHAPES), ids=str)
def test_shapes_against_the_reference(device, shape, statistic, alpha_shape):
    x, alpha = make(shape, alpha_shape, torch.float32, device)
    compare(x, alpha, statistic, torch.randn(shape, device=device), None)


@pytest.mark.parametrize(
    "layout, dtype, statistic, shape",
    pairwise(LAYOUTS, REAL, STATISTICS, ((3, 4, 9), (2, 3, 7, 7), (2, 100, 5, 5), (2, 3, 4, 5, 6))),
    ids=str,
)
def test_layouts_and_types_against_the_reference(device, layout, dtype, statistic, shape):
    x, alpha = make(shape, "row", dtype, device)
    grad, residual = (torch.randn(shape, device=device).to(dtype) for _ in range(2))
    compare(x, lay_out(alpha, "sliced"), statistic, grad, residual, layout)


def compare(x, alpha, statistic, grad, residual, layout="contiguous"):
    wide = accumulator(x.dtype)
    x = lay_out(x, layout)
    _, tau = reference.shrink(x.double(), alpha.double(), statistic=statistic, return_threshold=True)
    # of any sample: where the gradient is expanded, all have that of the first
    grad = grad.masked_fill(at_kinks(x, reference.per_row(tau, x)).any(0, keepdim=True), 0)
    grad, residual = lay_out(grad, layout), None if residual is None else lay_out(residual, layout)
    mixed = {} if residual is None else {"residual": leaf(residual)}
    wide_mixed = {} if residual is None else {"residual": leaf(residual.double())}
    x, alpha = leaf(x), leaf(alpha)
    wide_x, wide_alpha = leaf(x.double()), leaf(alpha.double())
    options = {"statistic": statistic, "return_threshold": True}
    y, tau = drsn_ops.shrink(x, alpha, **options, **mixed)
    expected, expected_tau = reference.shrink(wide_x, wide_alpha, **options, **wide_mixed)
    assert y.dtype == x.dtype and tau.dtype == wide and tau.shape == expected_tau.shape
    assert_close(y, expected)
    assert_close(tau, expected_tau)
    detached = {key: value.detach() for key, value in mixed.items()}
    assert torch.equal(drsn_ops.shrink(x.detach(), alpha.detach(), statistic=statistic, **detached), y)
    inputs, wide_inputs = (x, alpha, *mixed.values()), (wide_x, wide_alpha, *wide_mixed.values())
    found = torch.autograd.grad(y, inputs, grad, retain_graph=True)
    wanted = torch.autograd.grad(expected, wide_inputs, grad.double(), retain_graph=True)
    terms = grad.abs().sum().item()
    assert_close(found[0], wanted[0])
    assert_close(found[1], wanted[1], terms=terms)
    for a, b in zip(found[2:], wanted[2:], strict=True):
        assert_close(a, b)
    both = torch.autograd.grad((y, tau), (x, alpha), (grad, torch.ones_like(tau)))
    wanted = torch.autograd.grad(
        (expected, expected_tau), (wide_x, wide_alpha), (grad.double(), torch.ones_like(expected_tau))
    )
    assert_close(both[0], wanted[0])
    assert_close(both[1], wanted[1], terms=terms + x.detach().abs().sum().item())


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_more_pieces_than_one(device, statistic, layout):
    # Rows and samples long enough to be shared out between threads, and fewer than there may be threads.
    x, alpha = make((1, 3, 90_001), "row", torch.float32, device)
    compare(x, alpha, statistic, torch.randn(x.shape, device=device), None, layout)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_a_number_for_alpha(device, statistic):
    x = torch.randn(3, 4, 10, device=device)
    alpha = torch.full((3, 4), 0.25, device=device)
    assert torch.equal(
        drsn_ops.shrink(x, 0.25, statistic=statistic), drsn_ops.shrink(x, alpha, statistic=statistic)
    )


def test_alpha_of_zero_is_the_identity_and_a_negative_one_too(device):
    # of an odd number of signs, which have a sum
    x, alpha = leaf(torch.randn(2, 3, 21, device=device)), leaf(torch.tensor([0.0, -1.0, 0.5], device=device))
    y = drsn_ops.shrink(x, alpha)
    assert torch.equal(y[:, :2], x[:, :2])
    y.sum().backward()
    assert alpha.grad[1] == 0 and alpha.grad[0] != 0
    assert torch.equal(x.grad[:, 1], torch.ones_like(x.grad[:, 1]))


def test_scaling_by_a_power_of_two_is_exact(device):
    x, alpha = torch.randn(2, 3, 50, device=device), torch.rand(2, 3, device=device)
    assert torch.equal(drsn_ops.shrink(x * 8, alpha), drsn_ops.shrink(x, alpha) * 8)


@pytest.mark.parametrize("statistic, poisoned", [("channel", 1), ("sample", 3)])
def test_nan_stays_where_its_statistic_reaches(device, statistic, poisoned):
    x = torch.randn(2, 3, 20, device=device)
    x[0, 0, 5] = math.nan
    y = drsn_ops.shrink(x, 0.5, statistic=statistic)
    assert y.isnan().all(-1).sum() == poisoned and y.isnan().any(-1).sum() == poisoned


def test_inf_makes_its_row_zero(device):
    x = torch.randn(1, 2, 10, device=device)
    x[0, 0, 3] = math.inf
    y = drsn_ops.shrink(x, 0.5)
    assert y[0, 0, 3].isnan() and y[0, 0].nan_to_num().abs().max() == 0 and y[0, 1].isfinite().all()


@pytest.mark.parametrize("shape", EMPTY, ids=str)
@pytest.mark.parametrize("statistic", STATISTICS)
def test_without_elements(device, shape, statistic):
    x, alpha = leaf(torch.randn(shape, device=device)), leaf(torch.rand(shape[1], device=device))
    y, tau = drsn_ops.shrink(x, alpha, statistic=statistic, return_threshold=True)
    assert y.shape == x.shape and (tau == 0).all()
    (y.sum() + tau.sum()).backward()
    assert x.grad.shape == x.shape and (alpha.grad == 0).all()
    mean = drsn_ops.abs_mean(x.detach(), statistic=statistic)
    assert mean.shape == (shape[0], shape[1] if statistic == "channel" else 1) and (mean == 0).all()


def test_a_residual_of_another_type_widens_the_result(device):
    x = torch.randn(2, 3, 10, device=device).bfloat16()
    residual = torch.randn(2, 3, 10, device=device)
    y = drsn_ops.shrink(x, 0.5, residual=residual)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, drsn_ops.shrink(x, 0.5) + residual)
    assert drsn_ops.shrink(x, 0.5, residual=residual, inplace=True).dtype == torch.bfloat16


@pytest.mark.parametrize("layout", LAYOUTS[:-1])
@pytest.mark.parametrize("needs_grad", [False, True])
def test_in_place(device, layout, needs_grad):
    start = torch.randn(2, 3, 4, 5, device=device, requires_grad=needs_grad)
    residual = torch.randn(2, 3, 4, 5, device=device, requires_grad=needs_grad)
    x = lay_out(start * 1, layout)
    other = start.detach().clone().requires_grad_(needs_grad)
    expected = drsn_ops.shrink(other, 0.5, residual=residual)
    version = x._version
    y = drsn_ops.shrink(x, 0.5, residual=residual, inplace=True)
    assert y is x and x._version > version
    torch.testing.assert_close(y, expected)
    if needs_grad:
        grad = torch.randn_like(y)
        wanted = torch.autograd.grad(expected, (other, residual), grad)
        torch.testing.assert_close(torch.autograd.grad(y, (start, residual), grad), wanted)


def test_in_place_on_a_leaf_or_a_view(device):
    leaf_ = torch.randn(2, 3, 5, device=device, requires_grad=True)
    before = leaf_.detach().clone()
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad"):
        drsn_ops.shrink(leaf_, 0.5, inplace=True)
    assert torch.equal(leaf_.detach(), before)
    base = leaf_ * 1
    drsn_ops.shrink(base[:1], 0.5, inplace=True)
    torch.testing.assert_close(base, torch.cat([drsn_ops.shrink(leaf_[:1], 0.5), leaf_[1:]]))
    base.sum().backward()
    assert torch.equal(leaf_.grad[1:], torch.ones_like(leaf_.grad[1:]))


@pytest.mark.parametrize(
    "layout, statistic, alpha_shape",
    pairwise(("contiguous", "channels_last"), STATISTICS, ALPHA_SHAPES),
)
def test_derivatives_of_every_order(device, layout, statistic, alpha_shape):
    x, alpha = make((2, 3, 2, 1), alpha_shape, torch.float64, device)
    inputs = (leaf(lay_out(x, layout)), leaf(alpha.double()), leaf(torch.randn_like(x)))

    def function(x, alpha, residual):
        return drsn_ops.shrink(x, alpha, statistic=statistic, residual=residual, return_threshold=True)

    assert gradcheck(function, inputs, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(function, inputs, check_fwd_over_rev=True)


@pytest.mark.parametrize(
    "layout, dtype, statistic, shape",
    pairwise(LAYOUTS, REAL, STATISTICS, ((3, 5), (2, 3, 7, 7), (2, 70, 33), (2, 3, 4097), (1, 1, 70_000))),
    ids=str,
)
def test_abs_mean_against_the_reference(device, layout, dtype, statistic, shape):
    compare_abs_mean(lay_out(torch.randn(shape, device=device).to(dtype), layout), statistic)


def compare_abs_mean(x, statistic):
    x, wide_x = leaf(x), leaf(x.double())
    mean = drsn_ops.abs_mean(x, statistic=statistic)
    expected = reference.abs_mean(wide_x, statistic=statistic)
    assert mean.dtype == accumulator(x.dtype)
    assert_close(mean, expected)
    assert torch.equal(drsn_ops.abs_mean(x.detach(), statistic=statistic), mean)
    grad = torch.randn_like(mean)
    dx = torch.autograd.grad(mean, x, grad)[0]
    assert_close(dx, torch.autograd.grad(expected, wide_x, grad.double())[0])


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_abs_mean_derivatives(device, statistic, layout):
    x = leaf(lay_out(torch.randn(2, 3, 2, 2, dtype=torch.float64, device=device), layout))

    def function(x):
        return drsn_ops.abs_mean(x, statistic=statistic)

    assert gradcheck(function, x, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(lambda x: function(x) ** 2, x)


def test_abs_mean_of_sixteen_bit_numbers_does_not_saturate(device):
    assert (
        drsn_ops.abs_mean(torch.full((1, 1, 100_000), 2.0, dtype=torch.float16, device=device)).item() == 2.0
    )
    assert (
        drsn_ops.abs_mean(torch.full((1, 1, 100_000), 60_000.0, dtype=torch.float16, device=device)) == 60_000
    )


def test_abs_mean_has_no_gradient_at_zero(device):
    x = torch.zeros(1, 2, 9, device=device, requires_grad=True)
    drsn_ops.abs_mean(x).sum().backward()
    assert (x.grad == 0).all()


@pytest.mark.parametrize("shape", [(4,), (5, 4), (5, 1)], ids=str)
def test_a_compiled_alpha_of_static_sizes(device, no_caches, shape):
    """A parameter's sizes are numbers to the compiler also where it follows those of x."""
    x, alpha = torch.randn(5, 4, 8, device=device), torch.nn.Parameter(torch.rand(shape, device=device))
    compiled = torch.compile(drsn_ops.shrink, fullgraph=True, dynamic=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, alpha), drsn_ops.shrink(x, alpha))
