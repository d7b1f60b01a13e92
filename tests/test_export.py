"""Exported models: decomposed into plain operators, reloaded without drsn_ops, as ONNX, compiled ahead of time."""

import copy
import itertools
import subprocess
import sys
import zipfile

import pytest
import torch
from checks import NORMS, REAL, Operators, assert_close, lay_out, make_features, make_gate, randomise
from torch import nn
from torch.export import Dim
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves

import drsn_ops
from drsn_ops import RSBU, Shrinkage, SoftThreshold
from drsn_ops.modules import THRESHOLDS
from drsn_ops.ops.decomposition import decompositions
from drsn_ops.ops.gate import BATCH, RUNNING
from drsn_ops.ops.plain_gate import plain_batch_norm, plain_gate
from drsn_ops.reference import accumulator

ops = torch.ops.drsn_ops
LAYOUTS = ("contiguous", "channels_last", "transposed")


def check(operator, *args):
    """The decomposition returns what the operator does, and writes what it writes, by plain operators alone."""
    given, taken = copy.deepcopy(args), copy.deepcopy(args)
    with Operators() as operators:
        found = decompositions()[operator](*given)
    assert operators.names == []
    expected = operator(*taken)
    same(tensors(found, given), tensors(expected, taken))
    return expected


def tensors(*trees):
    return [t for t in tree_leaves(trees) if isinstance(t, torch.Tensor)]


def same(found, expected):
    """Types, shapes and layouts are equal, and so are masks; numbers up to rounding of the largest that went in or out,
    since sums go in another order.
    """
    largest = max(t.abs().max().item() for t in expected if t.numel() and t.dtype != torch.uint8)
    for a, b in zip(found, expected, strict=True):
        assert (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
        if b.is_floating_point() or b.is_complex():
            assert_close(a, b, terms=largest)
        else:
            assert torch.equal(a, b)


def test_every_forward_operator_is_in_the_table():
    schemas = [s for s in torch._C._jit_get_all_schemas() if s.name.startswith("drsn_ops::") and s.arguments]
    forward = {s.name for s in schemas if not s.name.endswith(("_backward", "_"))}
    assert {op.name() for op in decompositions()} == forward


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_soft_threshold(device, dtype, layout):
    x = lay_out(torch.randn(3, 5, 2, 7, device=device).to(dtype), layout)
    wide = accumulator(dtype)
    for shape, kind in (((), wide), ((5, 1, 1), dtype), ((3, 1, 2, 1), wide), (x.shape, wide)):
        tau = (torch.rand(shape, device=device) - 0.2).to(kind)  # some thresholds are negative
        check(ops.soft_threshold.default, x, tau, 0.0)
        check(ops.soft_threshold_with_mask.default, x, tau, 0.0)
    check(ops.soft_threshold.default, x, None, 0.5)
    check(ops.soft_threshold_with_mask.default, x, None, 0.5)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_complex_soft_threshold(device, dtype):
    x = torch.randn(3, 5, 7, dtype=dtype, device=device)
    x[0, 0] = 0
    tau = torch.rand(5, 1, dtype=accumulator(dtype), device=device) - 0.2
    check(ops.soft_threshold.default, x, tau, 0.0)
    check(ops.soft_threshold.default, x, None, 0.5)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_shrink(device, dtype, layout, per_sample):
    x = lay_out(torch.randn(3, 5, 2, 7, device=device).to(dtype), layout)
    x.flatten()[0] = 0
    check(ops.abs_mean.default, x, per_sample)
    check(ops.abs_mean_with_mask.default, x, per_sample)
    for shape, residual in (((3, 5), None), ((3, 1), x.flip(0)), ((1, 5), None), ((1, 1), x.flip(0))):
        alpha = torch.rand(shape, dtype=accumulator(dtype), device=device) - 0.2
        check(ops.shrink.default, x, alpha, residual, per_sample)
        check(ops.shrink_with_mask.default, x, alpha, residual, per_sample)


def make_inputs(dtype, layout, device):
    """Features and a residual."""
    x = lay_out(make_features((4, 5, 2, 7), device).to(dtype), layout)
    return x, torch.randn_like(x)


def make_modules(dtype, train, norm, outputs, device, **options):
    """A gate and a normalisation of the accumulator's type, without gradients."""
    gate = make_gate(5, 6, outputs, norm, **options)
    batch_norm = randomise(nn.BatchNorm2d(5, affine=outputs == 5))
    return (m.to(device, accumulator(dtype)).train(train).requires_grad_(False) for m in (gate, batch_norm))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_gated_shrink(device, dtype, train, norm):
    for layout, outputs, per_sample, biased in (
        ("contiguous", 5, False, True),
        ("channels_last", 1, True, False),
        ("transposed", 1, False, True),
        ("contiguous", 5, True, False),
    ):
        x, residual = make_inputs(dtype, layout, device)
        made, _ = make_modules(dtype, train, norm, outputs, device, linear_bias=biased)
        gate = plain_gate(made, x)
        assert gate.kind != BATCH or train
        check(ops.gated_shrink.default, x, residual, *gate.functional, per_sample)
        check(ops.gated_shrink.default, x, None, *gate.functional, per_sample)
        check(ops.gated_shrink_with_mask.default, x, residual, *gate.functional, per_sample)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_batch_norm_shrink(device, dtype, train, norm):
    for per_sample, outputs in ((False, 5), (True, 1)):
        z, residual = make_inputs(dtype, "contiguous", device)
        made, batch_norm = make_modules(dtype, train, norm, outputs, device)
        before, gate = plain_batch_norm(batch_norm, z), plain_gate(made, z)
        assert before.kind == (BATCH if train else RUNNING)
        arguments = (*before.functional, *gate.functional, per_sample)
        check(ops.batch_norm_shrink.default, z, residual, *arguments)
        check(ops.batch_norm_shrink.default, z, None, *arguments)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_batch_norm_relu(device, dtype, train, layout):
    x, _ = make_inputs(dtype, layout, device)
    for outputs in (5, 1):  # with weights and without
        _, batch_norm = make_modules(dtype, train, "none", outputs, device)
        norm = plain_batch_norm(batch_norm, x)
        for stride, channels in ((1, 0), (1, 8), (2, 5), (3, 8), (5, 0)):
            check(ops.batch_norm_relu.default, x, *norm.functional, stride, channels)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("channels", [1, 5])
def test_batch_norm_relu_conv(channels, train, layout):
    x = lay_out(make_features((4, channels, 14)).float(), layout)
    batch_norm, conv = randomise(nn.BatchNorm1d(channels)), nn.Conv1d(channels, 3, 3)
    norm = plain_batch_norm(batch_norm.train(train).requires_grad_(False), x)
    weight, bias = conv.requires_grad_(False).parameters()
    for stride, shortcut_channels in ((1, 0), (1, 8), (2, 5)):
        for given in (bias, None):
            arguments = *norm.functional, weight, given, stride, shortcut_channels
            check(ops.batch_norm_relu_conv.default, x, *arguments)


def test_statistics_that_are_not_there(device):
    """Running statistics that are None are 0 and 1."""
    x, _ = make_inputs(torch.float64, "contiguous", device)
    gate = plain_gate(make_gate(5, 6, 5).to(device).requires_grad_(False), x)
    none = gate._replace(running_mean=None, running_var=None, kind=RUNNING)
    check(ops.gated_shrink.default, x, None, *none.functional, False)
    check(ops.batch_norm_relu.default, x, None, None, None, None, RUNNING, 1e-5, 1, 0)


def test_what_is_not_finite(device):
    """NaN of x goes on."""
    x = torch.tensor([[[torch.nan, 0.1, -3.0, torch.inf, 2.0, 0.0]]], device=device)
    alpha = torch.full((1, 1), 0.5, device=device)
    for operator, *options in (
        (ops.soft_threshold_with_mask.default, 0.0),
        (ops.shrink_with_mask.default, None, False),
    ):
        expected = operator(x, alpha, *options)
        torch.testing.assert_close(decompositions()[operator](x, alpha, *options), expected, equal_nan=True)


class Functions(nn.Module):
    """Every way to call the functions that have no gate."""

    def __init__(self):
        super().__init__()
        self.tau = nn.Parameter(torch.empty(4, 1))
        self.bias = nn.Parameter(torch.empty(4))  # alpha; some thresholds are negative
        self.each = nn.ModuleList([SoftThreshold(4), SoftThreshold()])

    def forward(self, x):
        y = [each(x) for each in self.each]
        y += [drsn_ops.soft_threshold(x, 0.3), drsn_ops.soft_threshold(x, self.tau)]
        y += [drsn_ops.shrink(x, self.bias), drsn_ops.shrink(x, 0.7, statistic="sample", residual=x)]
        return torch.stack(y) * drsn_ops.abs_mean(x).unsqueeze(-1)


class Shrinkages(nn.Module):
    """`Shrinkage` of these kinds, each with and without a residual."""

    def __init__(self, *kinds):
        super().__init__()
        self.each = nn.ModuleList([Shrinkage(4, thresholds, norm=norm) for thresholds, norm in kinds])

    def forward(self, x):
        return torch.stack([each(x, residual) for each in self.each for residual in (None, x)])


class BatchNormShrink(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.gate = nn.BatchNorm1d(4), Shrinkage(4).fc

    def forward(self, x):
        return drsn_ops.batch_norm_shrink(x, self.norm, self.gate, residual=x)


class BatchNormRelu(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        return drsn_ops.batch_norm_relu(x, self.norm)


MODULES = {
    "functions": Functions,
    "Shrinkage": lambda: Shrinkages(*zip(itertools.cycle(THRESHOLDS), NORMS)),
    "batch_norm_shrink": BatchNormShrink,
    "batch_norm_relu": BatchNormRelu,
    "RSBU": lambda: RSBU(4, 6, stride=2, norm="layer"),
    "drsn_mnist": drsn_ops.models.drsn_mnist,
}
# In evaluation alone.
MORE_MODULES = {
    "every Shrinkage": lambda: Shrinkages(*itertools.product(THRESHOLDS, NORMS)),
    "a Shrinkage": lambda: Shrinkages(("channel-wise", "batch")),
    "drsn": lambda: drsn_ops.models.drsn(4, 3, blocks=3),
}
modules = pytest.mark.parametrize("name", MODULES)


def make(name, train=False):
    """The module, with statistics and parameters of no special value."""
    return randomise((MODULES | MORE_MODULES)[name]()).train(train)


def make_input(name, samples, length=24):
    return torch.randn(samples, 1, 28, 28) if name == "drsn_mnist" else torch.randn(samples, 4, length)


def export(name, module, *, strict=False):
    """The program, for any batch and, of the smaller modules, any length."""
    x = make_input(name, 3)
    shape = {0: Dim("batch")}
    if not name.startswith("drsn"):
        # From 9 on: a mask of a single byte is a size that tracers tell from all others. And that "same" padding makes
        # two sizes equal is more than the tracer can prove of a named size.
        shape[2] = Dim.DYNAMIC if name == "RSBU" else Dim("length", min=9)
    return torch.export.export(module, (x,), dynamic_shapes=(shape,), strict=strict)


def operators(program):
    return {str(node.target) for node in program.graph.nodes if "drsn_ops" in str(node.target)}


def agree(program, module, *inputs):
    """The program computes what the module does, and brings the same statistics up to date."""
    exported = program.module()
    for x in inputs:
        torch.testing.assert_close(exported(x), module(x), rtol=1e-4, atol=1e-5)
        for name, buffer in exported.named_buffers():  # of those that are not written some are gone
            torch.testing.assert_close(buffer, module.get_buffer(name), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("train", [False, True])
@modules
def test_export_and_decompose(name, train):
    module = make(name, train)
    program = export(name, module)
    assert operators(program)
    plain = program.run_decompositions(decompositions())
    assert not operators(plain)
    inputs = [make_input(name, 5), make_input(name, 2, 35)]
    if not train:
        inputs.append(make_input(name, 1))
    agree(plain, copy.deepcopy(module), *inputs)
    agree(program, module, *inputs)


@modules
def test_export_strict(name):
    module = make(name, train=True)
    program = export(name, module, strict=True)
    assert operators(program)
    agree(program, module, make_input(name, 5), make_input(name, 2, 35))


class BySize(nn.Module):
    """Numbers that are made of sizes."""

    def forward(self, x):
        y = drsn_ops.soft_threshold(x, 1 / x.shape[0])
        return y, drsn_ops.soft_threshold(x, x.shape[0]), drsn_ops.shrink(x, x.shape[0] / 10)


@pytest.mark.parametrize("strict", [False, True])
def test_a_number_made_of_a_size_follows_it(strict):
    shapes = ({0: Dim("batch")},)
    program = torch.export.export(BySize(), (torch.randn(4, 3, 20),), dynamic_shapes=shapes, strict=strict)
    x = torch.randn(7, 3, 20)
    torch.testing.assert_close(program.module()(x), BySize()(x))
    traced = make_fx(BySize(), tracing_mode="symbolic")(torch.randn(4, 3, 20))
    torch.testing.assert_close(traced(x), BySize()(x))


def test_a_training_step_keeps_the_operators_of_its_backward():
    """They read the masks that the decomposed operators wrote."""
    module = make("functions", train=True).double()
    parameters = dict(module.named_parameters())

    def step(x):
        y = torch.func.functional_call(module, parameters, (x,))
        return torch.autograd.grad(y.square().sum(), [*parameters.values()])

    x = make_input("functions", 3).double()
    graph = make_fx(
        step, decomposition_table=decompositions(), tracing_mode="symbolic", _allow_non_fake_inputs=True
    )(x)
    functions = ("soft_threshold", "shrink")
    assert operators(graph) == {f"drsn_ops.{name}_backward.default" for name in functions}
    for x in (make_input("functions", 5).double(), make_input("functions", 2, 31).double()):
        torch.testing.assert_close(graph(x), step(x))


WITHOUT_DRSN_OPS = """
import sys

import torch

sys.modules["drsn_ops"] = None  # importing it fails
program = torch.export.load("model.pt2").module()
for x, y in torch.load("examples.pt"):
    torch.testing.assert_close(program(x), y, rtol=1e-4, atol=1e-5)
assert torch._C._jit_get_schemas_for_operator("drsn_ops::shrink") == []
"""


def test_saved_program_runs_without_drsn_ops(tmp_path):
    module = make("Shrinkage")
    program = export("Shrinkage", module).run_decompositions(decompositions())
    torch.export.save(program, tmp_path / "model.pt2")
    examples = [(x, module(x).detach()) for x in (make_input("Shrinkage", 1), make_input("Shrinkage", 7))]
    torch.save(examples, tmp_path / "examples.pt")
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_DRSN_OPS], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    "name", [name for name in MODULES | MORE_MODULES if name not in ("Shrinkage", "a Shrinkage")]
)
def test_onnx(name):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    module = make(name)
    model = torch.onnx.export(
        export(name, module).run_decompositions(decompositions()), dynamo=True
    ).model_proto
    assert [opset.domain for opset in model.opset_import] == [""] and not model.functions
    assert not [node.op_type for node in model.graph.node if node.domain]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for samples in (1, 2, 7):
        x = make_input(name, samples)
        (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(y), module(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name, fused", [("functions", True), ("a Shrinkage", True), ("a Shrinkage", False), ("RSBU", True)]
)
def test_aot_inductor(name, fused, tmp_path, no_caches):
    module = make(name)
    program = export(name, module)
    path = str(tmp_path / "model.pt2")
    torch._inductor.aoti_compile_and_package(
        program if fused else program.run_decompositions(decompositions()), package_path=path
    )
    compiled = torch._inductor.aoti_load_package(path)
    for samples in (1, 2, 7):
        x = make_input(name, samples)
        torch.testing.assert_close(compiled(x), module(x).detach(), rtol=1e-4, atol=1e-5)
    sources = b"".join(zipfile.ZipFile(path).read(file) for file in zipfile.ZipFile(path).namelist())
    assert (b"drsn_ops::" in sources) == fused


@pytest.mark.parametrize("strict", [False, True])
def test_without_gradients_no_mask_is_exported(strict):
    network = drsn_ops.models.drsn(4, 3, blocks=3).eval()
    x, length = torch.randn(2, 4, 48), torch.export.Dim("length")
    for gradients, operator in ((True, "gated_shrink_with_mask"), (False, "gated_shrink")):
        with torch.set_grad_enabled(gradients):
            shapes = ({2: 16 * length} if not gradients else {},)
            program = torch.export.export(network, (x,), dynamic_shapes=shapes, strict=strict)
        names = {node.target.__name__ for node in program.graph.nodes if "drsn_ops" in str(node.target)}
        assert names == {f"{operator}.default", "batch_norm_relu.default"}
        plain = program.run_decompositions(decompositions())
        assert not operators(plain)
        agree(plain, network, x)
