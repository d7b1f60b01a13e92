"""The operators in PyTorch's machinery: dispatcher, compiler, export, transforms, threads, memory."""

import copy
import os
import subprocess
import sys
import threading

import pytest
import test_batch_norm_relu
import test_batch_norm_shrink
import test_gated_shrink
import torch
from checks import CALLS, assert_same_bits, lay_out, leaf, make_calls
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.library import opcheck
from torch.overrides import TorchFunctionMode

import drsn_ops
from drsn_ops.models.rsnet import RSNetBlock
from drsn_ops.ops import autograd, library, masks
from drsn_ops.ops.autograd import is_eager
from drsn_ops.reference import accumulator

ops = torch.ops.drsn_ops


def function(x, alpha, tau):
    """All three operators in one graph."""
    y = drsn_ops.shrink(x, alpha, residual=x)
    z = drsn_ops.soft_threshold(y, tau)
    return z + drsn_ops.abs_mean(y)[..., None, None].to(z.dtype)


def arguments(layout="contiguous", dtype=torch.float32, device="cpu", batch=2):
    x = lay_out(torch.randn(batch, 3, 4, 5, device=device).to(dtype), layout)
    return leaf(x), leaf(torch.rand(batch, 3, device=device)), leaf(torch.rand(3, 1, 1, device=device))


@pytest.mark.parametrize("layout, dtype", [
    ("contiguous", torch.float32), ("channels_last", torch.bfloat16), ("transposed", torch.float32),
], ids=str)  # fmt: skip
def test_opcheck(device, layout, dtype):
    x, alpha, tau = (t.detach() for t in arguments(layout, dtype, device))
    plain = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    xg, ag, tg = (leaf(t) for t in (x, alpha, tau))
    opcheck(ops.soft_threshold_with_mask.default, (xg, tg, 0.0))
    opcheck(ops.soft_threshold_with_mask.default, (xg, None, 0.5))
    opcheck(ops.abs_mean_with_mask.default, (xg, False))
    opcheck(ops.abs_mean_with_mask.default, (xg, True))
    opcheck(ops.shrink_with_mask.default, (xg, ag, xg.detach(), False))
    opcheck(ops.shrink_with_mask.default, (xg, ag[:, :1].detach(), None, True))
    for per_sample in (False, True):
        opcheck(ops.abs_mean.default, (x, per_sample), test_utils=plain)
        opcheck(ops.shrink.default, (x, alpha, None, per_sample), test_utils=plain)
    opcheck(ops.soft_threshold.default, (x, tau, 0.0), test_utils=plain)
    last = masks.is_channels_last(x)
    _, mask = ops.soft_threshold_with_mask(x, tau, 0.0)
    opcheck(
        ops.soft_threshold_backward.default, (x, mask, [3, 1, 1], torch.float32, last, True), test_utils=plain
    )
    _, mean, mask = ops.shrink_with_mask(x, alpha, None, False)
    backward = (x, mean, mask, alpha, mean, False, last, True, True)
    opcheck(ops.shrink_backward.default, backward, test_utils=plain)
    mean, mask = ops.abs_mean_with_mask(x, False)
    opcheck(ops.abs_mean_backward.default, (mean, mask, list(x.shape), dtype, last), test_utils=plain)
    if layout != "transposed":
        opcheck(ops.soft_threshold_.default, (x.clone(), tau, 0.0, True), test_utils=plain)
        opcheck(ops.shrink_.default, (x.clone(), alpha, None, False, True), test_utils=plain)


def test_compile_forward_and_backward(device, no_caches):
    compiled = torch.compile(function, fullgraph=True, dynamic=True)
    for batch in (2, 5):
        args = arguments("channels_last", device=device, batch=batch)
        grad = torch.randn_like(args[0])
        expected = function(*args)
        wanted = torch.autograd.grad(expected, args, grad)
        result = compiled(*args)
        torch.testing.assert_close(result, expected)
        torch.testing.assert_close(torch.autograd.grad(result, args, grad), wanted)
        with torch.no_grad():
            torch.testing.assert_close(compiled(*args), expected)


def test_compile_with_inductor(device, no_caches):
    """Every function in one graph, because each compilation takes seconds."""
    functions, tensors = zip(*make_calls(device).values(), strict=True)
    groups = [tuple(t.clone().requires_grad_() for t in group) for group in tensors]

    def together(groups):
        return [function(*group) for function, group in zip(functions, groups, strict=True)]

    for mode in ("default", "reduce-overhead") if device.type == "cuda" else ("default",):
        compiled = torch.compile(together, fullgraph=True, mode=mode)
        for _ in range(
            1 if mode == "default" else 4
        ):  # a CUDA graph warms up, is recorded, and then replayed
            torch.compiler.cudagraph_mark_step_begin()
            for name, y, expected, group in zip(
                CALLS, compiled(groups), together(groups), groups, strict=True
            ):
                found, wanted = (
                    torch.autograd.grad(t.sin().sum(), group, retain_graph=True) for t in (y, expected)
                )
                for pair in ((y, expected), (found, wanted)):
                    torch.testing.assert_close(*pair, msg=lambda m, name=name: f"{name}: {m}")


NETWORKS = {
    "Shrinkage": (lambda: drsn_ops.Shrinkage(4), (16,)),
    "RSBU": (lambda: drsn_ops.RSBU(4, 6, stride=2, dim=2, thresholds="channel-shared"), (8, 9)),
    "drsn": (lambda: drsn_ops.models.drsn(4, 3, blocks=3, thresholds="channel-shared"), (64,)),
    "RSNetBlock": (lambda: RSNetBlock(4, 6, stride=2), (16,)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_training_compiles_whole_and_once_for_every_batch(device, no_caches, name):
    """With gates that normalise over the batch: one graph without a break, and one more for a batch of any size."""
    make, spatial = NETWORKS[name]
    network = make().to(device)
    twin = copy.deepcopy(network)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(network, fullgraph=True, backend=counter)
    for batch in (4, 2, 7, 3):
        x = torch.randn(batch, 4, *spatial, device=device)
        y, expected = compiled(x), twin(x)
        torch.testing.assert_close(y, expected)
        for each, result in ((network, y), (twin, expected)):
            each.zero_grad()
            result.square().mean().backward()
        for parameter, other in zip(network.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(dict(network.named_buffers()), dict(twin.named_buffers()))
    assert counter.frame_count <= 2


NUMBERS = {
    "soft_threshold": drsn_ops.soft_threshold,
    "soft_threshold by an integer": lambda x, t: drsn_ops.soft_threshold(x, t),
    "soft_threshold in place": lambda x, t: drsn_ops.soft_threshold(x * 1, t, inplace=True),
    "soft_threshold, complex": lambda x, t: drsn_ops.soft_threshold(torch.complex(x, x), t).abs(),
    "soft_threshold, complex in place": lambda x, t: drsn_ops.soft_threshold(
        torch.complex(x, x), t, inplace=True
    ).abs(),
    "shrink": drsn_ops.shrink,
    "shrink in place": lambda x, t: drsn_ops.shrink(x * 1, t, residual=x, inplace=True),
}


def number_used_twice(x, t):
    """Another use of the number could leave an old one behind in what inductor makes."""
    y, tau = drsn_ops.shrink(x * t, t, return_threshold=True)
    return drsn_ops.soft_threshold(y, t * 0.5) + tau.sum()


@pytest.mark.parametrize("name", [*NUMBERS, "inductor"])
def test_a_number_that_changes_compiles_twice(device, no_caches, name):
    """Once as the first call's constant, once as any number."""
    function = NUMBERS.get(name, number_used_twice)
    counter = CompileCounterWithBackend("aot_eager" if name in NUMBERS else "inductor")
    compiled = torch.compile(function, fullgraph=True, backend=counter)
    x = torch.randn(2, 3, 8, device=device, requires_grad=True)
    for step in range(12):
        t = step if name.endswith("integer") else 0.05 + 0.04 * step
        y, expected = compiled(x, t), function(x, t)
        torch.testing.assert_close(y, expected)
        grad = torch.randn_like(y)
        torch.testing.assert_close(torch.autograd.grad(y, x, grad), torch.autograd.grad(expected, x, grad))
    assert counter.frame_count <= 2


def test_a_number_that_becomes_negative_is_refused(device, no_caches):
    compiled = torch.compile(drsn_ops.soft_threshold, backend="eager")
    x = torch.randn(3, device=device)
    for t in (0.5, 0.25, 0.125):
        compiled(x, t)
    with pytest.raises(ValueError, match="tau: got -0.5, expected a number >= 0"):
        compiled(x, -0.5)


def test_a_constant_number_stays_one_of_the_graph(device, no_caches):
    codes = []

    def backend(graph, _):
        codes.append(graph.code)
        return graph.forward

    torch.compile(lambda x: drsn_ops.soft_threshold(x, 0.5), backend=backend)(torch.randn(3, device=device))
    assert "0.5" in codes[0] and "full" not in codes[0] and "zeros" not in codes[0]


@pytest.mark.parametrize("before", [None, torch.nn.BatchNorm1d])
def test_a_momentum_that_changes_compiles_twice(device, no_caches, before):
    """Of the gate's BatchNorm, and of the one before the shrinkage."""
    gate = drsn_ops.Shrinkage(4).fc
    modules = torch.nn.ModuleList([gate] if before is None else [before(4), gate]).to(device)
    twin = copy.deepcopy(modules)

    def call(modules, x):
        if before is None:
            return drsn_ops.gated_shrink(x, modules[0])
        return drsn_ops.batch_norm_shrink(x, *modules)

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x: call(modules, x), fullgraph=True, backend=counter)
    for step in range(12):
        for module in (*modules.modules(), *twin.modules()):
            if isinstance(module, torch.nn.BatchNorm1d):
                module.momentum = 0.05 + 0.05 * step
        x = torch.randn(3, 4, 8, device=device)
        torch.testing.assert_close(compiled(x), call(twin, x))
        torch.testing.assert_close(dict(modules.named_buffers()), dict(twin.named_buffers()))
    assert counter.frame_count <= 2


TRACED = {
    "soft_threshold": lambda x: drsn_ops.soft_threshold(x, 0.5),
    "abs_mean": drsn_ops.abs_mean,
    "shrink": lambda x: drsn_ops.shrink(x, 0.5, residual=x),
    "SoftThreshold": drsn_ops.SoftThreshold(3, 0.5),
}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.torch.jit.trace:DeprecationWarning")
@pytest.mark.parametrize("name", TRACED)
def test_jit_trace(name):
    """The plain formula is traced: with and without gradients, which is what its own checker compares."""
    function = TRACED[name]
    x = torch.randn(2, 3, 8, requires_grad=True)
    wanted = torch.autograd.grad(function(x).sin().sum(), x)
    for example in (x, x.detach()):
        traced = torch.jit.trace(function, example)
        assert "drsn_ops::" not in str(traced.graph)
        torch.testing.assert_close(traced(x), function(x))
        torch.testing.assert_close(torch.autograd.grad(traced(x).sin().sum(), x), wanted)


@pytest.mark.parametrize("name", TRACED)
def test_forward_mode_compiled(device, no_caches, name):
    """A dual level around a compiled function, and one within it; PyTorch compiles no gate in either."""
    function = TRACED[name]
    function = copy.deepcopy(function).to(device) if name == "SoftThreshold" else function
    x, direction = torch.randn(2, 2, 3, 8, device=device)

    def tangent(function, x, direction):
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(function(forward_ad.make_dual(x, direction))).tangent

    wanted = tangent(function, x, direction)
    torch.testing.assert_close(torch.compile(tangent, backend="eager")(function, x, direction), wanted)
    compiled = torch.compile(function, backend="eager")
    compiled(x)
    torch.testing.assert_close(tangent(compiled, x, direction), wanted)


def test_compile_in_place_and_under_a_transform(device, no_caches):
    def in_place(x):
        y = x * 2
        drsn_ops.soft_threshold(y, 0.5, inplace=True)
        return drsn_ops.shrink(y, 0.5, inplace=True)

    x = torch.randn(2, 3, 7, device=device)
    torch.testing.assert_close(torch.compile(in_place, fullgraph=True, backend="aot_eager")(x), in_place(x))

    def gradient(x):
        return torch.func.grad(lambda x: drsn_ops.shrink(x, 0.5).square().sum())(x)

    torch.testing.assert_close(torch.compile(gradient, fullgraph=True, backend="aot_eager")(x), gradient(x))


def test_export(device):
    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.tau = torch.nn.Parameter(torch.rand(3, 1, 1))

        def forward(self, x, alpha):
            return function(x, alpha, self.tau)

    module = Module().to(device)
    x, alpha, _ = arguments(device=device)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(
        module, (x.detach(), alpha.detach()), dynamic_shapes=({0: batch}, {0: batch}), strict=True
    )
    other, alpha, _ = arguments(device=device, batch=7)
    torch.testing.assert_close(program.module()(other.detach(), alpha.detach()), module(other, alpha))


def kept_for_backward(run, *inputs):
    """Bytes of the tensors that a call keeps, other than those it was given."""
    kept = {}
    given = {t.untyped_storage().data_ptr() for t in inputs}

    def pack(t):
        if t.untyped_storage().data_ptr() not in given:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        run(*inputs)
    return sum(kept.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(4, 3, 1000), (4, 3, 7, 7), (5, 6), (2, 3, 4097)], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_bytes_kept_for_backward(device, dtype, shape, layout):
    x = leaf(lay_out(torch.randn(shape, device=device).to(dtype), layout))
    alpha = leaf(torch.rand(shape[:2], device=device, dtype=accumulator(dtype)))
    tau = leaf(torch.tensor(0.5, device=device, dtype=accumulator(dtype)))
    rows = shape[0] * shape[1]
    assert kept_for_backward(drsn_ops.shrink, x, alpha) <= 0.375 * x.numel() + 16 * rows
    assert kept_for_backward(drsn_ops.soft_threshold, x, tau) <= 0.25 * x.numel() + 2
    assert kept_for_backward(drsn_ops.abs_mean, x) <= 0.25 * x.numel() + 16 * rows


def everything(x, alpha, tau):
    """Every operator's results and gradients."""
    out = []
    for statistic in ("channel", "sample"):
        y, threshold = drsn_ops.shrink(x, alpha, statistic=statistic, residual=x, return_threshold=True)
        mean = drsn_ops.abs_mean(x, statistic=statistic)
        out += [y, threshold, mean, *torch.autograd.grad((y, mean), (x, alpha), (y.detach(), mean.detach()))]
    for t in tau:
        y = drsn_ops.soft_threshold(x, t)
        out += [y, *torch.autograd.grad(y, (x, t), y.detach())]
    return [t.detach() for t in out]


def everything_arguments(shape, layout, dtype, device):
    x = leaf(lay_out(torch.randn(shape, device=device).to(dtype), layout))
    tau_shapes = [(), (shape[1],) + (1,) * (len(shape) - 2), shape[-1:], shape]
    return (
        x,
        leaf(torch.rand(shape[:2], device=device)),
        [leaf(torch.rand(s, device=device)) for s in tau_shapes],
    )


REPEATABLE = [
    ((3, 5, 70_001), "contiguous"),
    ((64, 33, 49), "contiguous"),
    ((3, 50, 40, 40), "channels_last"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape, layout", REPEATABLE, ids=str)
def test_same_bits_for_any_number_of_threads_run_after_run(device, shape, layout, dtype):
    args = everything_arguments(shape, layout, dtype, device)
    assert_same_bits(lambda: everything(*args))


@pytest.mark.parametrize("transform", [False, True])
def test_same_bits_from_many_python_threads(device, transform):
    """Forward mode, which is on for the whole process, changes nothing for tensors of other threads."""
    args = everything_arguments((8, 16, 300), "contiguous", torch.float32, device)
    shrinkage = drsn_ops.Shrinkage(16, norm="layer").to(device)

    def step():
        y = shrinkage(args[0])
        return (
            *everything(*args),
            y.detach(),
            *torch.autograd.grad(y.square().sum(), list(shrinkage.parameters())),
        )

    expected = step()
    failures, done = [], threading.Event()

    def work():
        for _ in range(20):
            if not all(torch.equal(a, b) for a, b in zip(step(), expected, strict=True)):
                failures.append(1)

    def follow():
        x = args[0].detach()
        while not done.is_set():
            with forward_ad.dual_level():
                forward_ad.unpack_dual(drsn_ops.shrink(forward_ad.make_dual(x, x), 0.5))

    threads = [threading.Thread(target=work) for _ in range(4)]
    other = threading.Thread(target=follow if transform else work)
    for t in (other, *threads):
        t.start()
    for t in threads:
        t.join()
    done.set()
    other.join()
    assert not failures


def in_every_type():
    """Results and gradients that depend on the instruction set only through a mistake."""
    results = test_gated_shrink.everything() + test_batch_norm_relu.everything()
    results += test_batch_norm_shrink.everything()
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        for shape, layout in (((3, 5, 4999), "contiguous"), ((2, 37, 9, 9), "channels_last")):
            torch.manual_seed(0)
            results += everything(*everything_arguments(shape, layout, dtype, "cpu"))
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    # Every finite half, through a narrowing store.
    every = bits.view(torch.float16)
    results.append(drsn_ops.soft_threshold(every[every.isfinite()], 0.1))
    # Every finite bfloat16, subnormal ones too, and thresholds that leave a number to be rounded.
    every = bits.view(torch.bfloat16)
    every = every[every.isfinite()]
    results.append(drsn_ops.soft_threshold(every, 0.0))
    results.append(drsn_ops.soft_threshold(every, every.float().abs() * 2**-9))
    # A ReLU of -0, whose sign torch.equal does not see.
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        batch_norm = torch.nn.BatchNorm1d(4).eval().to(dtype)
        torch.nn.init.constant_(batch_norm.bias, -0.0)
        results.append(drsn_ops.batch_norm_relu(torch.full((20, 4), -0.0, dtype=dtype), batch_norm).signbit())
    return results


SIMD_PROGRAM = """
import sys, torch
sys.path[:0] = sys.argv[3:]
import drsn_ops, test_library
assert drsn_ops.build_info()["simd_in_use"] == sys.argv[1], drsn_ops.build_info()
torch.save(test_library.in_every_type(), sys.argv[2])
"""


def test_same_bits_from_every_instruction_set(tmp_path):
    in_use, levels = (drsn_ops.build_info()[key] for key in ("simd_in_use", "simd"))
    lower = levels[: levels.index(in_use)]
    if not lower:
        pytest.skip("this processor has one instruction set level")
    expected = in_every_type()
    for level in lower:
        subprocess.run(
            [sys.executable, "-c", SIMD_PROGRAM, level, str(tmp_path / level), *sys.path],
            env={**os.environ, "DRSN_OPS_SIMD": level},
            check=True,
        )
        found = torch.load(tmp_path / level)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), level


VIEWS = {"negated": torch._neg_view, "of a conjugate": lambda x: torch.complex(x * 0, x).conj().imag}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("train", [True, False])
def test_lazily_negated_input(device, view, train):
    """What PyTorch negates when it is read: an operator that may write into it has to take another."""
    x = torch.randn(4, 3, 8, device=device)
    shrinkage = drsn_ops.Shrinkage(3).to(device).train(train)
    twin = copy.deepcopy(shrinkage)
    assert VIEWS[view](x).is_neg()
    y, expected = shrinkage(VIEWS[view](x)), twin(-x)
    assert torch.equal(y, expected)
    found = [
        torch.autograd.grad(t.square().sum(), list(m.parameters()))
        for t, m in ((y, shrinkage), (expected, twin))
    ]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    in_place = [
        lambda x: drsn_ops.shrink(x, 0.5, inplace=True),
        lambda x: drsn_ops.soft_threshold(x, 0.5, inplace=True),
    ]
    frozen = drsn_ops.Shrinkage(3, inplace=True).to(device).eval().requires_grad_(False)
    for function in (*in_place, frozen):
        memory = x.clone()
        negated = VIEWS["negated"](memory)
        assert function(negated) is negated
        assert torch.equal(negated, function(-x)) and torch.equal(memory, -negated)


def test_lazily_conjugated_input(device):
    z = torch.randn(4, 3, dtype=torch.complex64, device=device)
    expected = drsn_ops.soft_threshold(z.conj().resolve_conj(), 0.5)
    assert torch.equal(drsn_ops.soft_threshold(z.conj(), 0.5), expected)
    memory = z.clone()
    drsn_ops.soft_threshold(memory.conj(), 0.5, inplace=True)
    assert torch.equal(memory.conj(), expected)


@pytest.mark.parametrize("function", [drsn_ops.shrink, drsn_ops.soft_threshold])
def test_a_tensor_of_inference_mode_is_not_overwritten_outside(device, function):
    with torch.inference_mode():
        x = torch.randn(2, 3, 4, device=device)
        before = x.clone()
    with pytest.raises(RuntimeError, match="Inplace update to inference tensor"):
        function(x, 0.5, inplace=True)
    with torch.inference_mode():
        assert torch.equal(x, before)
        assert torch.equal(function(x, 0.5, inplace=True), function(before, 0.5))


class TestWithoutKernels:
    """A device for which there are no kernels; here the CPU plays it."""

    @pytest.fixture(autouse=True)
    def pretend(self, monkeypatch):
        monkeypatch.setattr(library, "_warned", False)
        monkeypatch.setattr(autograd, "serves", lambda x: library.has_kernels(torch.device("mps")))

    def test_runs_the_plain_formula_and_warns_once(self):
        args = arguments()
        with pytest.warns(RuntimeWarning, match="plain PyTorch operators on mps") as record:
            result = function(*args)
            function(*args)
        (warning,) = [r for r in record if "drsn_ops" in str(r.message)]
        assert warning.filename == __file__
        found = torch.autograd.grad(result.sum(), args)
        assert all(g.abs().sum() > 0 for g in found)

    def test_a_module_warns_of_the_line_that_calls_it(self):
        with pytest.warns(RuntimeWarning, match="plain PyTorch operators") as record:
            torch.nn.Sequential(drsn_ops.Shrinkage(3))(torch.randn(2, 3, 4))
        assert record[0].filename == __file__

    def test_compile(self, no_caches):
        """A warning would break the graph."""
        args = arguments()
        y = torch.compile(function, fullgraph=True, backend="eager")(*args)
        with pytest.warns(RuntimeWarning, match="plain PyTorch operators"):
            torch.testing.assert_close(y, function(*args))

    @pytest.mark.parametrize("function", [drsn_ops.shrink, drsn_ops.soft_threshold])
    def test_in_place(self, function):
        start = torch.randn(2, 3, 4, requires_grad=True)
        with pytest.warns(RuntimeWarning):
            expected = function(start, 0.5)
        x = start * 1
        assert function(x, 0.5, inplace=True) is x
        torch.testing.assert_close(x, expected)
        wanted = torch.autograd.grad(expected.sum(), start)
        torch.testing.assert_close(torch.autograd.grad(x.sum(), start), wanted)


def test_a_library_is_not_loaded_twice():
    assert library._load() == library.cuda_reason


def test_build_info_is_plain():
    import json

    info = drsn_ops.build_info()
    assert json.loads(json.dumps(info)) == info
    assert info["simd_in_use"] in info["simd"] and info["version"] == drsn_ops.__version__


class Watching(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class Own(torch.Tensor):
    pass


def traced():
    found = []
    torch.jit.trace(lambda t: found.append(is_eager(t, t)) or t + 1, torch.ones(2))
    return found[0]


def compiled():
    found = []
    torch.compile(lambda t: t + 1 if is_eager(t, t) else found.append(False) or t, backend="eager")(
        torch.ones(2)
    )
    return found != [False]


def test_only_plain_tensors_that_nothing_watches_go_the_short_way():
    x, parameter = torch.ones(2), torch.nn.Parameter(torch.ones(2))
    assert is_eager(x, x) and is_eager(parameter, x) and is_eager(x.clone(), parameter)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert is_eager(x, x)
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(x)
    for other in (1.0, None, x.as_subclass(Own), fake, x.to("meta")):
        assert not is_eager(other, x) and not is_eager(x, other)
    with Watching():
        assert not is_eager(x, x)
    with forward_ad.dual_level():
        assert not is_eager(x, x)
    assert not torch.vmap(lambda t: t * is_eager(t, t))(x).any()
    assert not torch.func.grad(lambda t: (t * is_eager(t, t)).sum())(x).any()
    assert not traced() and not compiled()


def test_private_names_of_pytorch_that_are_used_exist():
    assert callable(torch._C._is_tracing)
    assert callable(torch._C._are_functorch_transforms_active)
    assert callable(torch._C._functorch.maybe_current_level)
    assert isinstance(torch.autograd.forward_ad._current_level, int)
    with torch._C._AutoDispatchBelowAutograd():
        pass
