"""The operator that normalises, applies a ReLU and convolves few channels, alone and in a unit; on the CPU, float32."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from checks import (
    Replaced,
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
from torch.autograd import forward_ad
from torch.func import functional_call, vmap
from torch.library import opcheck
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from drsn_ops import RSBU, functional
from drsn_ops.layers import activated_convolution, conv3, pad_same
from drsn_ops.models import ConvolutionalUnit, drsn
from drsn_ops.ops import library
from drsn_ops.ops.batch_norm_autograd import batch_norm_relu
from drsn_ops.ops.plain_gate import plain_batch_norm
from drsn_ops.ops.spatial import shortcut_of

ops = torch.ops.drsn_ops
NAME = "batch_norm_relu_conv"
pytestmark = pytest.mark.skipif(library.simd == "default", reason="PyTorch convolves on this processor")


def make(channels, out, stride=1, *, train=True, bias=True, **options):
    """A BatchNorm and the convolution behind it."""
    conv = conv3(1, channels, out, stride)
    conv.bias = conv.bias if bias else None
    return randomise(nn.ModuleList([nn.BatchNorm1d(channels, **options), conv])).train(train)


def draw(shape, pair=None, layout="channels_last"):
    """An x with no pre-activation of these modules so near to 0 that rounding might change its derivative."""
    while True:
        x = (make_features(shape) + 0.3).float()
        if pair is None:
            return lay_out(x, layout)
        normal = copy.deepcopy(pair[0]).double()(x.double()).abs()
        if normal.min() > 1e-5 * normal.max():
            return lay_out(x, layout)


def operator(x, batch_norm, conv, channels=None):
    """y, and the shortcut if it has channels, by the operator, for an x of any layout and length."""
    norm, stride = plain_batch_norm(batch_norm, x), conv.stride[0]
    y, shortcut = batch_norm_relu(x, norm, stride, channels, (conv.weight, conv.bias))
    assert (shortcut is None) == (channels is None)
    return (y,) if shortcut is None else (y, shortcut)


def formula(x, batch_norm, conv, channels=None):
    """The same by PyTorch's modules."""
    stride = conv.stride[0]
    y = conv(pad_same(batch_norm(x).relu(), stride))
    return (y,) if channels is None else (y, shortcut_of(x, stride, channels))


def close(found, expected):
    """Equal to float32's rounding of the largest number of each tensor, and of all of them, from which sums cancel."""
    largest = max(b.abs().max().item() for b in expected)
    for a, b in zip(found, expected, strict=True):
        atol = 1e-5 * b.abs().max().item() + 1e-6 * largest
        torch.testing.assert_close(a.to(b.dtype), b, rtol=1e-5, atol=atol)


def gradients(results, inputs, grads):
    """Through the results that have a gradient; None for what no such result depends on."""
    pairs = [(y, g.to(y.dtype)) for y, g in zip(results, grads, strict=True) if g is not None]
    results, grads = zip(*pairs, strict=True)
    return torch.autograd.grad(results, inputs, grads, allow_unused=True)


def compare(x, pair, channels=None, sides=(True, True), function=operator):
    """Values, gradients through the chosen results and buffers, against PyTorch's modules in float64."""
    twin, x = copy.deepcopy(pair).double(), leaf(x)
    twin_x = leaf(x.double())
    found, expected = function(x, *pair, channels), formula(twin_x, *twin, channels)
    close(found, expected)
    torch.testing.assert_close(dict(pair.named_buffers()), dict(twin.named_buffers()), check_dtype=False)
    grads = [torch.randn_like(y) if wanted else None for y, wanted in zip(found, sides, strict=False)]
    ours = gradients(found, [x, *pair.parameters()], grads)
    others = gradients(expected, [twin_x, *twin.parameters()], grads)
    assert [t is None for t in ours] == [t is None for t in others]
    close([t for t in ours if t is not None], [t for t in others if t is not None])
    return found, ours


def fused(function, *args):
    return any(name.startswith(NAME) for name in operators_of(function, *args))


def check(shape, out, stride=1, extra=None, layout="channels_last", **options):
    """`compare` in training and in evaluation, and the strides of all that is made."""
    channels = None if extra is None else shape[1] + extra
    for train in (True, False):
        if train and shape[0] * shape[2] < 3:
            continue  # of one value there are no statistics, of two no derivatives
        pair = make(shape[1], out, stride, train=train, **options)
        x = draw(shape, pair, layout)
        made, (dx, *_) = compare(x, pair, channels)
        for t in (*made, dx):
            _, c, length = t.shape
            assert t.stride() == (length * c, 1, c) or t.data_ptr() == x.data_ptr()


CHANNELS = (1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16)


@pytest.mark.parametrize("out", CHANNELS)
@pytest.mark.parametrize("channels", CHANNELS)
def test_numbers_of_channels(channels, out):
    for length, stride in ((37, 1), (70, 2)):
        check((3, channels, length), out, stride, bias=out % 3 > 0)


LENGTHS = (1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 64, 65, 130, 257, 512, 700)
GEOMETRIES = pairwise(
    LENGTHS,
    (1, 2),  # strides
    (2, 1, 5),  # samples
    (None, 0, 1, 6),  # channels of the shortcut more than x's; None without one
    ("channels_last", "contiguous", "transposed"),
)


@pytest.mark.parametrize("length, stride, samples, extra, layout", GEOMETRIES, ids=str)
def test_geometries(length, stride, samples, extra, layout):
    for channels, out in ((1, 1), (4, 4), (3, 10), (16, 8)):
        check((samples, channels, length), out, stride, extra, layout)


@pytest.mark.parametrize("momentum", [None, 0.0, 0.3, 1.0])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("tracks", [True, False])
def test_options(momentum, affine, tracks):
    pair = make(3, 5, momentum=momentum, affine=affine, track_running_stats=tracks, eps=1e-3)
    for step in range(3):
        compare(draw((3 + step, 3, 9), pair), pair)
    compare(draw((4, 3, 9), pair.eval()), pair)


@pytest.mark.parametrize("stride, channels", [(1, 4), (1, 6), (2, 4), (2, 9)])
@pytest.mark.parametrize("sides", [(True, False), (False, True)])
def test_the_gradient_of_one_result_alone(sides, stride, channels):
    pair = make(4, 6, stride)
    compare(draw((3, 4, 21), pair), pair, channels, sides)


@pytest.mark.parametrize("stride, channels", [(1, None), (1, 4), (2, 7)])
@pytest.mark.parametrize("name", ["0.weight", "0.bias", "1.weight", "1.bias", "x"])
def test_the_gradient_of_one_tensor_alone(name, stride, channels):
    pair = make(4, 6, stride).requires_grad_(False)
    x, twin = draw((3, 4, 21), pair), copy.deepcopy(pair).double()
    found = []
    for function, given, modules in ((operator, x, pair), (formula, x.double(), twin)):
        t = (given if name == "x" else modules.get_parameter(name)).requires_grad_()
        loss = sum(y.square().sum() for y in function(given, *modules, channels))
        found.append(torch.autograd.grad(loss, t))
    close(*found)


@pytest.mark.parametrize("layout", ["expanded", "sliced", "transposed", "contiguous"])
def test_gradients_of_every_layout(layout):
    pair = make(4, 6)
    x = draw((3, 4, 21), pair)
    grad, shortcut = lay_out(torch.randn(3, 6, 21), layout), lay_out(torch.randn(3, 5, 21), layout)
    found, expected = (
        torch.autograd.grad(operator(x, *pair, 5), list(pair.parameters()), (a, b))
        for a, b in ((grad, shortcut), (grad.contiguous(), shortcut.contiguous()))
    )
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("train", [True, False])
def test_without_gradients(train):
    pair, x = make(4, 6, 2, train=train), draw((3, 4, 20))
    other = copy.deepcopy(pair)
    expected = operator(leaf(x), *other, 6)
    for context in (torch.no_grad(), torch.inference_mode()):
        mine = copy.deepcopy(pair)
        with context:
            found = operator(x, *mine, 6)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(mine.buffers(), other.buffers(), strict=True))
        assert mine[0].num_batches_tracked._version == pair[0].num_batches_tracked._version + train


def test_what_is_not_finite():
    """NaN and infinities reach the windows that they are in, and no others."""
    pair, x = make(3, 4, train=False), draw((2, 3, 40))
    x[0, 1, 7], x[1, 0, 20], x[1, 2, 33] = torch.nan, torch.inf, -torch.inf
    (found,), (expected,) = operator(x, *pair), formula(x, *pair)
    assert 0 < expected.isnan().sum() < 40
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_what_the_backward_pass_keeps():
    """x itself, parameters and two numbers a channel: neither the activation nor the result."""
    pair, x, kept = make(4, 6), leaf(draw((3, 4, 21))), []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda _: None):
        operator(x, *pair, 6)
    given = {t.data_ptr() for t in (x, *pair.parameters())}
    assert [t.shape for t in kept if t.data_ptr() not in given] == [(2, 4)]


def test_statistics_that_are_written_share_no_memory():
    pair, x = make(4, 6).requires_grad_(False), draw((3, 4, 21))
    batch_norm, (weight, bias) = pair[0], pair[1].parameters()
    for memory in (x.view(-1) if x.is_contiguous() else x.movedim(1, -1).reshape(-1), weight.view(-1), bias):
        for name in ("running_mean", "running_var"):
            kept, before = batch_norm._buffers[name], memory.clone()
            batch_norm._buffers[name] = memory[:4]
            with pytest.raises(RuntimeError, match=r"^[a-z_]+.*: unsupported operation"):
                operator(x, *pair)
            batch_norm._buffers[name] = kept
            assert torch.equal(memory, before)
    assert batch_norm.num_batches_tracked == 0


def everything():
    """Results, gradients and statistics, of pieces for several threads and of short ones."""
    out = []
    for channels, widest, length, stride in (
        (4, 4, 512, 1),
        (8, 16, 700, 2),
        (3, 5, 33, 2),
        (16, 16, 129, 1),
    ):
        for train in (True, False):
            torch.manual_seed(0)
            pair, x = make(channels, widest, stride, train=train), leaf(draw((40, channels, length)))
            made = operator(x, *pair, widest)
            grads = torch.autograd.grad(made, (x, *pair.parameters()), [t.detach() for t in made])
            out += [*made, *grads, *pair.buffers()]
    return [t.detach() for t in out]


def test_same_bits_run_after_run_for_any_number_of_threads():
    assert_same_bits(everything)


def run(program, level, *arguments):
    """Runs a program on a lower instruction set."""
    given = [sys.executable, "-c", f"import sys; sys.path[:0] = sys.argv[2:]\n{program}"]
    environment = {**os.environ, "DRSN_OPS_SIMD": level}
    subprocess.run([*given, *arguments, *sys.path], env=environment, check=True)


@pytest.mark.skipif(library.simd != "avx512", reason="this processor has one instruction set with kernels")
def test_same_bits_from_both_instruction_sets(tmp_path):
    program = "import torch, test_batch_norm_relu_conv as t\n"
    run(
        f"{program}assert t.library.simd == 'avx2'; torch.save(t.everything(), sys.argv[1])",
        "avx2",
        tmp_path / "bits",
    )
    found, expected = torch.load(tmp_path / "bits"), everything()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_pytorch_convolves_where_the_instruction_set_has_no_kernels():
    run("import test_batch_norm_relu_conv as t\nassert not t.fused(*t.unit_and_input())", "default", "")


def unit_and_input(channels=4, out=6, stride=2, length=21, **options):
    torch.manual_seed(0)
    return randomise(RSBU(channels, out, stride=stride, **options)), draw((3, channels, length))


def step(unit, x):
    """The result, the gradients of x and of the parameters, and the statistics that a training step leaves."""
    x = leaf(x)
    y = unit(x)
    found = torch.autograd.grad(y.square().sum(), [x, *unit.parameters()], allow_unused=True)
    return [t.detach() for t in (y, *found, *unit.buffers()) if t is not None]


def same_step(unit, x, run=None):
    """A step of the unit, or of ``run``, is that of the unit in float64, but for kinks that float32 crosses."""
    expected = step(copy.deepcopy(unit).double(), x.double())
    largest = max(t.double().norm() for t in expected)
    for a, b in zip(step(unit if run is None else run, x), expected, strict=True):
        assert (a.double() - b.double()).norm() <= 1e-3 * b.double().norm() + 1e-6 * largest


UNITS = [
    {},
    {"stride": 1, "out": 4},
    {"thresholds": None},
    {"thresholds": "channel-shared", "out": 16, "channels": 16},
    {"norm": "layer", "length": 2},
]


@pytest.mark.parametrize("options", UNITS, ids=str)
@pytest.mark.parametrize("train", [True, False])
def test_a_unit_is_two_operators_and_its_shrinkage(train, options):
    unit, x = unit_and_input(**options)
    names = operators_of(copy.deepcopy(unit.train(train)), x)
    first = f"{NAME}_"
    # a single position has the strides of both layouts
    second = "batch_norm_relu_" if options.get("length") == 2 else first
    assert names[:2] == [first, second] and names[2:] == ["gated_shrink_"] * (unit.shrink is not None)
    same_step(unit, x)
    unit = ConvolutionalUnit(4, 6)
    assert operators_of(unit, draw((3, 4, 9))) == [f"{NAME}_", f"{NAME}_"]


@pytest.mark.parametrize("channels, out", [(4, 17), (17, 20)])
def test_many_channels_are_pytorchs(channels, out):
    unit, x = unit_and_input(channels, out)
    assert not fused(unit, x)
    same_step(unit, x)


class Mode(TorchFunctionMode):
    """Sees every function, and may keep what it returns."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def test_the_shrinkage_overwrites_what_the_operator_made(monkeypatch):
    """Where nobody else has seen it: no mode, and no hook of the shrinkage."""
    unit, x = unit_and_input()
    made, seen, own = [], [], functional.activated_convolution

    def activated(*args):
        result = own(*args)
        made.append(result[0])
        return result

    monkeypatch.setattr(functional, "activated_convolution", activated)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert unit(x).data_ptr() == made[-1].data_ptr()
    with Mode():
        assert unit(x).data_ptr() != made[-1].data_ptr()
    unit.shrink.register_forward_hook(lambda module, args, y: seen.append(args[0]))
    assert unit(x).data_ptr() != made[-1].data_ptr() and seen[0] is made[-1]


class Own(nn.Conv1d):
    """Another class, though it computes the same."""


ATTACHMENTS = {
    "hook": lambda conv: conv.register_forward_hook(lambda *_: None),
    "pre-hook": lambda conv: conv.register_forward_pre_hook(lambda *_: None),
    "backward hook": lambda conv: conv.register_full_backward_hook(lambda *_: None),
    "replaced forward": lambda conv: setattr(conv, "forward", conv.forward),
    "replaced convolution": lambda conv: setattr(conv, "_conv_forward", conv._conv_forward),
    "subclass": lambda conv: setattr(conv, "__class__", Own),
    "parametrization": lambda conv: nn.utils.parametrize.register_parametrization(
        conv, "weight", nn.Identity()
    ),
    "stride of an int": lambda conv: setattr(conv, "stride", 1),
    "dilation": lambda conv: setattr(conv, "dilation", (2,)),
    "padding": lambda conv: setattr(conv, "padding", (2,)),
    "padding of other numbers": lambda conv: setattr(conv, "padding_mode", "circular"),
    "width": lambda conv: setattr(conv, "weight", nn.Parameter(torch.randn(6, 4, 5))),
}


def half(pair, x):
    return activated_convolution(*pair, x)[0]


@pytest.mark.parametrize("attachment", ATTACHMENTS)
def test_a_convolution_with_something_else_is_called(attachment):
    pair, x = make(4, 6), draw((3, 4, 21))
    assert fused(half, pair, x)
    ATTACHMENTS[attachment](pair[1])
    assert not fused(half, pair, x)
    expected = pair[1](pair[0](x).relu())
    torch.testing.assert_close(half(pair, x), expected, rtol=1e-4, atol=1e-5)


def test_what_pytorch_convolves():
    """Other layouts, types, groups, strides and normalisations, and autocast."""
    x = draw((3, 4, 21))
    pair = make(4, 6)
    others = {
        "contiguous": (pair, x.contiguous()),
        "sliced": (pair, lay_out(x, "sliced")),
        "float64": (copy.deepcopy(pair).double(), x.double()),
        "bfloat16": (copy.deepcopy(pair).bfloat16(), x.bfloat16()),
        "no samples": (pair.eval(), x[:0]),
        "groups": (nn.ModuleList([pair[0], nn.Conv1d(4, 6, 3, padding=1, groups=2)]), x),
        "stride 3": (nn.ModuleList([pair[0], nn.Conv1d(4, 6, 3, 3)]), x),
        "GroupNorm": (nn.ModuleList([nn.GroupNorm(2, 4), pair[1]]), x),
    }
    for name, (modules, given) in others.items():
        assert not fused(half, modules, given), name
        expected = modules[1](modules[0](given).relu())
        torch.testing.assert_close(half(modules, given), expected, rtol=1e-2, atol=1e-2)
    with torch.autocast("cpu", torch.bfloat16):
        assert not fused(half, pair, x) and half(pair, x).dtype == torch.bfloat16
    pair[1].padding = "same"
    assert fused(half, pair, x)


@pytest.mark.parametrize("name", ["forward", "_conv_forward", "__call__"])
def test_a_method_replaced_on_the_class_runs(name):
    pair, x, seen = make(4, 6), draw((3, 4, 21)), []
    handle = Replaced(nn.Conv1d, name, lambda: seen.append(1))
    try:
        assert not fused(half, pair, x) and seen
    finally:
        handle.remove()
    assert fused(half, pair, x)


@pytest.mark.parametrize("stride, channels", [(1, None), (1, 4), (2, 6)])
@pytest.mark.parametrize("train", [True, False])
def test_second_derivatives(train, stride, channels):
    pair = make(4, 6, stride, train=train)
    twin, x = copy.deepcopy(pair).double(), leaf(draw((3, 4, 11), pair))
    found = []
    for function, modules, given in ((operator, pair, x), (formula, twin, leaf(x.double()))):
        tensors = [given, *modules.parameters()]
        y = sum((t**3).sum() for t in function(given, *modules, channels))
        first = torch.autograd.grad(y, tensors, create_graph=True)
        found.append(torch.autograd.grad(sum((t**2).sum() for t in first), tensors))
    close(*found)


def test_autocast_changes_no_second_derivative():
    pair, x = make(4, 6), leaf(draw((3, 4, 11)))
    tensors, found = [x, *pair.parameters()], []
    for enabled in (False, True):
        (y,) = operator(x, *pair)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found.append(torch.autograd.grad(y.square().sum(), tensors, create_graph=True))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_batches_of_gradients():
    pair, x = make(4, 6, 2), leaf(draw((3, 4, 11)))
    made = operator(x, *pair, 6)
    grads = [torch.randn(2, *t.shape) for t in made]
    tensors = [x, *pair.parameters()]
    found = torch.autograd.grad(made, tensors, grads, is_grads_batched=True, retain_graph=True)
    for i in (0, 1):
        one = torch.autograd.grad(made, tensors, [g[i] for g in grads], retain_graph=True)
        close([t[i] for t in found], one)


def test_transforms_run_the_plain_formula():
    unit, x = unit_and_input()
    unit.eval()
    expected, seen = unit(x), []

    def call(x):
        seen.append(operators_of(unit, x))
        return unit(x)

    torch.testing.assert_close(vmap(call)(x[None])[0], expected, rtol=1e-4, atol=1e-5)
    with forward_ad.dual_level():
        y, tangent = forward_ad.unpack_dual(call(forward_ad.make_dual(x, x)))
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    h = 1e-2
    wanted = (unit(x * (1 + h)) - unit(x * (1 - h))) / (2 * h)
    assert (tangent - wanted).norm() <= 0.02 * wanted.norm()
    assert not any(name.startswith(NAME) for names in seen for name in names)


def test_parameters_from_outside():
    unit, x = unit_and_input()
    other = {name: leaf(2 * p) for name, p in unit.named_parameters()}
    twin = copy.deepcopy(unit)
    twin.load_state_dict(other, strict=False)
    assert fused(lambda: functional_call(unit, other, x))
    expected = step(twin, x)[0]
    assert torch.equal(functional_call(unit, other, x), expected)


def test_checkpoint():
    unit, x = unit_and_input(norm="layer")
    x, expected = leaf(x), step(copy.deepcopy(unit).eval(), x)
    unit.eval()
    for reentrant in (True, False):
        y = checkpoint(unit, x, use_reentrant=reentrant)
        unit.zero_grad()
        x.grad = None
        y.square().sum().backward()
        found = [y, x.grad, *(p.grad for p in unit.parameters())]
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=False))


@pytest.mark.parametrize(
    "train, stride, channels, bias", [(True, 1, 0, True), (False, 2, 6, False), (True, 2, 4, True)]
)
def test_opcheck(train, stride, channels, bias):
    plain = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    pair, x = make(4, 6, stride, train=train, bias=bias), draw((3, 4, 21))
    norm, conv = plain_batch_norm(pair[0], x), (pair[1].weight, pair[1].bias)
    read, update, back = (getattr(ops, NAME + end).default for end in ("", "_", "_backward"))
    opcheck(read, (leaf(x), *norm.functional, *conv, stride, channels))
    norm = [t.detach().clone() if isinstance(t, torch.Tensor) else t for t in norm]
    conv = [t if t is None else t.detach() for t in conv]
    opcheck(update, (x, *norm, *conv, stride, channels), test_utils=plain)
    y, shortcut, state = read(x, *norm[:4], *norm[6:], *conv, stride, channels)
    for needs in ((True, True, True), (False, train, False), (True, False, True)):
        arguments = y, shortcut if channels else None, x, *norm[:2], norm[6], state, conv[0], stride, *needs
        opcheck(back, arguments, test_utils=plain)


@pytest.mark.parametrize("stride, channels", [(1, None), (1, 4), (2, 6)])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_compile(no_caches, stride, channels, momentum):
    pair, codes = make(4, 6, stride, momentum=momentum), []

    def backend(graph, inputs):
        codes.append(graph.code)
        return aot_eager(graph, inputs)

    def function(x, batch_norm, conv, channels):
        made = functional.activated_convolution(x, batch_norm, conv, stride, channels)
        return [t for t in made if t is not None]

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=backend)
    for samples, length in ((3, 21), (5, 22)):
        compare(draw((samples, 4, length), pair), pair, channels, function=compiled)
    assert all(NAME in code for code in codes)


def test_a_network_compiled_by_inductor(no_caches):
    network, x = randomise(drsn(1, 3, blocks=3, widths=(4, 8, 16))), torch.randn(4, 1, 64)
    compiled = torch.compile(copy.deepcopy(network), fullgraph=True)
    same_step(network, x, compiled)


def test_exports_have_pytorchs_convolution():
    """They may run where the kernels are not, or where another convolution is faster."""
    unit, x = unit_and_input()
    unit.eval()
    for strict in (True, False):
        program = torch.export.export(unit, (x,), strict=strict)
        names = {str(node.target) for node in program.graph.nodes}
        assert not any(NAME in name for name in names) and any("conv" in name for name in names)
    with pytest.warns(DeprecationWarning):
        traced = torch.jit.trace(unit, x)
    assert NAME not in str(traced.inlined_graph)
    traced = torch.fx.symbolic_trace(unit)
    assert {"conv1", "conv2"} <= {node.target for node in traced.graph.nodes if node.op == "call_module"}
