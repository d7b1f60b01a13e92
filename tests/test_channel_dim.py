"""Shrinkages of features on the last axis, as transformers have them: the same values, and no copy."""

import copy

import pytest
import torch
from checks import operators_of, randomise
from torch.utils._python_dispatch import TorchDispatchMode

import drsn_ops
from drsn_ops import Shrinkage, reference
from drsn_ops.modules import is_bare

SHAPES = [(3, 6), (3, 49, 6), (3, 7, 9, 6), (3, 3, 4, 5, 6)]


def features(*shape, dtype=torch.float64, device="cpu"):
    torch.manual_seed(0)
    return torch.randn(*shape, dtype=dtype).to(device)


def pair(channels, *args, **options):
    """The same module for channels on the last axis and on axis 1."""
    last = randomise(Shrinkage(channels, *args, channel_dim=-1, **options).double())
    first = Shrinkage(channels, *args, **options).double()
    first.load_state_dict(last.state_dict())
    return last, first


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "options", [{}, {"rule": "asymmetric"}, {"pooling": "avg+max"}, {"statistic": "sample"}]
)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(shape, options, device):
    last, first = (module.to(device) for module in pair(6, reduction=2, **options))
    x = features(*shape, device=device).requires_grad_()
    residual = features(*shape, device=device).flip(0).requires_grad_()
    y = last(x, residual)
    expected = first(x.movedim(-1, 1), residual.movedim(-1, 1)).movedim(1, -1)
    close(y, expected)
    g = features(*shape, device=device).flip(1)
    for actual, want in zip(
        torch.autograd.grad(y, (x, residual, *last.parameters()), g),
        torch.autograd.grad(expected, (x, residual, *first.parameters()), g),
        strict=True,
    ):
        close(actual, want)


class Seen(TorchDispatchMode):
    """Every operator with the sizes of its results."""

    def __init__(self):
        super().__init__()
        self.large = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for one in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(one, torch.Tensor) and one.numel() >= 3 * 6 * 50:
                self.large.append((function._schema.name, one.untyped_storage().data_ptr()))
        return result


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_no_copy_of_x_is_made(norm):
    module = Shrinkage(6, norm=norm, channel_dim=-1)
    x = features(3, 50, 6, dtype=torch.float32).requires_grad_()
    with Seen() as seen:
        y = module(x)
        y.backward(torch.ones_like(y))
    assert y.is_contiguous() and x.grad.is_contiguous()
    made = {name for name, place in seen.large if place != x.untyped_storage().data_ptr()}
    assert not {name for name in made if "copy" in name or "clone" in name or "contiguous" in name}
    assert operators_of(module, x.detach()) == operators_of(
        Shrinkage(6, norm=norm), x.detach().movedim(-1, 1)
    )


def test_in_place(device):
    module = Shrinkage(6, channel_dim=-1, inplace=True).to(device).eval()
    x = features(3, 50, 6, dtype=torch.float32, device=device)
    expected = reference.gated_shrink(x.movedim(-1, 1), module.fc).movedim(1, -1)
    with torch.no_grad():
        y = module(x)
    assert y.data_ptr() == x.data_ptr()
    torch.testing.assert_close(x, expected)
    leaf = features(3, 50, 6, dtype=torch.float32, device=device).requires_grad_()
    (gradient,) = torch.autograd.grad(module(leaf * 1).sum(), leaf)
    other = Shrinkage(6, channel_dim=-1).to(device).eval()
    other.load_state_dict(module.state_dict())
    torch.testing.assert_close(gradient, torch.autograd.grad(other(leaf).sum(), leaf)[0])


def test_compiled_traced_and_exported():
    module = pair(4, norm="layer")[0].eval()
    x = features(3, 9, 4).requires_grad_()
    call = torch.compile(module, fullgraph=True, backend="aot_eager")
    close(call(x, x), module(x, x))
    close(torch.autograd.grad(call(x).sum(), x)[0], torch.autograd.grad(module(x).sum(), x)[0])
    close(torch.fx.symbolic_trace(module)(x), module(x))
    dynamic = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(module, (x.detach(),), dynamic_shapes=dynamic)
    other = features(5, 12, 4)
    close(program.module()(other), module(other))


def test_copies_words_and_tools():
    module, first = pair(4, norm="none")
    x = features(3, 9, 4)
    assert torch.equal(copy.deepcopy(module)(x), module(x)) and not is_bare(module)
    assert repr(module).count("channel_dim=-1") == 1 and "channel_dim" not in repr(first)
    block = drsn_ops.inspect(module, x).blocks[0]
    close(block.passed, module(x).movedim(-1, 1))
    assert block.tau.shape == (3, 4)
    module.use_reference = True
    close(module(x), first(x.movedim(-1, 1)).movedim(1, -1))
    assert operators_of(module, x) == []


@pytest.mark.parametrize("dim", [1, 2])
def test_check_shrinkage(dim):
    check = drsn_ops.check_shrinkage(pair(8, norm="none")[0], 8, dim=dim, channel_dim=-1)
    assert check and check.thresholds == "channel-wise"

    def reshaped(x):
        """(B, L, C) read as (B, C, L)."""
        rows = x.reshape(len(x), 8, -1)
        return (rows.sign() * (rows.abs() - 0.5 * rows.abs().mean(-1, True)).relu()).reshape(x.shape)

    check = drsn_ops.check_shrinkage(reshaped, 8, dim=dim, channel_dim=-1)
    assert check.mistake == "reshape for transpose"
    failed = drsn_ops.check_shrinkage(pair(8, norm="none")[0], 8, dim=dim)
    assert failed.statement == "raises ValueError"


X = torch.zeros(2, 8, 4)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: Shrinkage(4, channel_dim=2), "channel_dim: got 2, expected 1 or -1"),
        (
            lambda: Shrinkage(3, channel_dim=-1)(X),
            r"x: got shape \(2, 8, 4\), expected 3 channels on the last axis",
        ),
        (
            lambda: Shrinkage(4, channel_dim=-1)(X[0, 0]),
            r"x: got shape \(4,\), expected 4 channels on the last",
        ),
        (
            lambda: Shrinkage(4, channel_dim=-1)(X, X[:1]),
            r"residual: got shape \(1, 8, 4\), expected \(2, 8, 4\), that of x",
        ),
        (lambda: Shrinkage(4, channel_dim=-1)(X[:1]), "x: got a batch of 1, expected at least 2 samples"),
        (lambda: drsn_ops.check_shrinkage(abs, 4, channel_dim=0), "channel_dim: got 0, expected 1 or -1"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_list_is_refused():
    with pytest.raises(TypeError, match="x: got list, expected a tensor"):
        Shrinkage(4, channel_dim=-1)([1.0])
