"""Shrinkages whose gate gets the largest magnitudes, alone or beside the means."""

import copy

import pytest
import torch
from checks import operators_of, randomise
from torch import nn

import drsn_ops
from drsn_ops import Shrinkage, models
from drsn_ops.modules import is_bare
from drsn_ops.variants.shrinkage import abs_max

OTHERS = ("max", "avg+max")
CW, CS = "channel-wise", "channel-shared"
SHAPES = [(3, 6), (3, 6, 49), (3, 6, 7, 9), (3, 6, 3, 4, 5)]


def features(*shape, dtype=torch.float64, device="cpu"):
    torch.manual_seed(0)
    return torch.randn(*shape, dtype=dtype).to(device)


def make(*args, **options):
    return randomise(Shrinkage(*args, **options).double())


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def by_hand(module, x, pooling, statistic):
    magnitude = x.abs().reshape(*x.shape[:2], -1)
    means, maxima = magnitude.mean(-1), magnitude.max(-1).values
    if pooling == "max":
        alpha, scope = module.fc(maxima), maxima
        scope = scope if statistic == "channel" else scope.max(1, keepdim=True).values
    else:
        f = nn.Sequential(*list(module.fc)[:4])
        parts = f(torch.cat([means, maxima]))
        alpha = (parts[: len(x)] + parts[len(x) :]).sigmoid()
        scope = means if statistic == "channel" else means.mean(1, keepdim=True)
    tau = (alpha * scope).reshape(len(x), -1, *(1,) * (x.dim() - 2))
    return x.sign() * (x.abs() - tau).relu()


@pytest.mark.parametrize("thresholds, statistic", [(CW, None), (CS, None), (CW, "sample"), (CS, "channel")])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pooling", OTHERS)
def test_values_and_gradients(pooling, shape, thresholds, statistic, device):
    module = make(6, thresholds, statistic=statistic, reduction=2, pooling=pooling).to(device)
    x = features(*shape, device=device).requires_grad_()
    residual = features(*shape, device=device).flip(0).requires_grad_()
    scope = statistic or {CW: "channel", CS: "sample"}[thresholds]
    inputs = (x, residual, *module.parameters())
    y, expected = module(x, residual), by_hand(module, x, pooling, scope) + residual
    close(y, expected)
    g = features(*shape, device=device).flip(1)
    for actual, want in zip(
        torch.autograd.grad(y, inputs, g), torch.autograd.grad(expected, inputs, g), strict=True
    ):
        close(actual, want)


@pytest.mark.parametrize("pooling, expected", [("max", [2, 0, 0, 0]), ("avg+max", [2.5, 0, 0, 0])])
def test_by_hand(pooling, expected, device):
    """With every weight 0, alpha is sigmoid(0) = 1/2, of a maximum of 4 and a mean of 2; "avg+max" has a bias too."""
    module = Shrinkage(1, pooling=pooling, norm="none").to(device)
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    if pooling == "avg+max":  # sigmoid(b + b) = 3/4
        nn.init.constant_(module.fc[3].bias, torch.logit(torch.tensor(0.75)).item() / 2)
    y = module(torch.tensor([[[4.0, 1.5, -1.5, 1.0]]], device=device))
    torch.testing.assert_close(y, torch.tensor([[expected]], dtype=torch.float32, device=device))


def test_training_and_evaluation_agree_once_statistics_have_settled():
    """The gate's BatchNorm sees means and maxima as one batch, and so has one pair of statistics."""
    module = make(6, pooling="avg+max")
    module.fc[1].momentum = 1.0
    x = features(400, 6, 20)
    trained = module(x)
    module.eval()
    torch.testing.assert_close(module(x), trained, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("pooling", OTHERS)
def test_gradcheck(pooling, device):
    module = make(3, norm="none", pooling=pooling).to(device)
    nn.init.constant_(module.fc[3].bias, -0.5)
    x = features(2, 3, 5, device=device)
    assert torch.autograd.gradcheck(module, x.requires_grad_())


def test_the_largest_magnitude():
    x = torch.tensor([[[1.0, -3.0], [0.0, torch.nan]], [[0.0, 0.0], [2.0, -2.0]]], requires_grad=True)
    assert torch.equal(abs_max(x).nan_to_num(-1), torch.tensor([[3.0, -1.0], [0.0, 2.0]]))
    assert abs_max(torch.ones(2, 3, 0)).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert abs_max(torch.ones(0, 3, 4, 5)).shape == (0, 3)
    assert abs_max(torch.full((1, 1, 3), 300, dtype=torch.float16)).dtype == torch.float32
    (gradient,) = torch.autograd.grad(abs_max(x)[1].sum(), x)
    assert gradient[1].tolist() == [[0, 0], [0.5, -0.5]]


@pytest.mark.parametrize("pooling", OTHERS)
def test_an_empty_x(pooling):
    for shape in ((2, 3, 0), (0, 3, 5)):
        assert Shrinkage(3, pooling=pooling, norm="none")(torch.ones(shape)).shape == shape


@pytest.mark.parametrize("rule", ["garrote", "asymmetric", "learned-slope"])
@pytest.mark.parametrize("pooling", OTHERS)
def test_with_other_rules(pooling, rule):
    module = make(4, rule=rule, pooling=pooling, norm="none")
    x = features(3, 4, 9).requires_grad_()
    module(x, x).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in module.parameters())
    block = drsn_ops.inspect(module.eval(), x.detach()).blocks[0]
    close(block.passed, module(x))
    maxima = x.detach().abs().amax(-1)
    close(block.tau, block.alpha * (maxima if pooling == "max" else x.detach().abs().mean(-1)))


@pytest.mark.parametrize("pooling", OTHERS)
def test_state_copies_and_words(pooling):
    module = make(4, pooling=pooling).eval()
    assert list(module.state_dict()) == list(Shrinkage(4).state_dict()) and not is_bare(module)
    assert f"pooling='{pooling}'" in repr(module)
    x = features(3, 4, 9)
    assert torch.equal(copy.deepcopy(module)(x), module(x))
    expected = module(x)
    module.use_reference = True
    close(module(x), expected)
    assert operators_of(module, x) == []


@pytest.mark.parametrize("pooling", OTHERS)
def test_compiled_traced_and_exported(pooling):
    torch.compiler.reset()
    module = make(4, norm="layer", pooling=pooling).eval()
    x = features(3, 4, 9).requires_grad_()
    call = torch.compile(module, fullgraph=True, backend="aot_eager")
    close(call(x, x), module(x, x))
    for actual, want in zip(
        torch.autograd.grad(call(x).sum(), [x, *module.parameters()]),
        torch.autograd.grad(module(x).sum(), [x, *module.parameters()]),
        strict=True,
    ):
        close(actual, want)
    close(torch.fx.symbolic_trace(module)(x), module(x))
    program = torch.export.export(module, (x.detach(),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    other = features(5, 4, 9)
    close(program.module()(other), module(other))


@pytest.mark.parametrize("pooling", OTHERS)
def test_hooks_and_batches_of_one(pooling):
    module, seen = make(4, pooling=pooling), []
    for layer in (module.fc, *module.fc):
        layer.register_forward_hook(lambda *_: seen.append(1))
    module(features(3, 4, 9))
    assert len(seen) == 6
    with pytest.raises(ValueError, match="x: got a batch of 1, expected at least 2 samples"):
        module(features(1, 4, 9))
    assert make(4, pooling=pooling, norm="none")(features(1, 4, 9)).shape == (1, 4, 9)


@pytest.mark.parametrize("pooling", OTHERS)
def test_converted_networks_have_it(pooling):
    network = models.drsn(thresholds=None, blocks=3)
    drsn_ops.convert(network, pooling=pooling)
    made = [module for module in network.modules() if isinstance(module, Shrinkage)]
    assert [module.pooling for module in made] == [pooling] * 3
    network(torch.randn(2, 1, 64)).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_check_shrinkage_finds_another_statistic():
    # alpha near 1 takes the largest magnitude itself, above the mean
    module = make(8, norm="none", pooling="max")
    assert not drsn_ops.check_shrinkage(module, 8)
    # and beside the mean the maximum moves the thresholds of rows of one mean
    assert not drsn_ops.check_shrinkage(make(8, norm="none", pooling="avg+max"), 8)


def test_errors():
    with pytest.raises(ValueError, match=r"pooling: got 'both', expected 'avg', 'max' or 'avg\+max'"):
        Shrinkage(4, pooling="both")
    with pytest.raises(
        ValueError, match="inplace: got True, expected False for another rule than 'soft' or pooling"
    ):
        Shrinkage(4, pooling="max", inplace=True)
