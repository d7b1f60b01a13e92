"""The threshold rules: values by hand, PyWavelets where it has the rule, gradients, and the conventions of each."""

import math

import numpy as np
import pytest
import pywt
import torch
from checks import REAL, assert_close

from drsn_ops import rules, soft_threshold

ODD = ("soft", "hard", "garrote", "firm", "smooth", "slope")
NAMES = (*ODD, "nonnegative")
X = [-4.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 4.0]
# at tau = 1
BY_HAND = {
    "soft": [-3.0, -1.0, -0.5, 0, 0, 0, 0, 0, 0.5, 1.0, 3.0],
    "hard": [-4.0, -2.0, -1.5, 0, 0, 0, 0, 0, 1.5, 2.0, 4.0],
    "garrote": [-3.75, -1.5, -5 / 6, 0, 0, 0, 0, 0, 5 / 6, 1.5, 3.75],
    "firm": [-4.0, -2.0, -1.0, 0, 0, 0, 0, 0, 1.0, 2.0, 4.0],
    "slope": [-3.1, -1.1, -0.6, -0.1, -0.05, 0, 0.05, 0.1, 0.6, 1.1, 3.1],
    "nonnegative": [0, 0, 0, 0, 0, 0, 0, 0, 0.5, 1.0, 3.0],
}
# derivatives by x and by tau at x = 0.5, 1, 1.5, 2 and 4
SLOPES = {
    "soft": ([0, 0, 1, 1, 1], [0, 0, -1, -1, -1]),
    "hard": ([0, 0, 1, 1, 1], [0, 0, 0, 0, 0]),
    "garrote": ([0, 0, 1 + 4 / 9, 1.25, 1.0625], [0, 0, -4 / 3, -1, -0.5]),
    "firm": ([0, 0, 2, 1, 1], [0, 0, -2, 0, 0]),
    "slope": ([0.1, 0.1, 1, 1, 1], [0, 0, -0.9, -0.9, -0.9]),
    "nonnegative": ([0, 0, 1, 1, 1], [0, 0, -1, -1, -1]),
}


def rule(name):
    return getattr(rules, name)


def features(*shape, dtype=torch.float64):
    torch.manual_seed(0)
    return torch.randn(*shape, dtype=dtype)


def away(x, tau):
    """x with the elements next to the kinks of every rule moved away: 0, tau, 2 tau."""
    for kink in (0, 1, 2):
        x = torch.where((x.abs() - kink * tau).abs() < 0.02, x + 0.05, x)
    return x


@pytest.mark.parametrize("name", BY_HAND)
def test_values_by_hand(name, device):
    x = torch.tensor(X, dtype=torch.float64, device=device)
    expected = torch.tensor(BY_HAND[name], dtype=torch.float64, device=device)
    tau = torch.ones(1, dtype=torch.float64, device=device)
    for threshold in (1, 1.0, tau[0], tau, torch.ones_like(x)):
        torch.testing.assert_close(rule(name)(x, threshold), expected, rtol=1e-15, atol=1e-15)


def test_values_of_the_smooth_rule(device):
    x = torch.tensor(X, dtype=torch.float64, device=device)
    for width in (0.03, 1.0):
        expected = [
            v + (math.sqrt((v - 1) ** 2 + width**2) - math.sqrt((v + 1) ** 2 + width**2)) / 2 for v in X
        ]
        y = rules.smooth(x, 1.0, width=width)
        torch.testing.assert_close(
            y, torch.tensor(expected, dtype=y.dtype, device=device), rtol=0, atol=1e-14
        )
    # at x = tau: 1 + (width - sqrt(4 + width^2)) / 2
    assert rules.smooth(torch.ones(1), 1.0).item() == pytest.approx(0.014888, abs=1e-6)


def test_the_smooth_rule_s_derivatives_at_zero():
    """They are those next to it; by the magnitude of x the third would be 0."""
    x = torch.tensor([0.0, 1e-9], dtype=torch.float64, requires_grad=True)
    y = rules.smooth(x, 0.1, width=0.2)
    for _ in range(3):
        (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    # 3 tau width^2 / (tau^2 + width^2)^(5/2)
    torch.testing.assert_close(y, torch.full_like(y, 3 * 0.1 * 0.2**2 / 0.05**2.5))


def test_large_and_small_numbers_of_the_smooth_rule(device):
    x, tau = torch.tensor([2e38, 1e32, 3e38]), torch.tensor([2e38, math.inf, 1e38])
    y = rules.smooth(x.to(device), tau.to(device))
    torch.testing.assert_close(y.cpu(), torch.tensor([0.0, 0.0, 2e38]))
    # widths that float32 does not have
    zeros = torch.zeros(2, device=device, requires_grad=True)
    for width in (1e-50, 1e50):
        y = rules.smooth(zeros, 0.0, width=width)
        y.sum().backward()
        assert y.tolist() == [0, 0] and zeros.grad.isfinite().all()


@pytest.mark.parametrize("name", SLOPES)
def test_derivatives_by_hand(name, device):
    x = torch.tensor([0.5, 1.0, 1.5, 2.0, 4.0], dtype=torch.float64, device=device)
    by_x, by_tau = (torch.tensor(d, dtype=torch.float64, device=device) for d in SLOPES[name])
    for sign in (1,) if name == "nonnegative" else (1, -1):
        leaf, tau = (sign * x).requires_grad_(), torch.ones_like(x).requires_grad_()
        rule(name)(leaf, tau).sum().backward()
        torch.testing.assert_close(leaf.grad, by_x, rtol=1e-14, atol=0)
        torch.testing.assert_close(tau.grad, sign * by_tau, rtol=1e-14, atol=0)


def test_options_by_hand(device):
    x = torch.tensor([0.5, 1.5, 2.0, 3.0, 4.0], dtype=torch.float64, device=device)
    assert rules.firm(x, 1.0, ratio=3.0).tolist() == [0, 0.75, 1.5, 3.0, 4.0]
    assert rules.slope(x, 1.0, slope=0.5).tolist() == [0.25, 1.0, 1.5, 2.5, 3.5]
    torch.testing.assert_close(rules.slope(x, 1.0, slope=0), rules.soft(x, 1.0))
    assert torch.equal(rules.slope(x, 1.0, slope=1), x)


PYWAVELETS = {
    "soft": lambda x, tau: pywt.threshold(x, tau, "soft"),
    "hard": lambda x, tau: pywt.threshold(x, tau, "hard"),
    "garrote": lambda x, tau: pywt.threshold(x, tau, "garrote"),
    "firm": lambda x, tau: pywt.threshold_firm(x, tau, 2 * tau),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("tau", [0.3, 1.2])
@pytest.mark.parametrize("name", PYWAVELETS)
def test_against_pywavelets(name, tau, dtype, device):
    x = features(5, 1000, dtype=dtype)
    expected = torch.from_numpy(PYWAVELETS[name](x.numpy(), tau))
    torch.testing.assert_close(rule(name)(x.to(device), tau).cpu(), expected, rtol=1e-13, atol=1e-14)


def test_no_nan_at_zero_where_pywavelets_has_one(device):
    with np.errstate(all="ignore"):
        theirs = [PYWAVELETS[name](np.zeros(1), 0.0).item() for name in ("soft", "garrote", "firm")]
    assert np.isnan(theirs).all()
    for name in NAMES:
        x = torch.zeros(3, dtype=torch.float64, device=device, requires_grad=True)
        tau = torch.zeros(3, dtype=torch.float64, device=device, requires_grad=True)
        y = rule(name)(x, tau)
        y.sum().backward()
        assert y.tolist() == tau.grad.tolist() == [0, 0, 0] and x.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(), (1,), (4,), (3, 1), (2, 1, 1), (2, 3, 4)])
@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(name, shape, device):
    tau = torch.linspace(0.4, 0.6, math.prod(shape), dtype=torch.float64).reshape(shape)
    x = away(features(2, 3, 4), tau).to(device).requires_grad_()
    tau = tau.to(device).requires_grad_()
    assert torch.autograd.gradcheck(rule(name), (x, tau))
    # hard is piecewise linear: its second derivatives are not there at all
    assert torch.autograd.gradgradcheck(rule(name), (x, tau))


@pytest.mark.parametrize("name", NAMES)
def test_transforms(name, device):
    tau = torch.full((4,), 0.5, dtype=torch.float64, device=device)
    x = away(features(3, 4), 0.5).to(device)
    _, tangent = torch.func.jvp(rule(name), (x, tau), (torch.ones_like(x), tau))
    by_x, by_tau = torch.func.vjp(rule(name), x, tau)[1](torch.ones_like(x))
    torch.testing.assert_close(tangent.sum(), by_x.sum() + (tau * by_tau).sum())
    torch.testing.assert_close(torch.func.vmap(rule(name), (0, None))(x, tau), rule(name)(x, tau))


@pytest.mark.parametrize("name", ODD)
def test_gradcheck_of_complex_numbers(name, device):
    x = away(features(2, 3, 4, dtype=torch.complex128), torch.tensor(0.5)).to(device).requires_grad_()
    tau = torch.full((3, 1), 0.5, dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(rule(name), (x, tau))


def test_gradcheck_of_a_learned_slope(device):
    tau = torch.full((4,), 0.5, dtype=torch.float64)
    x = away(features(2, 3, 4), tau).to(device).requires_grad_()
    slope = torch.tensor([[0.1], [0.5], [-0.2]], dtype=torch.float64, device=device, requires_grad=True)
    tau = tau.to(device).requires_grad_()
    assert torch.autograd.gradcheck(lambda *given: rules.slope(*given[:2], slope=given[2]), (x, tau, slope))


@pytest.mark.parametrize("name", ODD)
def test_complex_numbers_keep_their_phase(name, device):
    x = features(200, dtype=torch.complex128).to(device)
    y = rule(name)(x, 0.7)
    torch.testing.assert_close(y, torch.polar(rule(name)(x.abs(), 0.7), x.angle()), rtol=1e-12, atol=1e-14)
    real = features(200).to(device)
    torch.testing.assert_close(rule(name)(real + 0j, 0.7), rule(name)(real, 0.7) + 0j, rtol=1e-14, atol=1e-14)
    zero = torch.zeros(1, dtype=torch.complex128, device=device, requires_grad=True)
    rule(name)(zero, 0.7).abs().sum().backward()
    assert zero.grad.isfinite().all()


@pytest.mark.parametrize(
    "name, dtype",
    [(name, dtype) for name in NAMES for dtype in REAL] + [(name, torch.complex64) for name in ODD],
)
def test_narrow_types_are_rounded_once(name, dtype, device):
    x, tau = features(50, 40, dtype=torch.complex128 if dtype.is_complex else torch.float64).to(dtype), 0.625
    wide = x.to(torch.complex128 if dtype.is_complex else torch.float64)
    y = rule(name)(x.to(device), tau)
    assert y.dtype == dtype
    assert_close(y.cpu(), rule(name)(wide, tau))
    mixed = rule(name)(x.to(device), torch.full((40,), tau, device=device))
    assert mixed.dtype == dtype and torch.equal(mixed, y)


@pytest.mark.parametrize("name", NAMES)
def test_numbers_that_are_none_and_infinity(name, device):
    nan, inf = math.nan, math.inf
    x = torch.tensor([nan, 1.0, inf, -inf, 2.0, -2.0, 0.0], device=device)
    tau = torch.tensor([1.0, nan, 1.0, 1.0, inf, inf, inf], device=device)
    y = rule(name)(x, tau)
    expected = torch.tensor([nan, nan, inf, -inf, 0.0, 0.0, 0.0], device=device)
    if name == "nonnegative":
        expected[3] = 0
    if name == "slope":
        expected[4:6] = 0.1 * x[4:6]
    torch.testing.assert_close(y, expected, equal_nan=True)
    leaf, threshold = x[4:].clone().requires_grad_(), tau[4:].clone().requires_grad_()
    rule(name)(leaf, threshold).sum().backward()
    assert leaf.grad.isfinite().all() and threshold.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_a_number_above_the_largest_is_infinite(name, device):
    x = torch.tensor([1.0, -2.0, 3e38], device=device)
    assert torch.equal(rule(name)(x, 1e300), rule(name)(x, math.inf))


@pytest.mark.parametrize("name", ["hard", "garrote", "firm", "slope"])
def test_the_derivatives_at_infinity(name, device):
    x = torch.tensor([math.inf, -math.inf], device=device, requires_grad=True)
    tau = torch.ones(2, device=device, requires_grad=True)
    rule(name)(x, tau).sum().backward()
    assert x.grad.tolist() == [1, 1]
    if name == "hard":
        assert tau.grad.tolist() == [0, 0]
    assert rule(name)(x, math.nan).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_derivatives_of_denormal_numbers_are_small(name, dtype, device):
    tiny = torch.finfo(dtype).tiny
    x = (tiny * torch.tensor([0.25, 1e-2, -1e-6], dtype=dtype, device=device)).requires_grad_()
    tau = (x.detach().abs() / 2).requires_grad_()
    y = rule(name)(x, tau)
    y.sum().backward()
    assert (y.abs() <= x.abs()).all() and x.grad.abs().max() <= 2 and tau.grad.abs().max() <= 2


@pytest.mark.parametrize("tau", [0.0, 1e-41, 1.0])
@pytest.mark.parametrize("name", ODD)
def test_denormal_complex_numbers_have_derivatives(name, tau, device):
    z = torch.tensor([1e-40, 1e-40j, 0], dtype=torch.complex64, device=device, requires_grad=True)
    threshold = torch.full((3,), tau, device=device, requires_grad=True)
    y = rule(name)(z, threshold)
    torch.view_as_real(y).sum().backward()
    assert torch.view_as_real(z.grad).isfinite().all() and threshold.grad.isfinite().all()
    if tau == 0:
        assert torch.equal(y, z)


@pytest.mark.parametrize("name", NAMES)
def test_a_negative_entry_acts_as_zero(name, device):
    x = torch.tensor([-1.0, -0.2, 0.0, 0.3, 2.0], device=device, requires_grad=True)
    tau = torch.full((5,), -0.5, device=device, requires_grad=True)
    y = rule(name)(x, tau)
    torch.testing.assert_close(y, x.relu() if name == "nonnegative" else x)
    y.sum().backward()
    assert tau.grad.tolist() == [0, 0, 0, 0, 0]


def test_hard_gives_tau_zeros():
    tau = torch.ones(3, requires_grad=True)
    (gradient,) = torch.autograd.grad(rules.hard(torch.randn(2, 3), tau).sum(), tau)
    assert gradient.tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_x(name, device):
    y = rule(name)(torch.zeros(2, 0, 3, device=device), torch.ones(3, device=device))
    assert y.shape == (2, 0, 3)


@pytest.mark.parametrize("name", NAMES)
def test_compiles_without_a_graph_break(name):
    call = torch.compile(rule(name), fullgraph=True, backend="aot_eager")
    x, tau = (
        features(2, 3, 5).requires_grad_(),
        torch.full((3, 1), 0.5, dtype=torch.float64, requires_grad=True),
    )
    for given in (tau, 0.25, 0.75):
        torch.testing.assert_close(call(x, given), rule(name)(x, given))
    gradients = torch.autograd.grad(call(x, tau).sum(), (x, tau))
    for actual, expected in zip(
        gradients, torch.autograd.grad(rule(name)(x, tau).sum(), (x, tau)), strict=True
    ):
        torch.testing.assert_close(actual, expected)


def test_inductor_compiles_them():
    """All in one graph: a kernel of its own for each would take a minute."""

    def all_of(x, tau):
        return [rule(name)(x, tau) for name in NAMES]

    x, tau = features(3, 4, 65, dtype=torch.float32), torch.rand(4, 1)
    for actual, expected in zip(torch.compile(all_of, fullgraph=True)(x, tau), all_of(x, tau), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("name", NAMES)
def test_torch_fx_and_subclasses_see_one_function(name):
    graph = torch.fx.symbolic_trace(lambda x, tau: rule(name)(x, tau) + 1)
    assert [node.target for node in graph.graph.nodes if node.op == "call_function"][0] in (
        rule(name),
        soft_threshold,
    )
    x = features(4, 5)
    torch.testing.assert_close(graph(x, 0.5), rule(name)(x, 0.5) + 1)

    class Tagged(torch.Tensor):
        pass

    assert type(rule(name)(x.as_subclass(Tagged), 0.5)) is Tagged


X3 = torch.zeros(2, 3)
ERRORS = [
    (lambda name: rule(name)([1.0], 1.0), TypeError, r"x: got list, expected a tensor"),
    (
        lambda name: rule(name)(X3.int(), 1.0),
        TypeError,
        r"x: got a tensor of torch.int32, expected one of float16",
    ),
    (lambda name: rule(name)(X3, "1"), TypeError, r"tau: got str, expected a number or a tensor"),
    (lambda name: rule(name)(X3, -1.0), ValueError, r"tau: got -1.0, expected a number >= 0"),
    (lambda name: rule(name)(X3, X3.int()), TypeError, r"tau: got a tensor of torch.int32, expected a real"),
    (
        lambda name: rule(name)(X3, torch.ones(2)),
        ValueError,
        r"tau: got shape \(2,\), expected one that broadcasts to x, \(2, 3\)",
    ),
    (
        lambda name: rule(name)(X3, torch.ones(1, 2, 3)),
        ValueError,
        r"tau: got shape \(1, 2, 3\), expected one that broadcasts",
    ),
]


@pytest.mark.parametrize("call, kind, message", ERRORS, ids=[message for *_, message in ERRORS])
@pytest.mark.parametrize("name", NAMES)
def test_errors(name, call, kind, message):
    with pytest.raises(kind, match=message):
        call(name)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: rules.firm(X3, 1.0, ratio=1), r"ratio: got 1, expected a finite number above 1"),
        (lambda: rules.firm(X3, 1.0, ratio=math.inf), r"ratio: got inf, expected"),
        (lambda: rules.smooth(X3, 1.0, width=0.0), r"width: got 0.0, expected a finite number above 0"),
        (lambda: rules.slope(X3, 1.0, slope=-0.1), r"slope: got -0.1, expected a number from 0 to 1"),
        (
            lambda: rules.slope(X3, 1.0, slope=torch.ones(2)),
            r"slope: got shape \(2,\), expected one that broad",
        ),
    ],
)
def test_bad_options(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("given", ["2", None, True, torch.tensor(2.0)], ids=repr)
def test_options_that_are_no_numbers(given):
    with pytest.raises(TypeError, match=r"ratio: got .*, expected a finite number above 1"):
        rules.firm(X3, 1.0, ratio=given)
    with pytest.raises(TypeError, match=r"width: got .*, expected a finite number above 0"):
        rules.smooth(X3, 1.0, width=given)


def test_nonnegative_takes_no_complex_numbers():
    with pytest.raises(TypeError, match="x: got a tensor of torch.complex64, expected one of float16"):
        rules.nonnegative(X3 + 0j, 1.0)
