"""The operator with a gate inside against the gate's modules, and when the modules are called after all."""

import contextlib
import copy
import subprocess
import sys

import pytest
import torch
from checks import (
    EMPTY,
    LAYOUTS,
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
)
from torch import nn
from torch._dynamo.backends.debugging import aot_eager
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck
from torch.nn.modules import module as torch_module
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

import drsn_ops
from drsn_ops import RSBU, Shrinkage, reference
from drsn_ops.ops import autograd, library, masks, plain_gate

ops = torch.ops.drsn_ops
STATISTICS = ("channel", "sample")
BATCH_OF_ONE = r"Expected more than 1 value per channel when training, got input size torch\.Size\(\[1, 4\]\)"


def fused(function, *args, **options):
    names = operators_of(function, *args, **options)
    return any(name.startswith("gated_shrink") for name in names)


def close(actual, expected):
    # float64 on both sides; only the order of sums differs
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def compare(x, gate, statistic="channel", residual=None, **options):
    """Value, every gradient and the buffers, against the modules; float64."""
    other = copy.deepcopy(gate)
    x, other_x = leaf(x), leaf(x)
    residual, other_residual = (None, None) if residual is None else (leaf(residual), leaf(residual))
    y = drsn_ops.gated_shrink(x, gate, statistic=statistic, residual=residual, **options)
    expected = reference.gated_shrink(other_x, other, statistic=statistic, residual=other_residual)
    close(y, expected)
    close(list(gate.buffers()), list(other.buffers()))
    inputs = [t for t in (x, residual, *gate.parameters()) if t is not None and t.requires_grad]
    others = [t for t in (other_x, other_residual, *other.parameters()) if t is not None and t.requires_grad]
    grad = torch.randn_like(expected)
    close(torch.autograd.grad(y, inputs, grad), torch.autograd.grad(expected, others, grad))


def gate_of_rows(shape, outputs, norm, device, train=True, **options):
    """A gate for x of this shape, with an odd number of hidden features."""
    channels = shape[1]
    gate = make_gate(channels, channels // 2 | 1, channels if outputs == "channels" else 1, norm, **options)
    return gate.train(train).to(device)


@pytest.mark.parametrize(
    "shape, norm, outputs, statistic, train",
    pairwise(SHAPES, NORMS, ("channels", "one"), STATISTICS, (True, False)),
    ids=str,
)
def test_against_the_modules(device, shape, norm, outputs, statistic, train):
    if shape[0] == 1 and norm == "batch":
        train = False  # a batch of one has no statistics
    gate = gate_of_rows(shape, outputs, norm, device, train)
    x = make_features(shape, device)
    compare(x, gate, statistic, torch.randn_like(x))
    assert fused(drsn_ops.gated_shrink, x, gate)


@pytest.mark.parametrize("channels, hidden", [(1, 1), (2, 3), (70, 35), (300, 301), (5, 64)])
@pytest.mark.parametrize("norm", NORMS)
def test_widths(device, channels, hidden, norm):
    for outputs in {1, channels}:
        compare(
            make_features((4, channels, 6), device), make_gate(channels, hidden, outputs, norm).to(device)
        )


@pytest.mark.parametrize("layout, norm, statistic", pairwise(LAYOUTS, NORMS, STATISTICS))
def test_layouts(device, layout, norm, statistic):
    x = make_features((4, 6, 7, 5), device)
    gate = gate_of_rows(x.shape, "channels", norm, device).eval()  # expanded memory repeats one sample
    compare(lay_out(x, layout), gate, statistic, lay_out(torch.randn_like(x), layout))
    if layout == "channels_last":
        y = drsn_ops.gated_shrink(lay_out(x, layout), gate)
        assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "dtype, wide_gate, norm, train, shape",
    pairwise(
        (torch.float32, torch.bfloat16, torch.float16),
        (True, False),
        NORMS,
        (True, False),
        ((6, 9, 50), (5, 33, 7, 7), (4, 8)),
    ),
    ids=str,
)
def test_narrow_types(device, dtype, wide_gate, norm, train, shape):
    gate = gate_of_rows(shape, "channels", norm, device, train)
    gate.to(torch.float32 if wide_gate else dtype)
    if norm == "rms":
        gate[1].eps = torch.finfo(torch.float32).eps
    compare_rounded(shape, dtype, gate)


def compare_rounded(shape, dtype, gate, statistic="channel", layout="contiguous"):
    """Value, every gradient and the buffers, up to the rounding of the type, against the modules in float64."""
    device = gate[0].weight.device
    exact = copy.deepcopy(gate).double()
    x = make_features(shape, device)
    x, residual, grad = x.to(dtype), *(torch.randn(shape, device=device).to(dtype) for _ in range(2))
    exact_x = leaf(x.double())
    alpha = copy.deepcopy(exact)(reference.abs_mean(exact_x))
    tau = alpha * reference.abs_mean(exact_x, statistic=statistic)
    grad = grad.masked_fill(at_kinks(x, reference.per_row(tau, x)), 0)
    x, residual, grad = leaf(lay_out(x, layout)), lay_out(residual, layout), lay_out(grad, layout)
    y = drsn_ops.gated_shrink(x, gate, statistic=statistic, residual=residual)
    expected = reference.gated_shrink(exact_x, exact, statistic=statistic, residual=residual.double())
    assert y.dtype == dtype and fused(drsn_ops.gated_shrink, x, copy.deepcopy(gate))
    assert_close(y, expected, terms=8 * expected.abs().max().item())
    found = torch.autograd.grad(y, (x, *gate.parameters()), grad)
    wanted = torch.autograd.grad(expected, (exact_x, *exact.parameters()), grad.double())
    # The gate's derivatives are sums over all of x.
    terms = (grad.double() * exact_x).abs().sum().item()
    for a, b in zip(found, wanted, strict=True):
        assert_close(a, b, terms=terms)
    for a, b in zip(gate.buffers(), exact.buffers(), strict=True):
        if a.is_floating_point():
            assert_close(a, b, terms=8.0)
        else:
            assert a == b == (1 if gate.training else 0)


@pytest.mark.parametrize("momentum", [None, 0.0, 0.3, 1.0, 1])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("tracks", [True, False])
def test_batch_norm_options(device, momentum, affine, tracks):
    gate = make_gate(4, 5, 4, momentum=momentum, affine=affine, track_running_stats=tracks, eps=1e-3).to(
        device
    )
    for step in range(3):
        compare(make_features((3 + step, 4, 8), device), gate)
    compare(make_features((3, 4, 8), device), gate.eval())
    assert fused(drsn_ops.gated_shrink, make_features((3, 4, 8), device), gate)
    with torch.no_grad():
        compare_without_gradient(gate.train())


def compare_without_gradient(gate, layout="contiguous"):
    """Training mode brings the statistics up to date without a gradient too."""
    device = gate[0].weight.device
    other, x = copy.deepcopy(gate), lay_out(make_features((3, 4, 8), device), layout)
    close(drsn_ops.gated_shrink(x, gate), reference.gated_shrink(x, other))
    close(list(gate.buffers()), list(other.buffers()))


@pytest.mark.parametrize("norm, options", [
    ("layer", {"elementwise_affine": False}), ("layer", {"bias": False, "eps": 0.1}),
    ("rms", {"elementwise_affine": False}), ("rms", {"eps": 0.1}), ("none", {}),
])  # fmt: skip
@pytest.mark.parametrize("bias", [True, False])
def test_options_of_the_layers(device, norm, options, bias):
    gate = make_gate(4, 5, 4, norm, linear_bias=bias, **options).to(device)
    compare(make_features((3, 4, 8), device), gate)
    assert fused(drsn_ops.gated_shrink, make_features((3, 4, 8), device), gate)


def test_a_buffer_that_a_training_gate_does_not_track_stays(device):
    gate = make_gate(4, 5, 4).to(device)
    gate[1].track_running_stats = False
    before = [b.clone() for b in gate.buffers()]
    compare(make_features((3, 4, 8), device), gate)
    assert all(torch.equal(a, b) for a, b in zip(gate.buffers(), before, strict=True))
    compare(make_features((3, 4, 8), device), gate.eval())


def test_autograd_knows_that_the_counter_was_written(device):
    gate = make_gate(4, 5, 4).to(device)
    version = gate[1].num_batches_tracked._version
    drsn_ops.gated_shrink(make_features((3, 4, 8), device), gate)
    assert gate[1].num_batches_tracked._version > version


def test_eval_then_train_then_backward(device):
    """The backward pass of an evaluation works from the statistics it has used, whatever they are by then."""
    gate = make_gate(4, 5, 4).to(device).eval()
    x = leaf(make_features((3, 4, 8), device))
    wanted = torch.autograd.grad(drsn_ops.gated_shrink(x, gate).square().sum(), x)
    y = drsn_ops.gated_shrink(x, gate)
    drsn_ops.gated_shrink(x.detach(), gate.train())
    close(torch.autograd.grad(y.square().sum(), x), wanted)


@pytest.mark.parametrize("call", [
    lambda x, gate: drsn_ops.gated_shrink(x, gate),
    lambda x, gate: drsn_ops.gated_shrink(x, gate, inplace=True),
    lambda x, gate: drsn_ops.batch_norm_shrink(x, nn.BatchNorm1d(3).to(x), gate),
])  # fmt: skip
@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("train", [False, True])
def test_batch_of_one(device, call, hooked, train):
    gate = make_gate(3, 4, 3, track_running_stats=train).train(train).to(device)
    if hooked:
        gate.register_forward_hook(lambda *_: None)
    x = torch.randn(1, 3, 7, dtype=torch.float64, device=device)
    before = [t.clone() for t in (x, *gate.buffers())]
    with pytest.raises(ValueError, match=BATCH_OF_ONE) as ours:
        call(x, gate)
    assert "norm='layer'" in str(ours.value)
    assert all(torch.equal(a, b) for a, b in zip((x, *gate.buffers()), before, strict=True))
    with pytest.raises(ValueError, match=BATCH_OF_ONE):
        reference.gated_shrink(x, gate)


@pytest.mark.parametrize("shape", EMPTY, ids=str)
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_without_elements(device, shape, train):
    for norm in NORMS:
        compare(make_features(shape, device), gate_of_rows(shape, "channels", norm, device, train))


@pytest.mark.parametrize("layout", LAYOUTS[:-1])
@pytest.mark.parametrize("needs_grad", [False, True])
@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_in_place(device, layout, needs_grad, norm):
    gate = make_gate(3, 5, 3, norm).to(device).requires_grad_(needs_grad)
    other = copy.deepcopy(gate)
    start = make_features((4, 3, 4, 5), device).requires_grad_(needs_grad)
    residual = torch.randn_like(start, requires_grad=needs_grad)
    x = lay_out(start * 1, layout)
    expected = reference.gated_shrink(start, other, residual=residual)
    version = x._version
    y = drsn_ops.gated_shrink(x, gate, residual=residual, inplace=True)
    assert y is x and x._version > version
    close(y, expected)
    close(list(gate.buffers()), list(other.buffers()))
    if needs_grad:
        grad = torch.randn_like(y)
        wanted = torch.autograd.grad(expected, (start, residual, *other.parameters()), grad)
        close(torch.autograd.grad(y, (start, residual, *gate.parameters()), grad), wanted)


def test_in_place_on_a_leaf_or_a_view(device):
    gate = make_gate(3, 5, 3).to(device)
    start = leaf(make_features((4, 3, 5), device))
    before = [t.detach().clone() for t in (start, *gate.buffers())]
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad"):
        drsn_ops.gated_shrink(start, gate, inplace=True)
    with pytest.raises(RuntimeError, match="more than one element of the written-to tensor"):
        drsn_ops.gated_shrink(start.detach()[:1].expand(4, 3, 5), gate, inplace=True)
    assert all(torch.equal(a.detach(), b) for a, b in zip((start, *gate.buffers()), before, strict=True))
    other = copy.deepcopy(gate)
    base = start * 1
    drsn_ops.gated_shrink(base[:2], gate, inplace=True)
    expected = torch.cat([reference.gated_shrink(start[:2], other), start[2:]])
    close(base, expected)
    close(list(gate.buffers()), list(other.buffers()))
    grad = torch.randn_like(base)
    close(
        torch.autograd.grad(base, (start, *gate.parameters()), grad),
        torch.autograd.grad(expected, (start, *other.parameters()), grad),
    )


def test_a_residual_of_another_type_widens_the_result(device):
    gate = make_gate(3, 5, 3).float().to(device)
    x, residual = torch.randn(4, 3, 10, device=device).bfloat16(), torch.randn(4, 3, 10, device=device)
    y = drsn_ops.gated_shrink(x, gate, residual=residual)
    assert y.dtype == torch.float32 and torch.equal(y, drsn_ops.gated_shrink(x, gate) + residual)
    assert drsn_ops.gated_shrink(x, gate, residual=residual, inplace=True).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "norm, outputs, statistic, train", pairwise(NORMS, (1, 3), STATISTICS, (True, False))
)
def test_derivatives_of_every_order(device, norm, outputs, statistic, train):
    gate = make_gate(3, 5, outputs, norm).train(train).to(device)
    if norm == "batch":
        gate[1].momentum = 0.0  # gradcheck's many calls see the same statistics
    names, parameters = zip(*gate.named_parameters(), strict=True)
    x = lay_out(make_features((3, 3, 2, 1), device), "channels_last" if outputs == 1 else "contiguous")
    inputs = (leaf(x), leaf(torch.randn_like(x)), *(leaf(p) for p in parameters))

    def function(x, residual, *parameters):
        # plain tensors in the modules' places, so that derivatives reach the inputs
        for name, value in zip(names, parameters, strict=True):
            layer, kind = name.split(".")
            gate[int(layer)]._parameters[kind] = value
        return drsn_ops.gated_shrink(x, gate, statistic=statistic, residual=residual)

    assert fused(function, *inputs)
    assert gradcheck(function, inputs, check_batched_grad=True)
    assert gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize(
    "frozen", ["x", "0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias", "all"]
)
def test_frozen_parameters(device, frozen):
    gate = make_gate(4, 5, 4).to(device)
    for name, parameter in gate.named_parameters():
        parameter.requires_grad_(frozen not in (name, "all"))
    x = leaf(make_features((3, 4, 8), device)) if frozen != "x" else make_features((3, 4, 8), device)
    other = copy.deepcopy(gate)
    inputs = [t for t in (x, *gate.parameters()) if t.requires_grad]
    others = [t for t in (x, *other.parameters()) if t.requires_grad]
    for options in ({}, {"create_graph": True}):
        found = torch.autograd.grad(drsn_ops.gated_shrink(x, gate).square().sum(), inputs, **options)
        wanted = torch.autograd.grad(reference.gated_shrink(x, other).square().sum(), others, **options)
        close(found, wanted)
    residual = leaf(torch.randn_like(x))
    gate.requires_grad_(False)
    y = drsn_ops.gated_shrink(x.detach(), gate, residual=residual)
    assert torch.equal(torch.autograd.grad(y, residual, torch.ones_like(y))[0], torch.ones_like(y))


# When the modules are called. An attachment changes the gate and says what it saw, or None for what sees nothing.


class Recorder(list):
    def __call__(self, *args):
        self.append(1)


def replaced(name):
    def attach(gate, seen):
        original = getattr(gate[2], name)

        def method(h):
            seen()
            return original(h)

        setattr(gate[2], name, method)

    return attach


class Subclass(nn.Linear):
    def forward(self, m):
        self.seen()
        return super().forward(m)


def subclassed(gate, seen):
    layer = Subclass(4, 5, dtype=torch.float64, device=gate[0].weight.device)
    layer.load_state_dict(gate[0].state_dict())
    layer.seen = seen
    gate[0] = layer


def sequential_subclass(gate, seen):
    class Mine(nn.Sequential):
        def forward(self, m):
            seen()
            return super().forward(m)

    gate.__class__ = Mine


def parametrized(gate, seen):
    nn.utils.parametrizations.weight_norm(gate[0])
    gate[0].parametrizations.weight.register_forward_hook(seen)


def pruned(gate, seen):
    with torch.no_grad():  # for the sake of deepcopy
        prune.l1_unstructured(gate[3], "weight", 0.5)
    gate[3].register_forward_hook(seen)


ATTACHMENTS = {
    "forward hook": lambda gate, seen: gate[4].register_forward_hook(seen),
    "forward hook of the gate": lambda gate, seen: gate.register_forward_hook(seen),
    "pre-hook": lambda gate, seen: gate[1].register_forward_pre_hook(seen),
    "backward hook": lambda gate, seen: gate[3].register_full_backward_hook(seen),
    "backward pre-hook": lambda gate, seen: gate[3].register_full_backward_pre_hook(seen),
    "global forward hook": lambda gate, seen: torch_module.register_module_forward_hook(seen),
    "global pre-hook": lambda gate, seen: torch_module.register_module_forward_pre_hook(seen),
    "global backward hook": lambda gate, seen: torch_module.register_module_full_backward_hook(seen),
    "global backward pre-hook": lambda gate, seen: torch_module.register_module_full_backward_pre_hook(seen),
    "replaced forward": replaced("forward"),
    "replaced call": replaced("_call_impl"),
    "subclass": subclassed,
    "subclass of Sequential": sequential_subclass,
    "parametrization": parametrized,
    "pruning": pruned,
}
METHODS = [
    *((kind, name) for kind in (nn.Sequential, nn.Linear, nn.ReLU, nn.Sigmoid) for name in ("forward", "__call__")),
    *((nn.BatchNorm1d, name) for name in ("forward", "__call__")),
    (_BatchNorm, "forward"), (nn.Module, "__call__"), (nn.Module, "_call_impl"), (nn.Linear, "_call_impl"),
]  # fmt: skip
ATTACHMENTS |= {
    f"{kind.__name__}.{name}": lambda gate, seen, kind=kind, name=name: Replaced(kind, name, seen)
    for kind, name in METHODS
}


@pytest.mark.parametrize("attachment", ATTACHMENTS)
@pytest.mark.parametrize("train", [True, False])
def test_what_is_attached_to_a_gate_runs(device, attachment, train):
    gate, seen = make_gate(4, 5, 4).train(train).to(device), Recorder()
    gate[2].inplace = False  # what a backward hook on every module asks for
    x = make_features((3, 4, 8), device)
    assert fused(drsn_ops.gated_shrink, x, gate)
    with contextlib.ExitStack() as stack:
        handle = ATTACHMENTS[attachment](gate.to(device), seen)
        if hasattr(handle, "remove"):
            stack.callback(handle.remove)
        gate.train(train)
        with torch.no_grad():
            assert not fused(drsn_ops.gated_shrink, x, gate)
        compare(x, gate)
        seen.clear()
        drsn_ops.gated_shrink(leaf(x), gate).sum().backward()
        assert seen


def test_gates_of_another_make_are_called(device):
    x = make_features((3, 4, 8), device)
    others = {
        "SyncBatchNorm": nn.SyncBatchNorm.convert_sync_batchnorm(make_gate(4, 5, 4)).eval(),
        "GELU": make_gate(4, 5, 4),
        "six layers": nn.Sequential(*make_gate(4, 5, 4), nn.Identity()),
        "negative momentum": make_gate(4, 5, 4, momentum=-0.5),
        "one Linear": nn.Linear(4, 4).double(),
        "tensor": make_gate(4, 5, 4),
    }
    others["GELU"][2] = nn.GELU()
    others["tensor"][0].weight = nn.Parameter(others["tensor"][0].weight.data.as_subclass(Marked))
    for name, gate in others.items():
        gate.to(device)
        if name == "tensor":  # not to be copied
            assert plain_gate.plain_gate(gate, x) is None
            continue
        assert not fused(drsn_ops.gated_shrink, x, gate), name
        compare(x, gate)


def test_a_gate_of_another_type_computes_in_the_accumulators(device):
    x = make_features((3, 4, 8), device)
    gate = make_gate(4, 5, 4).to(device).float().eval()
    wide = copy.deepcopy(gate).double()
    gate[1].double()  # types may even be mixed
    assert fused(drsn_ops.gated_shrink, x, gate)
    assert torch.equal(drsn_ops.gated_shrink(x, gate), drsn_ops.gated_shrink(x, wide))


class Marked(torch.Tensor):
    """A tensor of another class, as DTensor is."""


@pytest.mark.parametrize("norm", NORMS)
def test_a_forward_replaced_on_the_class_of_the_normalisation_runs(device, norm):
    gate, seen = make_gate(4, 5, 4, norm).to(device), Recorder()
    x = make_features((3, 4, 8), device)
    handle = Replaced(NORMS[norm], "forward", seen)
    try:
        assert not fused(drsn_ops.gated_shrink, x, gate) and seen
    finally:
        handle.remove()
    assert fused(drsn_ops.gated_shrink, x, gate)


REPLACED_BEFORE = """
import functools, os, sys, torch
sys.path[:0] = sys.argv[1:]

def replace(kind, name):
    seen = []
    original = getattr(kind, name)

    @functools.wraps(original)
    def method(module, *args):
        seen.append(1)
        return original(module, *args)

    setattr(kind, name, method)
    import drsn_ops
    shrinkage, x = drsn_ops.Shrinkage(3).eval(), torch.randn(2, 3, 4)
    drsn_ops.gated_shrink(x, shrinkage.fc)
    return bool(seen)

for kind, name in ((torch.nn.Linear, "forward"), (torch.nn.Module, "__call__"), (torch.nn.Module, "_call_impl")):
    child = os.fork()  # one import of PyTorch serves all
    if child == 0:
        os._exit(0 if replace(kind, name) else 1)
    assert os.waitpid(child, 0)[1] == 0, (kind, name)
"""


def test_a_method_replaced_on_a_class_before_the_import_runs():
    subprocess.run([sys.executable, "-c", REPLACED_BEFORE, *sys.path], check=True)


def test_compile_sees_a_forward_that_is_replaced_on_a_class_later(device, no_caches):
    codes = []

    def backend(graph, _):
        codes.append(graph.code)
        return graph.forward

    module, seen = Shrinkage(4).to(device), Recorder()
    compiled = torch.compile(module, backend=backend)
    x = torch.randn(3, 4, 6, device=device)
    compiled(x)
    assert "gated_shrink" in codes[-1]
    handle = Replaced(nn.Sigmoid, "forward", seen)
    try:
        compiled(x)
        assert "gated_shrink" not in codes[-1] and "sigmoid" in codes[-1] and seen
    finally:
        handle.remove()


class Stored(nn.Module):
    """A linear layer whose weights are kept in a narrow type and scaled in ``forward``."""

    def __init__(self, linear, dtype, scale_dtype=None):
        super().__init__()
        largest = torch.iinfo(dtype).max if dtype == torch.int8 else 1.0
        scale = linear.weight.detach().abs().max() / largest
        stored = linear.weight.detach() / scale
        stored = stored.round() if dtype == torch.int8 else stored
        self.weight = nn.Parameter(stored.to(dtype), requires_grad=False)
        if scale_dtype is None:
            self.scale = scale.item()
        else:
            self.scale = nn.Parameter(scale.to(scale_dtype))

    def forward(self, m):
        self.came = m.dtype
        wide = m.dtype if isinstance(self.scale, float) else self.scale.dtype
        return nn.functional.linear(m, self.weight.to(wide) * self.scale)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("x_dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_gate_with_weights_that_are_only_stored_gets_the_means_as_they_are(device, dtype, x_dtype):
    gate = nn.Sequential(Stored(nn.Linear(4, 4), dtype), nn.Sigmoid()).to(device)
    x = make_features((3, 4, 8), device).to(x_dtype)
    y = drsn_ops.gated_shrink(x, gate)
    assert gate[0].came == reference.accumulator(x_dtype)
    mean = reference.abs_mean(x)
    expected = reference.shrink(x, gate(mean))
    assert torch.equal(reference.gated_shrink(x, gate), expected)
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_gate_computes_in_the_type_of_its_scales(device, dtype, scale_dtype):
    gate = nn.Sequential(Stored(nn.Linear(4, 4), dtype, scale_dtype), nn.Sigmoid()).to(device)
    x = make_features((3, 4, 8), device).float()
    drsn_ops.gated_shrink(x, gate)
    assert gate[0].came == scale_dtype


def test_a_gate_without_parameters_gets_the_means_as_they_are(device):
    came = []
    gate = nn.Sigmoid()
    gate.register_forward_pre_hook(lambda _, args: came.append(args[0].dtype))
    for dtype in (torch.bfloat16, torch.float64):
        drsn_ops.gated_shrink(make_features((3, 4, 8), device).to(dtype), gate)
    assert came == [torch.float32, torch.float64]


class Quantized(torch.Tensor):
    """A bfloat16 matrix to all that ask, kept as int8 and a scale, as other libraries' tensors are."""

    @staticmethod
    def __new__(cls, stored, scale):
        return torch.Tensor._make_wrapper_subclass(
            cls, stored.shape, dtype=torch.bfloat16, device=stored.device
        )

    def __init__(self, stored, scale):
        self.stored, self.scale = stored, scale

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        def plain(t):
            return t.stored.bfloat16() * t.scale if isinstance(t, cls) else t

        if function is torch.ops.aten.detach.default:
            return cls(args[0].stored, args[0].scale)
        return function(*torch.utils._pytree.tree_map(plain, args), **(kwargs or {}))


def test_a_gate_of_another_librarys_tensors_computes_in_the_type_that_they_show(device):
    gate = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Sigmoid()).to(device)
    stored = torch.randint(-128, 128, (4, 4), dtype=torch.int8, device=device)
    gate[0].weight = nn.Parameter(Quantized(stored, 0.01), requires_grad=False)
    plain = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Sigmoid()).to(device, torch.bfloat16)
    plain[0].weight = nn.Parameter(stored.bfloat16() * 0.01)
    x = make_features((3, 4, 8), device).float()
    assert torch.equal(drsn_ops.gated_shrink(x, gate), drsn_ops.gated_shrink(x, plain))


def test_a_gate_for_another_number_of_channels(device):
    x = make_features((3, 4, 8), device)
    for gate in (make_gate(5, 5, 4), make_gate(4, 5, 2)):
        with pytest.raises((RuntimeError, ValueError)) as ours:
            drsn_ops.gated_shrink(x, gate.to(device))
        assert "shape" in str(ours.value)


def test_a_gate_with_a_tensor_elsewhere_never_computes_on_it(device):
    x = make_features((3, 4, 8), device)
    gate = make_gate(4, 5, 4).to(device)
    gate[0].weight = nn.Parameter(torch.empty(5, 4, device="meta", dtype=x.dtype))
    assert plain_gate.plain_gate(gate, x) is None


class OverChannels(nn.Module):
    """A gate whose BatchNorm sees all channels of a sample as values of one feature."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(1).double()

    def forward(self, mean):
        return self.norm(mean[:, None])[:, 0].sigmoid()


def test_a_batch_of_one_for_a_gate_that_has_enough_values(device):
    x = make_features((1, 4, 8), device)
    gate = OverChannels().to(device)
    close(drsn_ops.gated_shrink(x, gate), reference.gated_shrink(x, gate))


def test_a_gate_that_returns_another_shape(device):
    with pytest.raises(
        ValueError, match=r"gate: returned shape \(3, 2\), expected a tensor of shape \(3, 4\)"
    ):
        drsn_ops.gated_shrink(make_features((3, 4, 8), device), nn.Linear(4, 2).double().to(device))


def test_double_backward_through_a_checkpoint(device):
    x = leaf(make_features((3, 4, 8), device))
    gate = make_gate(4, 5, 4, "layer").to(device)
    found = []
    for call in (
        lambda: checkpoint(drsn_ops.gated_shrink, x, gate, use_reentrant=False),
        lambda: drsn_ops.gated_shrink(x, gate),
    ):
        (dx,) = torch.autograd.grad(call().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(dx.square().sum(), x))
    close(*found)


def test_a_graph_of_the_gradient_is_not_autocast(device):
    module = Shrinkage(4).to(device)
    x = leaf(make_features((6, 4, 30), device).float())
    gradients = []
    for enabled in (False, True):
        with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
            y = module(x)
            gradients.append(
                torch.autograd.grad(y.square().sum(), (x, *module.parameters()), create_graph=True)
            )
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_jit_trace_follows_the_modules(device):
    module = Shrinkage(4).double().to(device).eval()
    x = make_features((3, 4, 8), device)
    close(torch.jit.trace(module, x, check_trace=False)(x), module(x))


def test_a_replica_has_its_weights_as_attributes(device):
    gate = Shrinkage(4, norm="none").bfloat16().to(device).fc
    replica = gate._replicate_for_data_parallel()
    for name, layer in gate._modules.items():
        copied = replica._modules[name] = layer._replicate_for_data_parallel()
        for key, parameter in layer._parameters.items():
            setattr(copied, key, parameter.detach())
    x = make_features((3, 4, 8), device).bfloat16()
    torch.testing.assert_close(
        drsn_ops.gated_shrink(x, replica), drsn_ops.gated_shrink(x, gate), rtol=0.05, atol=0.05
    )


def test_compiled_statistics_of_small_numbers(device, no_caches):
    x = make_features((6, 4, 30), device).float() * 1e-4
    eager, compiled = (Shrinkage(4).to(device) for _ in range(2))
    compiled.load_state_dict(eager.state_dict())
    for module in (eager, compiled):
        module.fc[1].momentum = None
    eager(x)
    torch.compile(compiled, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(compiled.fc[1].running_var, eager.fc[1].running_var, rtol=1e-3, atol=0)


def test_without_kernels(monkeypatch):
    monkeypatch.setattr(library, "_warned", False)
    monkeypatch.setattr(autograd, "serves", lambda x: library.has_kernels(torch.device("mps")))
    with pytest.warns(RuntimeWarning, match="plain PyTorch operators on mps"):
        assert operators_of(drsn_ops.gated_shrink, make_features((3, 4, 8)), make_gate(4, 5, 4)) == []
    compare(make_features((3, 4, 8)), make_gate(4, 5, 4))


# The module.


def test_checkpoints_load_both_ways(device):
    for norm in NORMS:
        ours = Shrinkage(4, norm=norm, reduction=2).double().to(device)
        plain = make_gate(4, 2, 4, norm).to(device)
        ours.fc.load_state_dict(plain.state_dict())
        x = make_features((3, 4, 8), device)
        close(ours(x), reference.gated_shrink(x, copy.deepcopy(plain)))
        plain.load_state_dict({k.removeprefix("fc."): v for k, v in ours.state_dict().items()})


def unit_and_input(device):
    torch.manual_seed(0)
    return RSBU(3, 4, stride=2).double().to(device), leaf(make_features((5, 3, 16), device))


@pytest.mark.parametrize("train", [True, False])
def test_unit_runs_one_operator_for_each_of_its_parts(device, train):
    unit, x = unit_and_input(device)
    other, other_x = copy.deepcopy(unit.train(train)), leaf(x)
    names = operators_of(unit, x)
    assert names == ["batch_norm_relu_", "batch_norm_relu_", "gated_shrink_"]
    unit.load_state_dict(other.state_dict())
    other.shrink.use_reference = True
    y, expected = unit(x), other(other_x)
    close(y, expected)
    grad = torch.randn_like(y)
    close(
        torch.autograd.grad(y, (x, *unit.parameters()), grad),
        torch.autograd.grad(expected, (other_x, *other.parameters()), grad),
    )
    close(list(unit.buffers()), list(other.buffers()))


# PyTorch's machinery.


def arguments_of_operators(device, norm="batch", dtype=torch.float32, layout="contiguous", train=True):
    x = lay_out(make_features((4, 3, 5, 4), device).to(dtype), layout)
    gate = make_gate(3, 5, 3, norm).to(device, reference.accumulator(dtype)).train(train)
    return x, plain_gate.plain_gate(gate, x)


@pytest.mark.parametrize("layout, norm, train", [
    ("contiguous", "batch", True), ("channels_last", "batch", False), ("transposed", "layer", True),
    ("channels_last", "rms", True), ("contiguous", "none", False),
])  # fmt: skip
def test_opcheck(device, layout, norm, train):
    plain = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    dtype = torch.bfloat16 if layout == "channels_last" else torch.float32
    x, gate = arguments_of_operators(device, norm, dtype, layout, train)
    frozen = plain_gate.Gate(*(t.detach() if isinstance(t, torch.Tensor) else t for t in gate))
    opcheck(ops.gated_shrink.default, (x, x, *frozen.functional, False), test_utils=plain)
    opcheck(ops.gated_shrink_with_mask.default, (leaf(x), x, *gate.functional, True))
    for inplace in (False, True)[: 1 if layout == "transposed" else 2]:
        written = [t.clone() if isinstance(t, torch.Tensor) else t for t in frozen]
        opcheck(
            ops.gated_shrink_.default,
            (x.clone(), None, *written, False, inplace, not inplace),
            test_utils=plain,
        )
    y, mean, state, mask = ops.gated_shrink_with_mask(x, None, *frozen.functional, False)
    opcheck(
        ops.gated_shrink_backward.default,
        (
            y, mean, mask, mean, state, *frozen.parameters, gate.kind, gate.eps,
            False, masks.is_channels_last(x), True, train,
        ),
        test_utils=plain,
    )  # fmt: skip


@pytest.mark.parametrize("norm, momentum, inplace", [
    ("batch", 0.1, True), ("batch", None, False), ("layer", None, True), ("rms", None, False),
])  # fmt: skip
def test_compile(device, no_caches, norm, momentum, inplace):
    module = Shrinkage(4, norm=norm).double().to(device)
    module.inplace = inplace
    if norm == "batch":
        module.fc[1].momentum = momentum
    other = copy.deepcopy(module)
    other.inplace = False

    codes = []

    def backend(graph, inputs):
        codes.append(graph.code)
        return aot_eager(graph, inputs)

    @torch.compile(fullgraph=True, dynamic=True, backend=backend)
    def compiled(x):
        return module(x * 1)

    for samples in (3, 5, 4):
        x = leaf(make_features((samples, 4, 6), device))
        y, expected = compiled(x), other(x)
        close(y, expected)
        close(list(module.buffers()), list(other.buffers()))
        grad = torch.randn_like(y)
        close(
            torch.autograd.grad(y, (x, *module.parameters()), grad),
            torch.autograd.grad(expected, (x, *other.parameters()), grad),
        )
    with torch.no_grad():
        close(compiled(x), other(x))
        close(list(module.buffers()), list(other.buffers()))
    module.eval(), other.eval()
    close(compiled(x), other(x))
    assert all("gated_shrink" in code and "linear" not in code for code in codes)


def test_compile_sees_the_operator_and_a_later_hook(device, no_caches):
    module = Shrinkage(4).to(device)
    codes = []

    def backend(graph, _):
        codes.append(graph.code)
        return graph.forward

    compiled = torch.compile(module, fullgraph=True, backend=backend)
    x = torch.randn(3, 4, 6, device=device)
    compiled(x)
    assert "gated_shrink" in codes[-1] and "linear" not in codes[-1]
    nn.utils.parametrizations.weight_norm(module.fc[0])
    compiled(x)
    assert "gated_shrink" not in codes[-1] and "linear" in codes[-1]


@pytest.mark.parametrize("strict, train", [(False, True), (True, False)])
def test_export(device, strict, train):
    module = Shrinkage(4).double().to(device).train(train)
    batch = torch.export.Dim("batch", min=2)
    x = make_features((3, 4, 6), device)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: batch},), strict=strict)
    assert "gated_shrink" in program.graph_module.code
    other = make_features((7, 4, 6), device)
    exported = program.module()
    close(exported(other), module(other))
    for name, buffer in exported.named_buffers():  # a counter that is not counted up may be gone
        close(buffer, module.get_buffer(name))


def test_torch_func(device):
    gate = make_gate(4, 5, 4, "layer").to(device)
    parameters = dict(gate.named_parameters())
    x = make_features((3, 4, 8), device)

    def loss(parameters, x):
        return torch.func.functional_call(Wrapper(gate), {f"gate.{k}": v for k, v in parameters.items()}, x)

    wanted = torch.autograd.grad(loss(parameters, x), list(parameters.values()))
    detached = {k: v.detach() for k, v in parameters.items()}
    found = torch.func.grad(loss)(detached, x)
    close(list(found.values()), list(wanted))
    per_sample = torch.func.vmap(torch.func.grad(loss), (None, 0))(detached, x[:, None])
    for i in range(3):
        close({k: v[i] for k, v in per_sample.items()}, torch.func.grad(loss)(detached, x[i : i + 1]))
    assert fused(loss, parameters, x)


class Wrapper(nn.Module):
    def __init__(self, gate):
        super().__init__()
        self.gate = gate

    def forward(self, x):
        return drsn_ops.gated_shrink(x, self.gate).square().sum()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_the_gate_alone(device, dtype):
    module = Shrinkage(4).to(device)
    x = make_features((6, 4, 30), device).float()
    expected = copy.deepcopy(module)(x)
    with torch.autocast(device.type, dtype):
        assert torch.equal(copy.deepcopy(module)(x), expected)
        narrow = module(x.to(dtype))
    assert narrow.dtype == dtype
    torch.testing.assert_close(narrow.float(), expected, rtol=0.05, atol=0.02)
    narrow.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in module.parameters())


def everything(device="cpu"):
    """Results, gradients and statistics over types, layouts and norms."""
    out = []
    for norm in NORMS:
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            for shape, layout in (((5, 7, 4999), "contiguous"), ((6, 37, 9, 9), "channels_last")):
                torch.manual_seed(0)
                gate = gate_of_rows(shape, "channels", norm, device).to(reference.accumulator(dtype))
                x = leaf(lay_out(make_features(shape, device).to(dtype), layout))
                for statistic in STATISTICS:
                    y = drsn_ops.gated_shrink(x, gate, statistic=statistic, residual=x)
                    out += [y, *torch.autograd.grad(y, (x, *gate.parameters()), y.detach())]
                out += [b.clone() for b in gate.buffers()]
    return [t.detach() for t in out]


def test_same_bits_run_after_run_for_any_number_of_threads(device):
    assert_same_bits(lambda: everything(device))
    gate, x = make_gate(70, 35, 70).to(device), make_features((6, 70, 100), device)
    once = copy.deepcopy(gate)
    y = drsn_ops.gated_shrink(x, once)
    for _ in range(20):
        again = copy.deepcopy(gate)
        assert torch.equal(drsn_ops.gated_shrink(x, again), y)
        assert all(torch.equal(a, b) for a, b in zip(again.buffers(), once.buffers(), strict=True))


X, GATE = torch.randn(2, 4, 3), make_gate(4, 4, 4).float()
ERRORS = [
    (([1.0], GATE), {}, TypeError, r"x: got list, expected a tensor"),
    ((X.long(), GATE), {}, TypeError, r"x: got a tensor of torch\.int64, expected one of float16"),
    ((X[0, 0], GATE), {}, ValueError, r"x: got shape \(3,\), expected \(N, C, \*spatial\)"),
    ((X, X), {}, TypeError, r"gate: got Tensor, expected a torch\.nn\.Module"),
    ((X, drsn_ops.Shrinkage(4)), {}, TypeError, r"gate: got Shrinkage, expected the gate in it, its fc"),
    ((X, GATE), {"statistic": "row"}, ValueError, r"statistic: got 'row', expected 'channel' or 'sample'"),
    ((X, GATE), {"residual": 1.0}, TypeError, r"residual: got float, expected a tensor"),
    ((X, GATE), {"residual": X.long()}, TypeError, r"residual: got a tensor of torch\.int64"),
    ((X, GATE), {"residual": X[:1]}, ValueError, r"residual: got shape \(1, 4, 3\), expected \(2, 4, 3\)"),
    ((X, GATE), {"residual": X.to("meta")}, ValueError, r"residual: got a tensor on meta, expected cpu"),
]


@pytest.mark.parametrize("args, options, error, message", ERRORS, ids=[e[-1] for e in ERRORS])
@pytest.mark.parametrize("inplace", [False, True])
def test_errors(args, options, error, message, inplace):
    before = [t.clone() for t in (X, *GATE.buffers())]
    with pytest.raises(error, match=message):
        drsn_ops.gated_shrink(*args, inplace=inplace, **options)
    assert all(torch.equal(a, b) for a, b in zip((X, *GATE.buffers()), before, strict=True))
