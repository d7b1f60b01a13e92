"""APReLU: its formula, its gate, and what it refuses."""

import pytest
import torch
from checks import randomise
from torch import nn

from drsn_ops import APReLU

SHAPES = [(3, 6), (3, 6, 49), (3, 6, 7, 9), (3, 6, 3, 4, 5)]


def features(*shape, dtype=torch.float64, device="cpu"):
    torch.manual_seed(0)
    return torch.randn(*shape, dtype=dtype).to(device)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("norm", ["batch", "layer", "rms", "none"])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(shape, norm, device):
    module = randomise(APReLU(6, reduction=2, norm=norm).double()).to(device)
    x = features(*shape, device=device).requires_grad_()
    rows = x.reshape(3, 6, -1)
    means = torch.cat([torch.minimum(rows, rows * 0).mean(-1), rows.relu().mean(-1)], 1)
    slope = module.fc(means).reshape(3, 6, *(1,) * (x.dim() - 2))
    expected = x.relu() - slope * (-x).relu()
    y = module(x)
    close(y, expected)
    g = features(*shape, device=device).flip(1)
    inputs = (x, *module.parameters())
    for actual, want in zip(
        torch.autograd.grad(y, inputs, g), torch.autograd.grad(expected, inputs, g), strict=True
    ):
        close(actual, want)


def test_by_hand(device):
    """The gate adds the means, -1/2 and 1: the slope is sigmoid(1/2), or sigmoid(1) without the first."""
    module = APReLU(1, norm="none").to(device)
    for parameter in module.parameters():
        nn.init.ones_(parameter) if parameter.dim() == 2 else nn.init.zeros_(parameter)
    x = torch.tensor([[[4.0, 0.0, -1.0, -1.0]]], device=device)
    slope = torch.tensor(0.5).sigmoid().item()
    torch.testing.assert_close(module(x), torch.tensor([[[4.0, 0.0, -slope, -slope]]], device=device))
    with torch.no_grad():
        module.fc[0].weight[0, 0] = 0  # the mean of the negative values comes first
    slope = torch.tensor(1.0).sigmoid().item()
    torch.testing.assert_close(module(x), torch.tensor([[[4.0, 0.0, -slope, -slope]]], device=device))


def test_gradcheck(device):
    module = randomise(APReLU(3, norm="layer").double()).to(device)
    assert torch.autograd.gradcheck(module, features(2, 3, 5, device=device).requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_types(dtype, device):
    module = randomise(APReLU(6, norm="layer").double()).to(device)
    x = features(3, 6, 40, device=device).to(dtype)
    expected = module(x.double())
    y = module.to(dtype)(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), expected, rtol=0.02, atol=0.02)
    with torch.autocast(y.device.type, torch.bfloat16):
        assert module.float()(x.float()).dtype == torch.float32
    assert module(x).dtype == dtype


def test_compiled_traced_and_exported():
    module = randomise(APReLU(4, norm="layer").double()).eval()
    x = features(3, 4, 9).requires_grad_()
    call = torch.compile(module, fullgraph=True, backend="aot_eager")
    close(call(x), module(x))
    close(torch.autograd.grad(call(x).sum(), x)[0], torch.autograd.grad(module(x).sum(), x)[0])
    close(torch.fx.symbolic_trace(module)(x), module(x))
    program = torch.export.export(module, (x.detach(),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    other = features(5, 4, 9)
    close(program.module()(other), module(other))


def test_numbers_that_are_none_and_nothing_at_all():
    module = APReLU(2, norm="none")
    y = module(torch.tensor([[[1.0, torch.nan], [1.0, -1.0]]]))
    assert y[0, 0, 1].isnan()
    learning = APReLU(2)
    assert learning(torch.zeros(3, 2, 0)).shape == (3, 2, 0)
    assert all(value.isfinite().all() for value in learning.state_dict().values())
    assert list(module.state_dict()) == ["fc.0.weight", "fc.0.bias", "fc.3.weight", "fc.3.bias"]
    assert repr(module).startswith("APReLU(\n  2, reduction=1, norm='none'")


X = torch.zeros(2, 4, 8)


@pytest.mark.parametrize(
    "call, kind, message",
    [
        (lambda: APReLU(0), ValueError, "channels: got 0, expected an integer of at least 1"),
        (lambda: APReLU(4, reduction=0), ValueError, "reduction: got 0, expected"),
        (
            lambda: APReLU(4, norm="group"),
            ValueError,
            "norm: got 'group', expected 'batch', 'layer', 'rms' or 'none'",
        ),
        (lambda: APReLU(3)(X), ValueError, r"x: got shape \(2, 4, 8\), expected 3 channels on axis 1"),
        (lambda: APReLU(4)(X[:1]), ValueError, "x: got a batch of 1, expected at least 2 samples"),
        (lambda: APReLU(4)(X.long()), TypeError, "x: got a tensor of torch.int64"),
    ],
)
def test_errors(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
