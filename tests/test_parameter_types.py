"""Parameters of other types and strides than the kernels read: the bits of copies, without a copy of each."""

import copy

import pytest
import torch
from checks import REAL, leaf, make_features, make_gate, pairwise, randomise
from torch import nn
from torch.profiler import ProfilerActivity, profile

import drsn_ops
from drsn_ops.reference import accumulator

CALLS = ("gated_shrink", "batch_norm_shrink", "batch_norm_relu")
COPIES = {"aten::copy_", "aten::to", "aten::_to_copy", "aten::contiguous", "aten::clone"}


def make(call, device, dtype, kind="batch"):
    """The modules that the function takes, for 4 channels."""
    modules = []
    if call != "gated_shrink":
        modules.append(randomise(nn.BatchNorm1d(4)))
    if call != "batch_norm_relu":
        modules.append(make_gate(4, 5, 4, kind))
    return nn.ModuleList(modules).to(device, dtype)


def spread(t):
    """The same numbers, none of which lies next to another."""
    return t.t().repeat_interleave(3, -1)[..., ::3].t() if t.dim() == 2 else t.repeat_interleave(3)[::3]


def spread_all(modules):
    """Every parameter and running statistic in memory with gaps, matrices transposed."""
    for module in modules.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(spread(parameter.data)))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, spread(buffer) if buffer.dim() else buffer)


def run(call, modules, x, grad):
    """The result, the gradient of x, and what has the parameters' types: their gradients and the running statistics."""
    x = leaf(x)
    y = getattr(drsn_ops, call)(x, *modules)
    dx, *found = torch.autograd.grad(y, (x, *modules.parameters()), grad)
    statistics = [t.clone() for t in modules.buffers() if t.is_floating_point()]
    return [y.detach(), dx], found + statistics


def compare(call, x_dtype, dtype, device, kind="batch", *, train=True, spreads=False):
    """Against parameters that were copied beforehand into the type in which the kernels compute, and back."""
    x, grad = (make_features((6, 4, 50), device).to(x_dtype) for _ in range(2))
    modules = make(call, device, dtype, kind).train(train)
    wide = copy.deepcopy(modules).to(accumulator(x_dtype))
    if spreads:
        spread_all(modules)
    found = run(call, modules, x, grad)
    results, kept = run(call, wide, x, grad)
    torch.testing.assert_close(found, (results, [t.to(dtype) for t in kept]), rtol=0, atol=0)


@pytest.mark.parametrize(
    "call, x_dtype, dtype, kind, train, spreads",
    pairwise(CALLS, REAL, REAL, ("batch", "layer"), (True, False), (True, False)),
    ids=str,
)
def test_other_types_and_strides(device, call, x_dtype, dtype, kind, train, spreads):
    compare(call, x_dtype, dtype, device, kind, train=train, spreads=spreads)


def test_parameters_that_repeat_one_number(device):
    modules = make("gated_shrink", device, torch.float32)
    for linear in modules[0][::3]:
        linear.weight = nn.Parameter(linear.weight.detach()[:1, :1].expand(linear.weight.shape))
    dense = copy.deepcopy(modules)
    for linear in dense[0][::3]:
        linear.weight = nn.Parameter(linear.weight.detach().contiguous())
    x, grad = make_features((6, 4, 50), device).float(), torch.randn(6, 4, 50, device=device)
    results = [run("gated_shrink", each, x, grad) for each in (modules, dense)]
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_compiled_running_statistics_are_rounded_once(device, dtype):
    norm = randomise(nn.BatchNorm1d(500)).to(device, dtype)
    wide = copy.deepcopy(norm).float()
    x = torch.randn(6, 500, 20, device=device)
    with torch.no_grad():
        torch.compile(drsn_ops.batch_norm_relu, backend="aot_eager")(x, norm)
        drsn_ops.batch_norm_relu(x, wide)
    for found, exact in ((norm.running_mean, wide.running_mean), (norm.running_var, wide.running_var)):
        rounding = torch.finfo(dtype).eps / 2 * exact.abs() + 1e-6
        assert ((found.float() - exact).abs() <= rounding).all()


def numbers(dtype, device):
    """Numbers >= 0 of the type: all of a type of 16 bits, else ties, subnormals, and those that others do not have."""
    if dtype in (torch.float16, torch.bfloat16):
        return torch.arange(2**15, device=device).to(torch.int16).view(dtype)
    exponents = torch.arange(-160.0, 130, dtype=torch.float64)
    some = [torch.rand(2000, dtype=torch.float64) * 2 ** torch.randint(-30, 20, (2000,)).double()]
    for bits in (7, 8, 10, 11, 23, 24):  # a last place of a narrower type, or half of one
        some += [2**exponents * (1 + k * 2.0**-bits) for k in (1, 3)]
        some += [2**exponents * (1 + 2.0**-bits + sign * 2.0**-40) for sign in (-1, 1)]
    some.append(torch.tensor([0, 1e-310, 65519.99, 65520, 1e300, float("inf"), float("nan")]).double())
    return torch.cat(some).to(device, dtype)


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", REAL)
def test_every_number_is_read_and_written_as_a_copy_is(device, x_dtype, dtype):
    """Through a bias, which the result is, and its gradient, which is that of the result."""
    bias = numbers(dtype, device)
    norm = nn.BatchNorm1d(len(bias), eps=0).to(device, dtype).eval()
    norm.bias = nn.Parameter(bias)
    zeros = torch.zeros(1, len(bias), 1, dtype=x_dtype, device=device)
    y = drsn_ops.batch_norm_relu(zeros, norm)
    torch.testing.assert_close(y.flatten(), bias.to(x_dtype), rtol=0, atol=0, equal_nan=True)

    grad = numbers(x_dtype, device)
    grad = torch.cat([grad, -grad])
    norm = nn.BatchNorm1d(len(grad)).to(device, dtype).eval()
    nn.init.ones_(norm.bias)
    ones = torch.ones(1, len(grad), 1, dtype=x_dtype, device=device)
    (found,) = torch.autograd.grad(drsn_ops.batch_norm_relu(ones, norm), norm.bias, grad.view(1, -1, 1))
    torch.testing.assert_close(found, grad.to(dtype), rtol=0, atol=0, equal_nan=True)


def costs(call, x_dtype, dtype, device):
    """PyTorch's copies, and how often an operator asks for memory, which tests fill, in both passes."""
    modules = make(call, device, dtype)
    x = leaf(make_features((6, 4, 50), device).to(x_dtype))
    grad = torch.randn(x.shape, device=device).to(x_dtype)
    found = []

    def counted(function):
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            result = function()
        names = [event.name for event in profiler.events()]
        found.append((sum(name in COPIES for name in names), names.count("aten::fill_")))
        return result

    with torch.autocast(device.type, torch.bfloat16):
        y = counted(lambda: getattr(drsn_ops, call)(x, *modules))
        counted(lambda: torch.autograd.grad(y, (x, *modules.parameters()), grad))
    return found


@pytest.mark.parametrize("call", CALLS)
def test_all_of_a_call_are_copied_at_once(device, call):
    """None of them by PyTorch, and none at all where their type is that in which the kernels compute."""
    costs(call, torch.float32, torch.float32, device)  # what is made once, is made
    plain = costs(call, torch.float32, torch.float32, device)
    autocast = costs(call, torch.bfloat16, torch.float32, device)
    assert [copies for copies, _ in plain + autocast] == [0, 0, 0, 0]
    assert autocast == plain
    for x_dtype, dtype in ((torch.bfloat16, torch.bfloat16), (torch.float64, torch.float16)):
        assert costs(call, x_dtype, dtype, device) == [(0, asked + 1) for _, asked in plain]
