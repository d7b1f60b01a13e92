"""The operator that normalises, then shrinks, against its modules."""

import copy

import pytest
import torch
from checks import (
    NORMS,
    SHAPES,
    Replaced,
    assert_close,
    assert_same_bits,
    at_kinks,
    lay_out,
    leaf,
    make_features,
    make_gate,
    operators_of,
    pairwise,
    randomise,
)
from torch import nn
from torch._dynamo.backends.debugging import aot_eager
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

import drsn_ops
from drsn_ops import reference
from drsn_ops.ops import autograd, plain_gate
from drsn_ops.reference import accumulator

ops = torch.ops.drsn_ops
STATISTICS = ("channel", "sample")
BATCH_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def fused(function, *args, **options):
    names = operators_of(function, *args, **options)
    return any(name.startswith("batch_norm_shrink") for name in names)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def make(shape, norm="batch", device="cpu", *, outputs="channels", train=True, gate_train=None, **options):
    """A BatchNorm for z of this shape, and a gate; float64."""
    channels = shape[1]
    batch_norm = randomise(BATCH_NORMS[len(shape)](channels, **options).double()).train(train).to(device)
    gate = make_gate(channels, channels // 2 | 1, channels if outputs == "channels" else 1, norm)
    return batch_norm, gate.train(train if gate_train is None else gate_train).to(device)


def compare(z, batch_norm, gate, statistic="channel", residual=None):
    """Value, every gradient and the buffers, against the modules; float64."""
    others = copy.deepcopy(batch_norm), copy.deepcopy(gate)
    z, other_z = leaf(z), leaf(z)
    residual, other_residual = (None, None) if residual is None else (leaf(residual), leaf(residual))
    options = {"statistic": statistic}
    y = drsn_ops.batch_norm_shrink(z, batch_norm, gate, residual=residual, **options)
    expected = reference.batch_norm_shrink(other_z, *others, residual=other_residual, **options)
    close(y, expected)
    close([*batch_norm.buffers(), *gate.buffers()], [*others[0].buffers(), *others[1].buffers()])
    inputs = [t for t in (z, residual, *batch_norm.parameters(), *gate.parameters()) if t is not None]
    wanted = [t for t in (other_z, other_residual, *others[0].parameters(), *others[1].parameters())
              if t is not None]  # fmt: skip
    grad = torch.randn_like(expected)
    close(torch.autograd.grad(y, inputs, grad), torch.autograd.grad(expected, wanted, grad))


@pytest.mark.parametrize(
    "shape, norm, outputs, statistic, train",
    pairwise([s for s in SHAPES if s[1] < 1000], NORMS, ("channels", "one"), STATISTICS, (True, False)),
    ids=str,
)
def test_against_the_modules(device, shape, norm, outputs, statistic, train):
    if shape[0] == 1 and (norm == "batch" or len(shape) == 2):
        train = False  # one value has no statistics
    modules = make(shape, norm, device, outputs=outputs, train=train)
    z = make_features(shape, device) + 0.3
    compare(z, *modules, statistic, torch.randn_like(z))
    assert fused(drsn_ops.batch_norm_shrink, z, *modules)


@pytest.mark.parametrize("train, gate_train", [(True, False), (False, True)])
def test_one_trains_and_the_other_does_not(device, train, gate_train):
    z = make_features((4, 3, 9), device)
    modules = make(z.shape, device=device, train=train, gate_train=gate_train)
    compare(z, *modules)
    with torch.no_grad():
        others = copy.deepcopy(modules)
        close(drsn_ops.batch_norm_shrink(z, *modules), reference.batch_norm_shrink(z, *others))
        for ours, other in zip(modules, others, strict=True):
            close(list(ours.buffers()), list(other.buffers()))


@pytest.mark.parametrize("momentum", [None, 0.0, 0.3, 1.0])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("tracks", [True, False])
def test_options(device, momentum, affine, tracks):
    options = {"momentum": momentum, "affine": affine, "track_running_stats": tracks, "eps": 1e-3}
    batch_norm, gate = make((4, 3, 9), device=device, **options)
    for step in range(3):
        compare(make_features((3 + step, 3, 9), device), batch_norm, gate)
    compare(make_features((4, 3, 9), device), batch_norm.eval(), gate.eval())
    assert fused(drsn_ops.batch_norm_shrink, make_features((4, 3, 9), device), batch_norm, gate)


@pytest.mark.parametrize(
    "dtype, wide_modules, train, shape",
    pairwise(
        (torch.float32, torch.bfloat16, torch.float16),
        (True, False),
        (True, False),
        ((6, 9, 50), (5, 33, 7, 7)),
    ),
    ids=str,
)
def test_narrow_types(device, dtype, wide_modules, train, shape):
    modules = make(shape, "batch", device, train=train)
    for module in modules:
        module.to(torch.float32 if wide_modules else dtype)
    compare_rounded(shape, dtype, modules)


def compare_rounded(shape, dtype, modules, statistic="channel", layout="contiguous"):
    """Value, every gradient and the buffers, up to the rounding of the type, against the modules in float64."""
    device = modules[1][0].weight.device
    exact = tuple(copy.deepcopy(m).double() for m in modules)
    z = make_features(shape, device).to(dtype).double()
    z, exact_z = leaf(lay_out(z.to(dtype), layout)), leaf(z)
    x = copy.deepcopy(exact[0])(exact_z)
    alpha = copy.deepcopy(exact[1])(reference.abs_mean(x))
    tau = alpha * reference.abs_mean(x, statistic=statistic)
    residual, grad = (torch.randn(shape, device=device).to(dtype) for _ in range(2))
    grad = grad.masked_fill(
        at_kinks(x.to(torch.promote_types(dtype, torch.float32)), reference.per_row(tau, x)), 0
    )
    assert fused(drsn_ops.batch_norm_shrink, z, *copy.deepcopy(modules))
    y = drsn_ops.batch_norm_shrink(z, *modules, statistic=statistic, residual=residual)
    expected = reference.batch_norm_shrink(exact_z, *exact, statistic=statistic, residual=residual.double())
    assert y.dtype == dtype
    assert_close(y, expected, terms=8 * expected.abs().max().item())
    found = torch.autograd.grad(y, (z, *modules[0].parameters(), *modules[1].parameters()), grad)
    parameters = (*exact[0].parameters(), *exact[1].parameters())
    wanted = torch.autograd.grad(expected, (exact_z, *parameters), grad.double())
    terms = (grad.double() * exact_z).abs().sum().item()
    for a, b in zip(found, wanted, strict=True):
        assert_close(a, b, terms=terms)
    for ours, other in zip(modules, exact, strict=True):
        for a, b in zip(ours.buffers(), other.buffers(), strict=True):
            assert_close(a, b, terms=8.0) if a.is_floating_point() else close(a, b)


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "sliced"])
def test_other_layouts(device, layout):
    """channels_last is kept; the modules are called for the others."""
    z = lay_out(make_features((4, 3, 5, 6), device), layout)
    modules = make(z.shape, device=device)
    assert fused(drsn_ops.batch_norm_shrink, z, *modules) == (layout == "channels_last")
    y = drsn_ops.batch_norm_shrink(z, *copy.deepcopy(modules))
    assert y.is_contiguous(memory_format=torch.channels_last) or layout != "channels_last"
    compare(z, *modules, residual=lay_out(torch.randn_like(z), layout))


@pytest.mark.parametrize("channels", [4, 12, 64, 33], ids=str)
@pytest.mark.parametrize("train, statistic", [(True, "channel"), (False, "sample")])
def test_channels_last(device, channels, train, statistic):
    """Channels whose numbers repeat along a line over 32 elements, over more, and without whole vectors."""
    z = lay_out(make_features((3, channels, 7, 9), device) + 0.3, "channels_last")
    modules = make(z.shape, "batch", device, train=train)
    compare(z, *modules, statistic, lay_out(torch.randn_like(z), "channels_last"))
    line = z.flatten(2)  # one spatial axis, of the same memory
    assert not line.is_contiguous()
    modules = make(line.shape, "batch", device, train=train)
    compare(line, *modules, statistic)


def test_misaligned(device):
    z = lay_out(make_features((4, 3, 37), device), "misaligned")
    compare(z, *make(z.shape, device=device), residual=lay_out(torch.randn_like(z), "misaligned"))


@pytest.mark.parametrize("shape", [(0, 3, 5), (2, 3, 0), (0, 3)], ids=str)
def test_without_elements(device, shape):
    """The same as the modules, or the same refusal."""
    for train in (True, False):
        modules = make(shape, device=device, train=train)
        z = make_features(shape, device)
        try:
            expected = reference.batch_norm_shrink(z, *copy.deepcopy(modules))
        except (ValueError, RuntimeError):
            with pytest.raises((ValueError, RuntimeError)):
                drsn_ops.batch_norm_shrink(z, *modules)
            continue
        close(drsn_ops.batch_norm_shrink(z, *modules), expected)


class Subclass(nn.BatchNorm1d):
    """Another class, though it computes the same."""


ATTACHMENTS = {
    "hook": lambda bn, gate: bn.register_forward_hook(lambda *_: None),
    "pre-hook": lambda bn, gate: bn.register_forward_pre_hook(lambda *_: None),
    "backward hook": lambda bn, gate: bn.register_full_backward_hook(lambda *_: None),
    "replaced forward": lambda bn, gate: setattr(bn, "forward", bn.forward),
    "subclass": lambda bn, gate: setattr(bn, "__class__", Subclass),
    "hook on the gate": lambda bn, gate: gate.register_forward_hook(lambda *_: None),
    "negative momentum": lambda bn, gate: setattr(bn, "momentum", -0.5),
}


@pytest.mark.parametrize("attachment", ATTACHMENTS)
def test_modules_with_attachments_are_called(device, attachment):
    modules = make((4, 3, 9), device=device)
    z = make_features((4, 3, 9), device)
    assert fused(drsn_ops.batch_norm_shrink, z, *modules)
    ATTACHMENTS[attachment](*modules)
    assert not fused(drsn_ops.batch_norm_shrink, z, *modules)
    if attachment != "replaced forward":  # a copy would still call the original
        compare(z, *modules)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("name", ["forward", "__call__"])
def test_a_method_replaced_on_the_class_of_the_batch_norm_runs(device, axes, name):
    z, seen = make_features((4, 3, *[5] * axes), device), []
    gate = make_gate(3, 4, 3, "layer").to(device)
    batch_norm = BATCH_NORMS[z.dim()](3).double().to(device)
    handle = Replaced(type(batch_norm), name, lambda: seen.append(1))
    try:
        assert not fused(drsn_ops.batch_norm_shrink, z, batch_norm, gate) and seen
    finally:
        handle.remove()
    assert fused(drsn_ops.batch_norm_shrink, z, batch_norm, gate)


def test_other_normalisations_are_called(device):
    gate = make_gate(4, 5, 4).to(device)
    z = make_features((3, 4, 9), device)
    for norm in (nn.GroupNorm(2, 4).double(), nn.Identity(), nn.InstanceNorm1d(4)):
        compare(z, norm.to(device), gate)
    with pytest.raises(ValueError, match="expected 4D input"):
        drsn_ops.batch_norm_shrink(z, nn.BatchNorm2d(4).double().to(device), gate)


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1), (1, 3, 1, 1)], ids=str)
def test_one_value_a_channel(device, shape):
    batch_norm, gate = make(shape, "layer", device)
    before = [b.clone() for b in batch_norm.buffers()]
    z = make_features(shape, device)
    message = (
        r"z: got one value a channel.*Expected more than 1 value per channel when training, got input size"
    )
    with pytest.raises(ValueError, match=message):
        drsn_ops.batch_norm_shrink(z, batch_norm, gate)
    assert all(torch.equal(a, b) for a, b in zip(batch_norm.buffers(), before, strict=True))
    compare(z, batch_norm.eval(), gate)


def test_a_gate_that_refuses_a_batch_of_one_leaves_the_other_statistics(device):
    batch_norm, gate = make((1, 3, 9), device=device)
    before = [b.clone() for b in batch_norm.buffers()]
    with pytest.raises(ValueError, match=r"z: got a batch of 1, expected at least 2"):
        drsn_ops.batch_norm_shrink(make_features((1, 3, 9), device), batch_norm, gate)
    assert all(torch.equal(a, b) for a, b in zip(batch_norm.buffers(), before, strict=True))


@pytest.mark.parametrize(
    "norm, outputs, statistic, train", pairwise(NORMS, ("channels", "one"), STATISTICS, (True, False))
)
def test_derivatives_of_every_order(device, norm, outputs, statistic, train):
    modules = make((3, 3, 2), norm, device, outputs=outputs, train=train, momentum=0.0)
    if norm == "batch":
        modules[1][1].momentum = 0.0  # gradcheck's many calls see the same statistics
    places = [(m, n) for top in modules for m in top.modules() for n in m._parameters]
    places = [(m, n) for m, n in places if m._parameters[n] is not None]
    z = make_features((3, 3, 2), device)
    inputs = (leaf(z), leaf(torch.randn_like(z)), *(leaf(m._parameters[n]) for m, n in places))

    def function(z, residual, *parameters):
        for (module, name), value in zip(places, parameters, strict=True):
            module._parameters[name] = value
        return drsn_ops.batch_norm_shrink(z, *modules, statistic=statistic, residual=residual)

    assert fused(function, *inputs)
    assert gradcheck(function, inputs, check_batched_grad=True)
    assert gradgradcheck(function, inputs, fast_mode=True)


def test_z_made_of_a_parameter_counts_once(device):
    """A parameter that z is made of too gets both shares, each once."""
    batch_norm, gate = make((4, 3, 9), device=device)
    base = make_features((4, 3, 9), device)
    others = copy.deepcopy(batch_norm), copy.deepcopy(gate)
    for create_graph in (False, True):
        y = drsn_ops.batch_norm_shrink(base * batch_norm.weight[:, None], batch_norm, gate)
        expected = reference.batch_norm_shrink(base * others[0].weight[:, None], *others)
        found = torch.autograd.grad(y.square().sum(), batch_norm.weight, create_graph=create_graph)
        close(
            found, torch.autograd.grad(expected.square().sum(), others[0].weight, create_graph=create_graph)
        )


@pytest.mark.parametrize("norm, train", [("batch", True), ("layer", False), ("none", True)])
def test_opcheck(device, norm, train):
    plain = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    z = make_features((4, 3, 5, 4), device).float()
    modules = [m.float() for m in make(z.shape, norm, device, train=train)]
    norm_, gate = plain_gate.plain_batch_norm(modules[0], z), plain_gate.plain_gate(modules[1], z)
    detach = [
        [t.detach().clone() if isinstance(t, torch.Tensor) else t for t in kept] for kept in (norm_, gate)
    ]
    opcheck(ops.batch_norm_shrink.default, (leaf(z), z, *norm_.functional, *gate.functional, False))
    opcheck(ops.batch_norm_shrink_.default, (z, None, *detach[0], *detach[1], True), test_utils=plain)
    functional = (*plain_gate.Norm(*detach[0]).functional, *plain_gate.Gate(*detach[1]).functional)
    y, mean, state, input_state = ops.batch_norm_shrink(z, None, *functional, False)
    opcheck(
        ops.batch_norm_shrink_backward.default,
        (
            y, z, *detach[0][:2], norm_.kind, mean, state, input_state, *detach[1][:6], gate.kind, gate.eps,
            False, True, train,
        ),
        test_utils=plain,
    )  # fmt: skip


@pytest.mark.parametrize("momentum", [0.1, None])
def test_compile(device, no_caches, momentum):
    modules = make((4, 3, 9), device=device, momentum=momentum)
    others = copy.deepcopy(modules)
    codes = []

    def backend(graph, inputs):
        codes.append(graph.code)
        return aot_eager(graph, inputs)

    compiled = torch.compile(drsn_ops.batch_norm_shrink, fullgraph=True, dynamic=True, backend=backend)
    for samples in (3, 5):
        z = leaf(make_features((samples, 3, 9), device))
        y, expected = compiled(z, *modules), reference.batch_norm_shrink(z, *others)
        close(y, expected)
        grad = torch.randn_like(y)
        for ours, other in zip(modules, others, strict=True):
            close(list(ours.buffers()), list(other.buffers()))
        inputs, wanted = ([z, *m[0].parameters(), *m[1].parameters()] for m in (modules, others))
        close(torch.autograd.grad(y, inputs, grad), torch.autograd.grad(expected, wanted, grad))
    assert all("batch_norm_shrink" in code for code in codes)


@pytest.mark.parametrize("train", [False, True])
def test_export(device, train):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.gate = make((4, 3, 9), device=device, train=train)

        def forward(self, z):
            return drsn_ops.batch_norm_shrink(z, self.norm, self.gate, residual=z)

    block = Block().train(train)
    program = torch.export.export(block, (make_features((4, 3, 9), device),), strict=False)
    assert "batch_norm_shrink" in program.graph_module.code
    z = make_features((4, 3, 9), device)
    close(program.module()(z), block(z))


def test_frozen_parameters(device):
    modules = make((4, 3, 9), device=device)
    z = make_features((4, 3, 9), device)
    for name in ("weight", "bias"):
        copies = copy.deepcopy(modules)
        for m in copies:
            m.requires_grad_(False)
        one = getattr(copies[0], name).requires_grad_()
        others = copy.deepcopy(copies)
        for create_graph in (False, True):
            loss = drsn_ops.batch_norm_shrink(z, *copies).square().sum()
            expected = reference.batch_norm_shrink(z, *others).square().sum()
            close(
                torch.autograd.grad(loss, one, create_graph=create_graph),
                torch.autograd.grad(expected, getattr(others[0], name), create_graph=create_graph),
            )


def everything(device="cpu"):
    """Results and gradients over types and layouts."""
    out = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        for layout in ("contiguous", "channels_last"):
            torch.manual_seed(0)
            modules = [m.to(accumulator(dtype)) for m in make((6, 37, 501), device=device)]
            z = leaf(lay_out(make_features((6, 37, 501), device).to(dtype), layout))
            y = drsn_ops.batch_norm_shrink(z, *modules, residual=z)
            out += [
                y,
                *torch.autograd.grad(y, (z, *(p for m in modules for p in m.parameters())), y.detach()),
            ]
    return [t.detach() for t in out]


def test_same_bits_run_after_run_for_any_number_of_threads(device):
    assert_same_bits(lambda: everything(device))


def test_a_residual_of_another_type_widens_the_result(device):
    modules = [m.float() for m in make((4, 3, 9), device=device, train=False)]
    z, residual = make_features((4, 3, 9), device).bfloat16(), torch.randn(4, 3, 9, device=device)
    y = drsn_ops.batch_norm_shrink(z, *modules, residual=residual)
    assert y.dtype == torch.float32
    assert torch.equal(y, drsn_ops.batch_norm_shrink(z, *modules) + residual)


def test_without_kernels(monkeypatch):
    monkeypatch.setattr(autograd, "serves", lambda x: False)
    z, modules = make_features((4, 3, 9)), make((4, 3, 9))
    assert operators_of(drsn_ops.batch_norm_shrink, z, *modules) == []
    compare(z, *modules)


Z, NORM, GATE = torch.randn(2, 4, 3), nn.BatchNorm1d(4), make_gate(4, 4, 4).float()
ERRORS = [
    (([1.0], NORM, GATE), {}, TypeError, r"z: got list, expected a tensor"),
    ((Z.long(), NORM, GATE), {}, TypeError, r"z: got a tensor of torch\.int64, expected one of float16"),
    ((Z[0, 0], NORM, GATE), {}, ValueError, r"z: got shape \(3,\), expected \(N, C, \*spatial\)"),
    ((Z, 1.0, GATE), {}, TypeError, r"batch_norm: got float, expected a torch\.nn\.Module"),
    ((Z, NORM, drsn_ops.Shrinkage(4)), {}, TypeError, r"gate: got Shrinkage, expected .* its fc"),
    ((Z, NORM, None), {}, TypeError, r"gate: got NoneType, expected a torch\.nn\.Module"),
    (
        (Z, NORM, GATE),
        {"statistic": "row"},
        ValueError,
        r"statistic: got 'row', expected 'channel' or 'sample'",
    ),
    ((Z, NORM, GATE), {"residual": Z[:1]}, ValueError, r"residual: got shape .*\(2, 4, 3\), that of z"),
    ((Z, NORM, GATE), {"residual": Z.to("meta")}, ValueError, r"residual: .*cpu, the device of z"),
]


@pytest.mark.parametrize("args, options, error, message", ERRORS, ids=[e[-1] for e in ERRORS])
def test_errors(args, options, error, message):
    with pytest.raises(error, match=message):
        drsn_ops.batch_norm_shrink(*args, **options)
    assert NORM.num_batches_tracked == 0 and GATE[1].num_batches_tracked == 0
