"""The operators by what chooses a kernel on a GPU: lengths and numbers of rows, layouts, alignment, types.

``sanitizer`` marks what is small enough for compute-sanitizer; together these launch every kernel.
"""

import pytest
import torch
from checks import REAL, lay_out, leaf, make_features, make_gate, misaligned, pairwise
from test_batch_norm_relu import compare_rounded as compare_batch_norm_relu
from test_batch_norm_relu import make as make_batch_norm
from test_batch_norm_shrink import compare_rounded as compare_batch_norm_shrink
from test_batch_norm_shrink import make as make_batch_norm_shrink
from test_gated_shrink import compare_rounded as compare_gated_shrink
from test_parameter_types import compare as compare_parameters
from test_shrink import STATISTICS, compare_abs_mean
from test_shrink import compare as compare_shrink
from test_shrink import make as make_shrink
from test_soft_threshold import compare as compare_soft_threshold
from test_soft_threshold import compare_complex

import drsn_ops
from drsn_ops import reference
from drsn_ops.reference import accumulator

LENGTHS = (1, 7, 49, 784, 1023, 4097, 65_536, 1_000_003)
# Rows of whole vectors and others, short enough for the registers of a block and not.
ROWS = {
    "short": ((2, 3, 64), "contiguous"),
    "short, odd": ((2, 3, 7, 7), "contiguous"),
    "long": ((1, 2, 33_000), "contiguous"),
    "long, odd": ((1, 2, 8_201), "contiguous"),
    "channels last": ((2, 8, 5, 5), "channels_last"),
    "channels last, odd": ((2, 3, 5, 5), "channels_last"),
}


def compare(shape, layout, dtype, device, statistics=STATISTICS):
    """soft_threshold, abs_mean and shrink with their gradients."""
    grad, residual = (torch.randn(shape, device=device).to(dtype) for _ in range(2))
    x, alpha = make_shrink(shape, "row", dtype, device)
    for statistic in statistics:
        compare_shrink(x, alpha, statistic, grad, residual, layout)
        compare_abs_mean(lay_out(x, layout), statistic)
    tau = torch.rand(shape[1], *[1] * (len(shape) - 2), device=device)
    compare_soft_threshold(x, grad, tau, layout)


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("length", LENGTHS)
def test_lengths_of_rows(device, length, dtype):
    compare((1, 2, length) if length > 10_000 else (2, 3, length), "contiguous", dtype, device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows, length", [(1, 1), (1, 4097), (100_000, 1), (100_000, 7), (100_000, 49)])
def test_numbers_of_rows(device, rows, length, dtype):
    samples = max(rows // 1000, 1)
    compare((samples, rows // samples, length), "contiguous", dtype, device)


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("channels", [3, 8, 64, 100])
def test_channels_last(device, channels, dtype):
    compare((3, channels, 9, 7), "channels_last", dtype, device)


# In channels_last: tiles of a sample's channels on chip, the last one narrower; rows that just fit and rows that do
# not; many samples.
@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize(
    "shape", [(2, 48, 35, 20), (1, 8, 64, 64), (1, 8, 64, 65), (2, 136, 11, 3), (300, 32, 3, 1)]
)
def test_channels_last_on_chip(device, shape, dtype):
    compare(shape, "channels_last", dtype, device)


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("length", [pytest.param(64, marks=pytest.mark.sanitizer), 65, 40_000])
@pytest.mark.parametrize("offset", [1, 3])
def test_memory_that_starts_between_two_vectors(device, offset, length, dtype):
    x, alpha = make_shrink((2, 3, length), "row", dtype, device)
    moved = misaligned(x, offset)
    compare_shrink(moved, alpha, "channel", torch.randn_like(x), None)
    compare_soft_threshold(moved, torch.randn_like(x), torch.full((3, 1), 1e-3, device=device))
    compare_abs_mean(moved, "channel")


@pytest.mark.sanitizer
@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("rows", ROWS)
def test_first_derivatives(device, rows, dtype):
    compare(*ROWS[rows], dtype, device)


@pytest.mark.sanitizer
@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("rows", ROWS)
def test_second_derivatives(device, rows, dtype):
    """Along one direction, by the inputs and by the gradient that comes in."""
    shape, layout = ROWS[rows]
    x, alpha = make_shrink(shape, "row", dtype, device)
    x = lay_out(x, layout)
    tau = torch.full((shape[1],) + (1,) * (len(shape) - 2), 1e-3, device=device)

    def second(function, *inputs):
        inputs = [leaf(t) for t in inputs]
        y = function(*inputs)
        generator = torch.Generator(device).manual_seed(0)
        grad, *directions = (
            torch.randn(t.shape, generator=generator, device=device).to(t.dtype) for t in (y, *inputs)
        )
        grad = leaf(lay_out(grad, layout))
        first = torch.autograd.grad(y, inputs, grad, create_graph=True)
        along = sum((a.double() * b.double()).sum() for a, b in zip(first, directions, strict=True))
        return torch.autograd.grad(along, [grad, *inputs], materialize_grads=True)

    for name, inputs in (("soft_threshold", (x, tau)), ("abs_mean", (x,)), ("shrink", (x, alpha))):
        found = second(getattr(drsn_ops, name), *inputs)
        wanted = second(getattr(reference, name), *(t.double() for t in inputs))
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=0.02, atol=0.02 * b.abs().max().item())


@pytest.mark.sanitizer
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_complex_numbers(device, layout, dtype):
    x = lay_out(torch.randn(2, 3, 5, 5, dtype=dtype, device=device), layout)
    compare_complex(x, torch.rand(3, 1, 1, dtype=accumulator(dtype), device=device))


@pytest.mark.sanitizer
@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("rows", ROWS)
def test_in_place(device, rows, dtype):
    """Into x and, where the residual is x, over what is read twice; with a mask and without."""
    shape, layout = ROWS[rows]
    start, alpha = make_shrink(shape, "row", dtype, device)
    start = lay_out(start, layout)
    tau = torch.full((shape[1],) + (1,) * (len(shape) - 2), 1e-3, device=device)
    gate = make_gate(shape[1], 5, shape[1], "layer").to(device, accumulator(dtype)).requires_grad_(False)
    for function in (
        lambda x, _, inplace: drsn_ops.soft_threshold(x, tau, inplace=inplace),
        lambda x, residual, inplace: drsn_ops.shrink(x, alpha, residual=residual, inplace=inplace),
        lambda x, residual, inplace: drsn_ops.gated_shrink(x, gate, residual=residual, inplace=inplace),
    ):
        for needs_grad in (False, True):
            for with_residual in (False, True):
                x = start.clone().requires_grad_(needs_grad) * 1
                wanted = function(start, start if with_residual else None, False)
                found = function(
                    x, x if with_residual and not needs_grad else start if with_residual else None, True
                )
                assert found is x
                assert torch.equal(found, wanted)


@pytest.mark.sanitizer
@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("rows", [name for name in ROWS if "long" not in name])
@pytest.mark.parametrize("norm, statistic", [("batch", "channel"), ("layer", "sample"), ("none", "channel")])
def test_gates(device, rows, dtype, norm, statistic):
    shape, layout = ROWS[rows]
    gate = make_gate(shape[1], 5, shape[1], norm).to(device, accumulator(dtype))
    compare_gated_shrink((6, *shape[1:]), dtype, gate, statistic, layout)


@pytest.mark.sanitizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", ["batch", "rms"])
@pytest.mark.parametrize("samples", [32, 33, 256, 257, 600])
def test_gates_of_more_samples_than_one_block_one_cluster_or_one_sum_takes(device, samples, norm, dtype):
    gate = make_gate(3, 5, 3, norm).to(device, dtype)
    compare_gated_shrink((samples, 3, 8), dtype, gate)


@pytest.mark.sanitizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm, training", [("batch", True), ("batch", False), ("rms", True), ("none", True)])
@pytest.mark.parametrize("samples", [32, 64])  # a block, a cluster of them
def test_a_gate_in_one_launch_has_the_bits_of_one_in_two(device, samples, norm, training, dtype):
    """A batch norm's gate grows by features without a weight behind, others' batches by samples without a gradient."""
    channels = 6
    gate, wide = (make_gate(channels, h, channels, norm).to(device, dtype).train(training) for h in (5, 288))
    wide[3].weight.data.zero_()
    for own, other in zip(gate.state_dict().values(), wide.state_dict().values(), strict=True):
        other[tuple(map(slice, own.shape))] = own
    x = lay_out(make_features((288, channels, 3, 3), device).to(dtype), "channels_last")
    grad = torch.randn_like(x)
    grad[samples:] = 0

    def results(gate, samples):
        rows = leaf(x[:samples])
        y = drsn_ops.gated_shrink(rows, gate)
        return y, *torch.autograd.grad(y, (rows, *gate.parameters()), grad[:samples]), *gate.buffers()

    in_one = results(gate, samples)
    in_two = results(wide, samples) if norm == "batch" else results(gate, len(x))
    for one, two in zip(in_one, in_two, strict=True):
        assert torch.equal(one, two[tuple(map(slice, one.shape))])


@pytest.mark.sanitizer
@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("length, statistic", [(64, "channel"), (49, "sample"), (4104, "sample")])
@pytest.mark.parametrize("channels, layout", [(3, "contiguous"), (3, "channels_last"), (8, "channels_last")])
def test_a_batch_norm_before_it(device, channels, layout, length, statistic, dtype):
    shape = (6, channels, length)
    modules = make_batch_norm_shrink(shape, device=device)
    modules = tuple(module.to(accumulator(dtype)) for module in modules)
    compare_batch_norm_shrink(shape, dtype, modules, statistic, layout)


def compare_normed(shape, layout, dtype, device, stride=1, more=None, offset=0):
    """batch_norm_relu in training, with a shortcut of `more` channels than x has."""
    x = lay_out(make_features(shape, device).to(dtype), layout)
    batch_norm = make_batch_norm(shape, device).to(accumulator(dtype))
    channels = None if more is None else shape[1] + more
    compare_batch_norm_relu(misaligned(x, offset) if offset else x, batch_norm, stride, channels)


@pytest.mark.sanitizer
@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("stride, more", [(1, None), (1, 8), (2, None), (2, 8), (3, 3)])
@pytest.mark.parametrize("rows", ROWS)
def test_a_batch_norm_and_relu(device, rows, stride, more, dtype):
    compare_normed(*ROWS[rows], dtype, device, stride, more)


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("stride, more", [(1, None), (2, 16)])
@pytest.mark.parametrize("channels", [3, 4, 8, 33, 64, 264, 1030])
def test_a_batch_norm_and_relu_in_channels_last(device, channels, stride, more, dtype):
    """Tiles of channels that end within a vector, within a block, and blocks of few levels."""
    compare_normed((3, channels, 9, 7), "channels_last", dtype, device, stride, more)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    "shape",
    [(40, 4, 512), (2, 3, 65_536), (1000, 70, 1), (1000, 33, 1), (100_000, 6, 8), (100_000, 1, 7)],
    ids=str,
)
def test_a_batch_norm_and_relu_of_many_blocks(device, shape, layout, dtype):
    compare_normed(shape, layout, dtype, device)


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("stride, more", [(1, 8), (2, 8)])
@pytest.mark.parametrize("offset", [1, 3])
def test_a_batch_norm_and_relu_of_memory_between_two_vectors(device, offset, stride, more, dtype):
    compare_normed((3, 8, 64), "contiguous", dtype, device, stride, more, offset)


@pytest.mark.sanitizer
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_batch_norm_and_relu_that_is_padded_and_counts_in_64_bits(device, layout):
    compare_normed((5, 3, 1, 6), layout, torch.float32, device, stride=2**30, more=2)


@pytest.mark.sanitizer
@pytest.mark.parametrize("x_dtype, dtype", pairwise((torch.float32, torch.float64), REAL))
def test_parameters_of_other_types_and_strides(device, x_dtype, dtype):
    compare_parameters("batch_norm_shrink", x_dtype, dtype, device, spreads=True)
