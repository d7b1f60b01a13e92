"""The operator that normalises, applies a ReLU and convolves few channels: on the CPU, in float32."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from checks import (
    assert_same_bits,
    lay_out,
    leaf,
    make_features,
    operators_of,
    pairwise,
    randomise,
    require_compilation_no_export,
)
from torch import nn
from torch._dynamo.backends.debugging import aot_eager
from torch.library import opcheck

from drsn_ops.layers import conv3, pad_same
from drsn_ops.ops import library, residual_unit
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


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels, out, piece", [(4, 3, 2048), (5, 8, 1024), (16, 16, 512)])
def test_the_borders_of_pieces(channels, out, piece, stride):
    for pieces, more in ((1, -1), (1, 0), (1, 1), (2, 1)):
        pair = make(channels, out, stride)
        compare(draw((1, channels, stride * pieces * piece + more), pair), pair, channels + 1)


@pytest.mark.parametrize("channels, out, stride", [(4, 3, 1), (4, 4, 2), (7, 8, 1), (16, 11, 2)])
def test_a_large_batch(channels, out, stride):
    """Of dozens of tasks; steps of a quarter keep the many numbers of x away from the kink."""
    pair = make(channels, out, stride)
    compare(lay_out(draw((64, channels, 2500)).mul(4).round() / 4, "channels_last"), pair, channels)


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
    require_compilation_no_export()
    pair, codes = make(4, 6, stride, momentum=momentum), []

    def backend(graph, inputs):
        codes.append(graph.code)
        return aot_eager(graph, inputs)

    def function(x, batch_norm, conv, channels):
        made = residual_unit.activated_convolution(x, batch_norm, conv, stride, channels)
        return [t for t in made if t is not None]

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=backend)
    for samples, length in ((3, 21), (5, 22)):
        compare(draw((samples, 4, length), pair), pair, channels, function=compiled)
    assert all(NAME in code for code in codes)
