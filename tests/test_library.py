"""The operators in PyTorch's machinery: dispatcher, compiler, export, transforms, threads, memory."""

import os
import subprocess
import sys
import threading

import pytest
import torch
from checks import lay_out, leaf
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

import drsn_ops
from drsn_ops import _library, autograd

ops = torch.ops.drsn_ops


def function(x, alpha, tau):
    """All three operators in one graph."""
    y = drsn_ops.shrink(x, alpha, residual=x)
    z = drsn_ops.soft_threshold(y, tau)
    return z + drsn_ops.abs_mean(y)[..., None, None].to(z.dtype)


def arguments(layout="contiguous", dtype=torch.float32, device="cpu", batch=2):
    x = lay_out(torch.randn(batch, 3, 4, 5, device=device).to(dtype), layout)
    return leaf(x), leaf(torch.rand(batch, 3, device=device)), leaf(torch.rand(3, 1, 1, device=device))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(device, layout, dtype):
    x, alpha, tau = (t.detach() for t in arguments(layout, dtype, device))
    plain = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    xg, ag, tg = (leaf(t) for t in (x, alpha, tau))
    opcheck(ops.soft_threshold_with_code.default, (xg, tg, 0.0))
    opcheck(ops.soft_threshold_with_code.default, (xg, None, 0.5))
    opcheck(ops.abs_mean_with_code.default, (xg, False))
    opcheck(ops.abs_mean_with_code.default, (xg, True))
    opcheck(ops.shrink_with_code.default, (xg, ag, xg.detach(), False))
    opcheck(ops.shrink_with_code.default, (xg, ag[:, :1].detach(), None, True))
    for per_sample in (False, True):
        opcheck(ops.abs_mean.default, (x, per_sample), test_utils=plain)
        opcheck(ops.shrink.default, (x, alpha, None, per_sample), test_utils=plain)
    opcheck(ops.soft_threshold.default, (x, tau, 0.0), test_utils=plain)
    last = autograd.is_channels_last(x)
    _, code = ops.soft_threshold_with_code(x, tau, 0.0)
    opcheck(
        ops.soft_threshold_backward.default, (x, code, [3, 1, 1], torch.float32, last, True), test_utils=plain
    )
    opcheck(ops.soft_threshold_tangent.default, (x, tau, code, list(x.shape), dtype, last), test_utils=plain)
    _, mean, code = ops.shrink_with_code(x, alpha, None, False)
    backward = (x, mean, code, alpha, mean, False, last, True, True)
    opcheck(ops.shrink_backward.default, backward, test_utils=plain)
    opcheck(ops.combine.default, (x, mean, alpha, code, list(x.shape), dtype, last), test_utils=plain)
    opcheck(ops.row_sums.default, (x, code, last), test_utils=plain)
    if layout != "transposed":
        opcheck(ops.soft_threshold_.default, (x.clone(), tau, 0.0, True), test_utils=plain)
        opcheck(ops.shrink_.default, (x.clone(), alpha, None, False, True), test_utils=plain)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_compile_forward_and_backward(device, no_caches, layout):
    compiled = torch.compile(function, fullgraph=True, dynamic=True)
    for batch in (2, 5):
        args = arguments(layout, device=device, batch=batch)
        grad = torch.randn_like(args[0])
        expected = function(*args)
        wanted = torch.autograd.grad(expected, args, grad)
        result = compiled(*args)
        torch.testing.assert_close(result, expected)
        torch.testing.assert_close(torch.autograd.grad(result, args, grad), wanted)
        with torch.no_grad():
            torch.testing.assert_close(compiled(*args), expected)


def test_compile_in_place_and_under_a_transform(device, no_caches):
    def in_place(x):
        y = x * 2
        drsn_ops.soft_threshold(y, 0.5, inplace=True)
        return drsn_ops.shrink(y, 0.5, inplace=True)

    x = torch.randn(2, 3, 7, device=device)
    torch.testing.assert_close(torch.compile(in_place, fullgraph=True)(x), in_place(x))

    def gradient(x):
        return torch.func.grad(lambda x: drsn_ops.shrink(x, 0.5).square().sum())(x)

    torch.testing.assert_close(torch.compile(gradient, fullgraph=True)(x), gradient(x))


@pytest.mark.parametrize("strict", [False, True])
def test_export(device, strict):
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
        module, (x.detach(), alpha.detach()), dynamic_shapes=({0: batch}, {0: batch}), strict=strict
    )
    other, alpha, _ = arguments(device=device, batch=7)
    torch.testing.assert_close(program.module()(other.detach(), alpha.detach()), module(other, alpha))


def test_torch_func_transforms(device):
    x, alpha, tau = (t.detach().double() for t in arguments(device=device))

    def loss(x, alpha, tau):
        return function(x, alpha, tau).sin().sum()

    inputs = tuple(leaf(t) for t in (x, alpha, tau))
    wanted = torch.autograd.grad(loss(*inputs), inputs)
    torch.testing.assert_close(torch.func.grad(loss, argnums=(0, 1, 2))(x, alpha, tau), wanted)
    forward = torch.func.jvp(loss, (x, alpha, tau), tuple(torch.ones_like(t) for t in (x, alpha, tau)))[1]
    torch.testing.assert_close(forward, sum(g.sum() for g in wanted))
    stack = torch.stack([x, 2 * x])
    batched = torch.func.vmap(function, (0, None, None))(stack, alpha, tau)
    torch.testing.assert_close(batched, torch.stack([function(t, alpha, tau) for t in stack]))
    per_sample = torch.func.vmap(torch.func.grad(lambda t: drsn_ops.soft_threshold(t, tau).square().sum()))(
        stack
    )
    torch.testing.assert_close(per_sample, 2 * drsn_ops.soft_threshold(stack, tau))


def test_make_fx_and_fake_tensors(device):
    x, alpha, tau = (t.detach() for t in arguments("channels_last", device=device))
    graph = torch.fx.experimental.proxy_tensor.make_fx(function)(x, alpha, tau)
    torch.testing.assert_close(graph(x, alpha, tau), function(x, alpha, tau))
    meta = function(*(t.to("meta") for t in (x, alpha, tau)))
    assert meta.shape == x.shape and meta.stride() == function(x, alpha, tau).stride()


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint(device, use_reentrant):
    args = arguments(device=device)
    wanted = torch.autograd.grad(function(*args).sum(), args)
    result = checkpoint(function, *args, use_reentrant=use_reentrant)
    result.sum().backward()
    torch.testing.assert_close(tuple(t.grad for t in args), wanted)


def test_save_on_cpu(device):
    args = arguments(device=device)
    wanted = torch.autograd.grad(function(*args).sum(), args)
    with torch.autograd.graph.save_on_cpu():
        result = function(*args)
    torch.testing.assert_close(torch.autograd.grad(result.sum(), args), wanted)


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
    alpha = leaf(torch.rand(shape[:2], device=device, dtype=autograd.accumulator(dtype)))
    tau = leaf(torch.tensor(0.5, device=device, dtype=autograd.accumulator(dtype)))
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
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 8, 2):
            torch.set_num_threads(threads)
            results.append(everything(*args))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_same_bits_from_many_python_threads(device):
    args = everything_arguments((8, 16, 300), "contiguous", torch.float32, device)
    expected = everything(*args)
    failures = []

    def work():
        for _ in range(20):
            if not all(torch.equal(a, b) for a, b in zip(everything(*args), expected, strict=True)):
                failures.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures


SIMD_PROGRAM = """
import sys, torch
sys.path[:0] = sys.argv[3:]
import drsn_ops, test_library
assert drsn_ops.build_info()["simd_in_use"] == sys.argv[1], drsn_ops.build_info()
results = []
for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
    for shape, layout in (((3, 5, 4999), "contiguous"), ((2, 37, 9, 9), "channels_last")):
        torch.manual_seed(0)
        results += test_library.everything(*test_library.everything_arguments(shape, layout, dtype, "cpu"))
# Every half there is, through a narrowing store.
every = torch.arange(-2**15, 2**15, dtype=torch.int16).view(torch.float16)
results.append(drsn_ops.soft_threshold(every[every.isfinite()], 0.1))
# Every bfloat16 there is, subnormal ones too, and thresholds that leave a number to be rounded.
every = torch.arange(-2**15, 2**15, dtype=torch.int16).view(torch.bfloat16)
every = every[every.isfinite()]
results.append(drsn_ops.soft_threshold(every, 0.0))
results.append(drsn_ops.soft_threshold(every, every.float().abs() * 2**-9))
torch.save(results, sys.argv[2])
"""


def test_same_bits_from_every_instruction_set(tmp_path):
    in_use = drsn_ops.build_info()["simd_in_use"]
    levels = drsn_ops.build_info()["simd"]
    levels = levels[: levels.index(in_use) + 1]
    if len(levels) == 1:
        pytest.skip("this processor has one instruction set level")
    for level in levels:
        subprocess.run(
            [sys.executable, "-c", SIMD_PROGRAM, level, str(tmp_path / level), *sys.path],
            env={**os.environ, "DRSN_OPS_SIMD": level},
            check=True,
        )
    first, *others = (torch.load(tmp_path / level) for level in levels)
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


class TestWithoutKernels:
    """A device for which there are no kernels; here the CPU plays it."""

    @pytest.fixture(autouse=True)
    def pretend(self, monkeypatch):
        monkeypatch.setattr(_library, "_warned", False)
        monkeypatch.setattr(autograd, "serves", lambda x: _library.has_kernels(torch.device("mps")))

    def test_runs_the_plain_formula_and_warns_once(self):
        args = arguments()
        with pytest.warns(RuntimeWarning, match="plain PyTorch operators on mps") as record:
            result = function(*args)
            function(*args)
        assert len([r for r in record if "drsn_ops" in str(r.message)]) == 1
        found = torch.autograd.grad(result.sum(), args)
        assert all(g.abs().sum() > 0 for g in found)

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
    assert _library._load() == _library.cuda_reason


def test_build_info_is_plain():
    import json

    info = drsn_ops.build_info()
    assert json.loads(json.dumps(info)) == info
    assert info["simd_in_use"] in info["simd"] and info["version"] == drsn_ops.__version__


def test_private_names_of_pytorch_that_are_used_exist():
    assert callable(torch._C._are_functorch_transforms_active)
    assert callable(torch._C._functorch.maybe_current_level)
    assert isinstance(torch.autograd.forward_ad._current_level, int)
    with torch._C._AutoDispatchBelowAutograd():
        pass
