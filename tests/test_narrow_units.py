"""Units of few channels: where a convolution is part of an operator, where PyTorch convolves, and the same numbers."""

import copy

import pytest
import torch
from checks import Replaced, lay_out, leaf, operators_of, randomise
from test_batch_norm_relu_conv import NAME, draw, fused, make, run
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, vmap
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from drsn_ops import RSBU
from drsn_ops.layers import activated_convolution
from drsn_ops.models import ConvolutionalUnit, drsn
from drsn_ops.ops import library, residual_unit

pytestmark = pytest.mark.skipif(library.simd == "default", reason="PyTorch convolves on this processor")


def test_pytorch_convolves_where_the_instruction_set_has_no_kernels():
    run("import test_narrow_units as t\nassert not t.fused(*t.unit_and_input())", "default", "")


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


@pytest.mark.parametrize("train", [True, False])
def test_floating_point_operations_are_counted(train):
    """The counter hooks every module, and so they are called."""
    unit, x = unit_and_input(thresholds=None)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(train):
        y = unit.train(train)(x)
    taps = sum(conv.weight.numel() for conv in (unit.conv1, unit.conv2))
    assert counter.get_total_flops() == 2 * taps * y.shape[0] * y.shape[2]


def test_the_shrinkage_overwrites_what_the_operator_made(monkeypatch):
    """Where nobody else has seen it: no mode, and no hook of the shrinkage."""
    unit, x = unit_and_input()
    made, seen, own = [], [], residual_unit.activated_convolution

    def activated(*args):
        result = own(*args)
        made.append(result[0])
        return result

    monkeypatch.setattr(residual_unit, "activated_convolution", activated)
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
        if reentrant:  # runs without a gradient first, by the operator that folds the second BatchNorm
            torch.testing.assert_close(found, expected[: len(found)], rtol=1e-4, atol=1e-5)
        else:
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=False))


def test_a_network_compiled_by_inductor(no_caches):
    network, x = randomise(drsn(1, 3, blocks=3, widths=(4, 8, 16))), torch.randn(4, 1, 64)
    compiled = torch.compile(copy.deepcopy(network), fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled.eval()(x), network.eval()(x), rtol=1e-4, atol=1e-5)
    same_step(network.train(), x, compiled.train())


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
