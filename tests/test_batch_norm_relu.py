"""The operator that normalises and applies a ReLU, alone and at the beginning of a residual unit."""

import copy
import pickle

import pytest
import torch
from checks import (
    LAYOUTS,
    REFUSAL,
    SHAPES,
    Replaced,
    assert_close,
    assert_same_bits,
    lay_out,
    leaf,
    make_features,
    operators_of,
    pairwise,
    randomise,
)
from torch import nn
from torch._dynamo.backends.debugging import aot_eager
from torch.autograd import gradcheck, gradgradcheck
from torch.func import vmap
from torch.library import opcheck

import drsn_ops
from drsn_ops import functional, reference
from drsn_ops.layers import BATCH_NORMS, pad_same
from drsn_ops.ops.gate import Norm
from drsn_ops.ops.masks import is_channels_last
from drsn_ops.ops.plain_gate import plain_batch_norm

ops = torch.ops.drsn_ops
NARROW = (torch.float32, torch.bfloat16, torch.float16)


def fused(function, *args):
    return any(name.startswith("batch_norm_relu") for name in operators_of(function, *args))


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def make(shape, device="cpu", *, train=True, **options):
    """A BatchNorm for x of this shape; float64."""
    batch_norm = randomise(BATCH_NORMS[max(len(shape) - 2, 1)](shape[1], **options).double())
    return batch_norm.train(train).to(device)


def unit_formula(x, batch_norm, stride, channels):
    """`functional.pre_activation` as the modules of a residual unit compute it."""
    unit = drsn_ops.RSBU(x.shape[1], channels or x.shape[1], stride=stride, dim=x.dim() - 2, thresholds=None)
    y = pad_same(batch_norm(x).relu(), stride)
    return (y, unit.shortcut(x)) if channels else (y,)


def gradients(results, inputs, grads):
    pairs = [(y, g) for y, g in zip(results, grads, strict=True) if g is not None]
    results, grads = zip(*pairs, strict=True)
    return torch.autograd.grad(results, inputs, grads, allow_unused=True)


def compare(function, formula, x, batch_norm, sides=(True, True)):
    """Values, gradients through the chosen results and buffers, against a formula of the modules; float64."""
    other, x, other_x = copy.deepcopy(batch_norm), leaf(x), leaf(x)
    found, expected = function(x, batch_norm), formula(other_x, other)
    close(found, expected)
    close(list(batch_norm.buffers()), list(other.buffers()))
    grads = [torch.randn_like(y) if wanted else None for y, wanted in zip(expected, sides, strict=False)]
    ours = gradients(found, [x, *batch_norm.parameters()], grads)
    others = gradients(expected, [other_x, *other.parameters()], grads)
    assert [t is None for t in ours] == [t is None for t in others]
    close([t for t in ours if t is not None], [t for t in others if t is not None])
    return found


def compare_alone(x, batch_norm):
    """`batch_norm_relu` against the modules."""

    def results(function):
        return lambda *args: (function(*args),)

    return compare(results(drsn_ops.batch_norm_relu), results(reference.batch_norm_relu), x, batch_norm)[0]


def compare_in_unit(x, batch_norm, stride, channels, sides=(True, True), function=functional.pre_activation):
    """`pre_activation` against the modules."""

    def results(*args):
        y, shortcut = function(*args, stride, channels)
        assert (shortcut is None) == (channels is None)
        return (y,) if shortcut is None else (y, shortcut)

    return compare(results, lambda *args: unit_formula(*args, stride, channels), x, batch_norm, sides)


@pytest.mark.parametrize("shape, layout, train", pairwise(SHAPES, LAYOUTS, (True, False)), ids=str)
def test_against_the_modules(device, shape, layout, train):
    if shape[0] == 1 and len(shape) == 2 or layout == "expanded" and len(shape) == 2:
        train = False  # one value has no statistics, and equal ones amplify rounding
    x = lay_out(make_features(shape, device) + 0.3, layout)
    batch_norm = make(shape, device, train=train)
    y = compare_alone(x, batch_norm)
    assert fused(drsn_ops.batch_norm_relu, x, batch_norm)
    assert is_channels_last(y) == is_channels_last(x)


GEOMETRIES = pairwise(
    (1, 2, 3, 4, 7),
    ((3, 4, 8), (2, 3, 7), (1, 4, 9), (5, 2, 1), (2, 3, 6, 5), (3, 1, 4, 4), (2, 3, 1, 6), (2, 2, 5, 4, 3)),
    (None, 0, 1, 2, 5),  # channels more than x's; None without a shortcut
    ("contiguous", "channels_last", "transposed"),
    (True, False),
)


@pytest.mark.parametrize("stride, shape, extra, layout, train", GEOMETRIES, ids=str)
def test_padding_and_shortcut(device, stride, shape, extra, layout, train):
    x = lay_out(make_features(shape, device) + 0.3, layout)
    channels = None if extra is None else shape[1] + extra
    for t in compare_in_unit(x, make(shape, device, train=train), stride, channels):
        assert is_channels_last(t) == (is_channels_last(x) and not t.is_contiguous())
    assert fused(functional.pre_activation, x, make(shape, device, train=train), stride, channels)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("stride, channels", [(1, 3), (1, 5), (2, 3), (2, 8)])
@pytest.mark.parametrize("sides", [(True, False), (False, True)])
def test_the_gradient_of_one_result_alone(device, sides, stride, channels, layout):
    x = lay_out(make_features((4, 3, 9), device), layout)
    compare_in_unit(x, make(x.shape, device), stride, channels, sides)


@pytest.mark.parametrize("stride, channels", [(1, None), (1, 3), (2, 5)])
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_the_gradient_of_one_parameter_alone(device, name, stride, channels):
    x, batch_norm = make_features((4, 3, 9), device), make((4, 3, 9), device).requires_grad_(False)
    parameter = getattr(batch_norm, name).requires_grad_()
    expected = unit_formula(x, batch_norm, stride, channels)
    found = functional.pre_activation(x, batch_norm, stride, channels)[: len(expected)]
    close(found, expected)
    ours, others = (torch.autograd.grad(y.square().sum(), parameter) for y, *_ in (found, expected))
    close(ours, others)


def test_a_shortcut_that_is_x_shares_its_memory(device):
    """Nobody may write into it, or into x, between the two passes."""
    x, batch_norm = leaf(make_features((4, 3, 9), device)) * 1, make((4, 3, 9), device)
    y, shortcut = functional.pre_activation(x, batch_norm, 1, 3)
    assert shortcut.data_ptr() == x.data_ptr() and torch.equal(shortcut, x)
    before = x.detach().clone()
    with pytest.raises(RuntimeError, match="is a view and is being modified inplace"):
        shortcut.add_(1)
    assert torch.equal(x, before)
    with torch.no_grad():
        x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_what_the_backward_pass_keeps(device):
    """x itself, the weights and two numbers a channel: no mask and no result."""
    x, batch_norm, kept = leaf(make_features((4, 3, 9), device)), make((4, 3, 9), device), []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda _: None):
        functional.pre_activation(x, batch_norm, 2, 5)
    assert [t.data_ptr() for t in kept[:3]] == [t.data_ptr() for t in (x, *batch_norm.parameters())]
    assert [t.shape for t in kept[3:]] == [(2, 3)]


@pytest.mark.parametrize("momentum", [None, 0.0, 0.3, 1.0])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("tracks", [True, False])
def test_options(device, momentum, affine, tracks):
    options = {"momentum": momentum, "affine": affine, "track_running_stats": tracks, "eps": 1e-3}
    batch_norm = make((4, 3, 9), device, **options)
    for step in range(3):
        compare_alone(make_features((3 + step, 3, 9), device), batch_norm)
    compare_alone(make_features((4, 3, 9), device), batch_norm.eval())
    assert fused(drsn_ops.batch_norm_relu, make_features((4, 3, 9), device), batch_norm)


@pytest.mark.parametrize("train", [True, False])
def test_without_gradients(device, train):
    batch_norm = make((4, 3, 9), device, train=train)
    other, x = copy.deepcopy(batch_norm), make_features((4, 3, 9), device)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            y, shortcut = functional.pre_activation(x, batch_norm, 1, 3)
            close(y, reference.batch_norm_relu(x, other))
        assert shortcut is x
        close(list(batch_norm.buffers()), list(other.buffers()))


def test_the_counter_of_batches_has_a_new_version(device):
    batch_norm, x = make((4, 3, 9), device).requires_grad_(False), make_features((4, 3, 9), device)
    for source in (x, leaf(x)):
        version = batch_norm.num_batches_tracked._version
        drsn_ops.batch_norm_relu(source, batch_norm)
        assert batch_norm.num_batches_tracked._version > version


def compare_rounded(x, batch_norm, stride=1, channels=None):
    """Values, gradients and buffers, up to the rounding of x's type, against the modules in float64."""
    exact, exact_x = copy.deepcopy(batch_norm).double(), leaf(x.double())
    # where rounding may put an element on the other side of 0, its gradient is 0
    normal = copy.deepcopy(exact)(exact_x).detach()
    width = (x.double().abs().amax() + 1) * 2.0**-20
    slope = 1 if exact.weight is None else exact.weight.detach().abs().max()
    var = x.double().transpose(0, 1).flatten(1).var(1, correction=0).min()
    if not exact.training:
        var = exact.running_var.min()
    near = normal.abs() <= width * slope * (var + exact.eps).rsqrt()
    assert near.sum() <= 2 + near.numel() / 50
    x = leaf(x)
    found = [t for t in functional.pre_activation(x, batch_norm, stride, channels) if t is not None]
    expected = unit_formula(exact_x, exact, stride, channels)
    grads = [torch.randn(y.shape, device=x.device).to(x.dtype) for y in expected]
    grads[0] = lay_out(grads[0].masked_fill(pad_same(near.double(), stride) > 0, 0), "contiguous")
    scale = (exact_x.detach().abs().max() * (var + exact.eps).rsqrt()).item() + 1
    for y, wanted in zip(found, expected, strict=True):
        assert y.dtype == x.dtype
        assert_close(y, wanted, terms=scale)
    ours = torch.autograd.grad(found, (x, *batch_norm.parameters()), grads)
    wanted = torch.autograd.grad(expected, (exact_x, *exact.parameters()), [g.double() for g in grads])
    terms = scale * grads[0].double().abs().sum().item()
    for a, b in zip(ours, wanted, strict=True):
        assert_close(a, b, terms=terms)
    for a, b in zip(batch_norm.buffers(), exact.buffers(), strict=True):
        assert_close(a, b, terms=scale) if a.is_floating_point() else close(a, b)


@pytest.mark.parametrize(
    "dtype, wide, train, shape, layout",
    pairwise(
        NARROW,
        (True, False),
        (True, False),
        ((6, 9, 50), (5, 33, 7, 7), (3, 4, 600), (2, 16, 301), (2, 40, 3, 4, 5)),
        ("contiguous", "channels_last"),
    ),
    ids=str,
)
def test_narrow_types(device, dtype, wide, train, shape, layout):
    batch_norm = make(shape, device, train=train).to(torch.float32 if wide else dtype)
    compare_rounded(lay_out(make_features(shape, device).to(dtype), layout), batch_norm)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 17, 24, 32, 33, 48, 64, 100])
def test_numbers_of_channels(device, channels, layout):
    """In channels_last they decide how sums are shared out to the lanes of a vector."""
    for length, dtype, stride in ((1, torch.float32, 1), (5, torch.float32, 2), (70, torch.bfloat16, 2)):
        x = lay_out(make_features((7, channels, length), device).to(dtype), layout)
        batch_norm = make(x.shape, device, train=length > 1).float()
        compare_rounded(x, batch_norm, stride, channels + 3)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_mean_of_many_deviations(device, layout):
    """Sums of squares would leave nothing of such a variance."""
    x = lay_out(make_features((8, 4, 500), device) + 1000, layout).float()
    batch_norm = make(x.shape, device).float()
    var = x.double().transpose(0, 1).flatten(1).var(1)
    expected = 0.9 * batch_norm.running_var.double() + 0.1 * var
    drsn_ops.batch_norm_relu(x, batch_norm)
    torch.testing.assert_close(batch_norm.running_var.double(), expected, rtol=2e-6, atol=0)


def test_what_is_not_finite(device):
    """NaN comes through; in evaluation it stays where it is, and so do gradients."""
    x = make_features((2, 2, 3), device)
    x[0, 0, :2], x[1, 1, 0] = torch.tensor([torch.nan, torch.inf]), -torch.inf
    batch_norm = make(x.shape, device, train=False)
    x, other = leaf(x), leaf(x)
    y, expected = drsn_ops.batch_norm_relu(x, batch_norm), reference.batch_norm_relu(other, batch_norm)
    torch.testing.assert_close(y, expected, equal_nan=True)
    ours, others = (torch.autograd.grad(result.sum(), t)[0] for result, t in ((y, x), (expected, other)))
    assert others.isfinite().all()
    close(ours, others)


@pytest.mark.parametrize("shape", [(0, 3, 5), (2, 3, 0), (0, 3)], ids=str)
@pytest.mark.parametrize("train", [True, False])
def test_without_elements(device, shape, train):
    """The same as the modules, or the same refusal."""
    batch_norm, x = make(shape, device, train=train), make_features(shape, device)
    try:
        expected = reference.batch_norm_relu(x, copy.deepcopy(batch_norm))
    except (ValueError, RuntimeError) as error:
        with pytest.raises(type(error)):
            drsn_ops.batch_norm_relu(x, batch_norm)
    else:
        close(drsn_ops.batch_norm_relu(x, batch_norm), expected)


class Subclass(nn.BatchNorm1d):
    """Another class, though it computes the same."""


ATTACHMENTS = {
    "hook": lambda bn: bn.register_forward_hook(lambda *_: None),
    "pre-hook": lambda bn: bn.register_forward_pre_hook(lambda *_: None),
    "backward hook": lambda bn: bn.register_full_backward_hook(lambda *_: None),
    "replaced forward": lambda bn: setattr(bn, "forward", bn.forward),
    "subclass": lambda bn: setattr(bn, "__class__", Subclass),
    "parametrization": lambda bn: nn.utils.parametrize.register_parametrization(bn, "weight", nn.Identity()),
    "negative momentum": lambda bn: setattr(bn, "momentum", -0.5),
}


@pytest.mark.parametrize("attachment", ATTACHMENTS)
def test_modules_with_attachments_are_called(device, attachment):
    batch_norm, x = make((4, 3, 9), device), make_features((4, 3, 9), device)
    assert fused(drsn_ops.batch_norm_relu, x, batch_norm)
    ATTACHMENTS[attachment](batch_norm)
    assert not fused(drsn_ops.batch_norm_relu, x, batch_norm)
    assert functional.pre_activation(x, batch_norm, 2, 5) is None
    if attachment != "replaced forward":  # a copy would still call the original
        compare_alone(x, batch_norm)


def test_what_a_hook_has_kept_stays(device):
    batch_norm, x, kept = make((4, 3, 9), device), make_features((4, 3, 9), device), []
    batch_norm.register_forward_hook(lambda module, inputs, y: kept.append(y))
    y = drsn_ops.batch_norm_relu(x, batch_norm)
    assert kept[0].min() < 0 and torch.equal(y, kept[0].relu())


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("name", ["forward", "__call__"])
def test_a_method_replaced_on_the_class_runs(device, axes, name):
    x, seen = make_features((4, 3, *[5] * axes), device), []
    batch_norm = make(x.shape, device)
    handle = Replaced(type(batch_norm), name, lambda: seen.append(1))
    try:
        assert not fused(drsn_ops.batch_norm_relu, x, batch_norm) and seen
    finally:
        handle.remove()
    assert fused(drsn_ops.batch_norm_relu, x, batch_norm)


def test_other_modules_are_called(device):
    x = make_features((3, 4, 9), device)
    for other in (nn.GroupNorm(2, 4), nn.Identity(), nn.InstanceNorm1d(4), nn.SyncBatchNorm(4).eval()):
        module = other.double().to(device)
        assert not fused(drsn_ops.batch_norm_relu, x, module)
        compare_alone(x, module)
    with pytest.raises(ValueError, match="expected 4D input"):
        drsn_ops.batch_norm_relu(x, nn.BatchNorm2d(4).double().to(device))


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1), (1, 3, 1, 1)], ids=str)
def test_one_value_a_channel(device, shape):
    batch_norm, x = make(shape, device), make_features(shape, device)
    before = [b.clone() for b in batch_norm.buffers()]
    with pytest.raises(ValueError, match=r"x: got one value a channel.*Expected more than 1 value per chan"):
        drsn_ops.batch_norm_relu(x, batch_norm)
    assert all(torch.equal(a, b) for a, b in zip(batch_norm.buffers(), before, strict=True))
    compare_alone(x, batch_norm.eval())


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("stride, channels", [(1, None), (1, 3), (1, 4), (2, 5)])
def test_derivatives_of_every_order(device, stride, channels, train):
    batch_norm = make((3, 3, 4), device, train=train, momentum=0.0)
    inputs = tuple(leaf(t) for t in (make_features((3, 3, 4), device), *batch_norm.parameters()))

    def function(x, weight, bias):
        batch_norm._parameters.update(weight=weight, bias=bias)
        y, shortcut = functional.pre_activation(x, batch_norm, stride, channels)
        return y if shortcut is None else (y, shortcut * 1)

    assert fused(function, *inputs)
    assert gradcheck(function, inputs, check_batched_grad=True)
    assert gradgradcheck(function, inputs, check_batched_grad=True)


def test_x_made_of_a_parameter_counts_once(device):
    """A parameter that x is made of too gets both shares, each once."""
    batch_norm = make((4, 3, 9), device)
    other, base = copy.deepcopy(batch_norm), make_features((4, 3, 9), device)
    for create_graph in (False, True):
        found, expected = (
            torch.autograd.grad(
                function(base * module.weight[:, None], module).square().sum(),
                module.weight,
                create_graph=create_graph,
            )
            for function, module in (
                (drsn_ops.batch_norm_relu, batch_norm),
                (reference.batch_norm_relu, other),
            )
        )
        close(found, expected)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("train, stride, channels", [(True, 1, 0), (False, 2, 6), (True, 3, 4)])
def test_opcheck(device, train, stride, channels, layout):
    plain = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    x = lay_out(make_features((4, 4, 5, 6), device).float(), layout)
    norm = plain_batch_norm(make(x.shape, device, train=train).float(), x)
    opcheck(ops.batch_norm_relu.default, (leaf(x), *norm.functional, stride, channels))
    detached = Norm(*(t.detach().clone() if isinstance(t, torch.Tensor) else t for t in norm))
    opcheck(ops.batch_norm_relu_.default, (x, *detached, stride, channels), test_utils=plain)
    y, shortcut, state = ops.batch_norm_relu(x, *detached.functional, stride, channels)
    for shortcut_grad in (None, shortcut) if channels else (None,):
        options = (norm.kind, state, stride, True, train)
        opcheck(
            ops.batch_norm_relu_backward.default,
            (y, shortcut_grad, x, *detached[:2], *options),
            test_utils=plain,
        )


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("stride, channels", [(1, None), (1, 3), (2, 5)])
def test_compile(device, no_caches, stride, channels, momentum):
    batch_norm, codes = make((4, 3, 9), device, momentum=momentum), []

    def backend(graph, inputs):
        codes.append(graph.code)
        return aot_eager(graph, inputs)

    compiled = torch.compile(functional.pre_activation, fullgraph=True, dynamic=True, backend=backend)
    for samples in (3, 5):
        compare_in_unit(
            make_features((samples, 3, 10), device), batch_norm, stride, channels, function=compiled
        )
    assert all("batch_norm_relu" in code for code in codes)


MEMORY = ((6, 37, 501), "contiguous"), ((6, 37, 501), "channels_last"), ((9, 8, 33, 31), "channels_last")


def everything(device="cpu"):
    """Results, gradients and statistics over types and layouts."""
    out = []
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for shape, layout in MEMORY:
            torch.manual_seed(0)
            batch_norm = make(shape, device).to(reference.accumulator(dtype))
            x = leaf(lay_out(make_features(shape, device).to(dtype), layout))
            made = functional.pre_activation(x, batch_norm, 2, shape[1] + 1)
            grads = torch.autograd.grad(made, (x, *batch_norm.parameters()), [t.detach() for t in made])
            out += [*made, *grads, *batch_norm.buffers()]
    return [t.detach() for t in out]


def test_same_bits_run_after_run_for_any_number_of_threads(device):
    assert_same_bits(lambda: everything(device))


def test_under_a_transform_the_modules_are_called():
    batch_norm, seen = make((4, 3, 9), train=False), []

    def function(x):
        seen.append(functional.pre_activation(x, batch_norm, 2, 5))
        return drsn_ops.batch_norm_relu(x, batch_norm)

    x = make_features((2, 4, 3, 9))
    close(vmap(function)(x), torch.stack([drsn_ops.batch_norm_relu(t, batch_norm) for t in x]))
    assert seen == [None]


def test_modules_are_copied_and_pickled_after_a_call():
    x, batch_norm = leaf(make_features((4, 3, 9))), make((4, 3, 9))
    drsn_ops.batch_norm_relu(x, batch_norm).sum().backward()
    expected = drsn_ops.batch_norm_relu(x, copy.deepcopy(batch_norm))
    for other in (copy.deepcopy(batch_norm), pickle.loads(pickle.dumps(batch_norm))):
        close(drsn_ops.batch_norm_relu(x, other), expected)


X, NORM = torch.randn(2, 4, 3), nn.BatchNorm1d(4)
ERRORS = [
    (([1.0], NORM), TypeError, r"x: got list, expected a tensor"),
    ((X.long(), NORM), TypeError, r"x: got a tensor of torch\.int64, expected one of float16"),
    ((X.to(torch.complex64), NORM), TypeError, r"x: got a tensor of torch\.complex64"),
    ((X[0, 0], NORM), ValueError, r"x: got shape \(3,\), expected \(N, C, \*spatial\)"),
    ((X, torch.relu), TypeError, r"batch_norm: got builtin_function_or_method, expected a torch\.nn\.Module"),
    ((X[:, :3], NORM), REFUSAL, r"weight \(batch_norm\.weight\): got .*\(4,\).*expected .*\(3,\)"),
]


@pytest.mark.parametrize("args, error, message", ERRORS, ids=[e[-1] for e in ERRORS])
def test_errors(args, error, message):
    with pytest.raises(error, match=message):
        drsn_ops.batch_norm_relu(*args)
    assert NORM.num_batches_tracked == 0
