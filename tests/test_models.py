"""The published networks: sizes, initialisation, L2, and the forward pass operation by operation."""

import math
import pickle
from functools import cache, partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from drsn_ops import RSBU, Shrinkage
from drsn_ops.models import ConvolutionalUnit, convnet, drsn, drsn_cifar10, drsn_mnist, rsnet18, rsnet34

CW, CS = "channel-wise", "channel-shared"
NORMS = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm, "rms": nn.RMSNorm, "none": nn.Identity}


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    "blocks, thresholds, count",
    [
        (12, "channel-wise", 11_552),
        (12, "channel-shared", 10_220),
        (12, None, 8_416),
        (9, "channel-wise", 8_584),
        (9, "channel-shared", 7_585),
        (9, None, 6_232),
        (6, "channel-wise", 5_616),
        (6, "channel-shared", 4_950),
        (6, None, 4_048),
    ],
)
def test_parameters_of_the_paper(blocks, thresholds, count):
    assert parameters(drsn(blocks=blocks, thresholds=thresholds)) == count


@pytest.mark.parametrize("blocks", [12, 9, 6])
def test_the_convnet_has_the_parameters_of_the_resnet(blocks):
    shapes, expected = (
        {name: parameter.shape for name, parameter in network.named_parameters()}
        for network in (convnet(blocks=blocks), drsn(blocks=blocks, thresholds=None))
    )
    assert shapes == expected


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_the_convnet_is_the_resnet_without_shortcuts(dim, device):
    network = drsn(2, 3, dim=dim, blocks=3, widths=(4, 8, 12), thresholds=None).double().to(device)
    plain = convnet(2, 3, dim=dim, blocks=3, widths=(4, 8, 12)).double().to(device)
    plain.load_state_dict(network.state_dict())
    for unit in network.units:
        unit.register_forward_hook(lambda unit, args, y: y - unit.shortcut(args[0]))
    x = torch.randn(3, 2, *(16,) * dim, dtype=torch.float64, device=device)
    logits = plain(x)
    torch.testing.assert_close(logits, network(x), rtol=1e-9, atol=1e-9)
    F.cross_entropy(logits, torch.tensor([0, 1, 2], device=device)).backward()
    assert all(parameter.grad is not None for parameter in plain.parameters())


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_a_unit_without_its_shortcut(dim):
    unit = ConvolutionalUnit(2, 5, stride=2, dim=dim).double()
    whole = RSBU(2, 5, stride=2, dim=dim, thresholds=None).double()
    unit.load_state_dict(whole.state_dict())
    x = torch.randn(3, 2, *(9,) * dim, dtype=torch.float64)
    torch.testing.assert_close(unit(x), whole(x) - whole.shortcut(x))


def widths(*counts):
    """The channels of the gates of an rsnet with so many blocks a stage."""
    return [64 << stage for stage, count in enumerate(counts) for _ in range(count)]


# what builds a network, its spatial axes, and the channels of its gates
NETWORKS = [
    *((partial(drsn, dim=dim, blocks=4, widths=(4, 6)), dim, [4, 4, 6, 6]) for dim in (1, 2, 3)),
    *((partial(rsnet18, dim=dim), dim, widths(2, 2, 2, 2)) for dim in (1, 2, 3)),
    *((partial(rsnet34, dim=dim), dim, widths(3, 4, 6, 3)) for dim in (1, 2, 3)),
    (drsn_mnist, 2, [8]),
    (drsn_cifar10, 2, [16, 32, 32]),
]


@pytest.mark.parametrize(
    "thresholds, reduction, norm",
    [(CW, 1, "layer"), (CW, 3, "batch"), (CS, 1, "rms"), (CS, 3, "none"), (None, 3, "batch")],
)
@pytest.mark.parametrize("build, dim, channels", NETWORKS)
def test_options_reach_every_gate(build, dim, channels, thresholds, reduction, norm):
    with torch.device("meta"):
        network = build(thresholds=thresholds, reduction=reduction, norm=norm)
    convolutions = [m for m in network.modules() if isinstance(m, nn.modules.conv._ConvNd)]
    assert {type(m) for m in convolutions} == {(nn.Conv1d, nn.Conv2d, nn.Conv3d)[dim - 1]}
    gates = [module for module in network.modules() if isinstance(module, Shrinkage)]
    assert [gate.channels for gate in gates] == (channels if thresholds else [])
    for gate in gates:
        assert (gate.thresholds, gate.reduction, gate.norm) == (thresholds, reduction, norm)
        assert gate.statistic == {CW: "channel", CS: "sample"}[thresholds]
        hidden = gate.channels // reduction
        assert gate.fc[0].weight.shape == (hidden, gate.channels)
        assert gate.fc[3].weight.shape == (gate.channels if thresholds == CW else 1, hidden)
        assert type(gate.fc[1]) is NORMS[norm]


@pytest.mark.parametrize("dim, length", [(1, 1), (1, 2), (1, 7), (1, 33), (2, 7), (3, 1), (3, 6)])
@pytest.mark.parametrize("build", [drsn, convnet])
def test_any_length(build, dim, length, device):
    network = build(2, 3, dim=dim, blocks=2, widths=(2, 3)).to(device)
    sizes = []
    for module in (network.stem, *network.units):
        module.register_forward_hook(lambda *args: sizes.append(tuple(args[2].shape[2:])))
    assert network(torch.randn(2, 2, *(length,) * dim, device=device)).shape == (2, 3)
    # each halves what it is given, rounded up
    assert sizes == [(-(-length // step),) * dim for step in (2, 4, 8)]


def test_parameters_of_the_programs():
    # stem, two 3x3 convolutions of the unit with biases, three BatchNorms, the gate, the classifier
    assert parameters(drsn_mnist()) == 80 + 2 * 584 + 3 * 16 + (72 + 16 + 72) + 90
    # the CIFAR-10 gates are C -> C//4 -> C
    assert [
        tuple(layer.weight.shape)
        for module in drsn_cifar10().modules()
        if isinstance(module, Shrinkage)
        for layer in (module.fc[0], module.fc[3])
    ] == [(4, 16), (16, 4), (8, 32), (32, 8), (8, 32), (32, 8)]


def test_shapes_of_the_paper_network():
    network = drsn()
    lengths = []
    network.stem.register_forward_hook(lambda *args: lengths.append(tuple(args[2].shape[1:])))
    for unit in network.units:
        unit.register_forward_hook(lambda *args: lengths.append(tuple(args[2].shape[1:])))
    assert network(torch.randn(2, 1, 2048)).shape == (2, 8)
    assert lengths == [(4, 1024)] + 4 * [(4, 512)] + 4 * [(8, 256)] + 4 * [(16, 128)]


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_every_parameter_of_the_paper_network_learns(dim, device):
    network = drsn(2, 3, dim=dim, blocks=3, reduction=2, norm="layer", widths=(4, 8, 12)).to(device)
    logits = network(torch.randn(3, 2, *(16,) * dim, device=device))
    assert logits.shape == (3, 3)
    F.cross_entropy(logits, torch.tensor([0, 1, 2], device=device)).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_odd_channel_padding():
    """4 to 7 channels: one before, two after."""
    unit = drsn(widths=(4, 7), blocks=2).units[1]
    x = torch.ones(1, 4, 6)
    assert unit.shortcut(x)[0, :, 0].tolist() == [0, 1, 1, 1, 1, 0, 0]


def norm_settings(network):
    return {(module.eps, module.momentum) for module in network.modules() if isinstance(module, _BatchNorm)}


def test_batch_norm_conventions():
    assert norm_settings(drsn_mnist()) == {(1e-3, 0.01)}
    assert norm_settings(drsn_cifar10()) == {(1e-5, 0.1)}
    gammas = torch.cat([m.weight for m in drsn_cifar10().modules() if isinstance(m, _BatchNorm)])
    assert 0.0015 < gammas.std() < 0.0025 and abs(gammas.mean() - 1) < 0.001


def weighted(network):
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear))
    }


def test_a_pickle_from_before_a_network_kept_its_stride():
    network = drsn(blocks=3).eval()
    x = torch.randn(2, 1, 64)
    expected = network(x)
    stride = network.__dict__.pop("stride")
    again = pickle.loads(pickle.dumps(network))
    assert again.stride == stride == 2
    assert torch.equal(again(x), expected)


@pytest.mark.parametrize("build", [drsn_mnist, drsn_cifar10, drsn])
def test_biases_start_at_zero(build):
    layers = weighted(build())
    assert layers and all((layer.bias == 0).all() for layer in layers.values())


@cache
def drawn(build):
    """Many draws of every kernel."""
    draws = [weighted(build()) for _ in range(60)]
    return {name: torch.stack([draw[name].weight.detach() for draw in draws]) for name in draws[0]}


# the standard deviation of a normal distribution of 1 that is cut at 2
CUT = 0.87962566103423978
small_drsn = partial(drsn, blocks=3)


@pytest.mark.parametrize(
    "build, name, std",
    [
        (drsn_mnist, "stem", lambda n: math.sqrt(2 / n) / CUT),
        (drsn_mnist, "units.0.conv1", lambda n: math.sqrt(2 / n) / CUT),
        (drsn_mnist, "units.0.conv2", lambda n: math.sqrt(2 / n) / CUT),
        (drsn_mnist, "units.0.shrink.fc.0", lambda n: math.sqrt(2 / n) / CUT),
        (drsn_mnist, "classifier", lambda n: math.sqrt(2 / n) / CUT),
        (drsn_cifar10, "units.1.conv1", lambda n: math.sqrt(2.6 / n)),
        (drsn_cifar10, "units.2.shrink.fc.0", lambda n: math.sqrt(2.6 / n)),
        (drsn_cifar10, "units.2.shrink.fc.3", lambda n: math.sqrt(2.6 / n)),
        (drsn_cifar10, "classifier", lambda n: 0.02),
        (small_drsn, "units.1.conv1", lambda n: math.sqrt(2.6 / n)),
    ],
)
def test_truncated_normal_kernels(build, name, std):
    kernels = drawn(build)[name]
    expected = std(kernels[0, 0].numel())
    assert kernels.std().item() == pytest.approx(expected * CUT, rel=0.05)
    # the largest of some thousand draws lies close to the cut
    assert 1.9 * expected < kernels.abs().max() <= 2 * expected * (1 + 1e-6)


@pytest.mark.parametrize(
    "build, name, bound",
    [
        (drsn_mnist, "units.0.shrink.fc.3", math.sqrt(6 / (8 + 8))),
        (drsn_cifar10, "stem", math.sqrt(3 / 27)),
        (small_drsn, "stem", math.sqrt(3 / 3)),
    ],
)
def test_uniform_kernels(build, name, bound):
    kernels = drawn(build)[name]
    assert 0.98 * bound < min(kernels.max(), -kernels.min()) and kernels.abs().max() <= bound
    assert kernels.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.06)


def test_penalty():
    for build, factor, left_out in (
        (drsn_mnist, 1e-4, []),
        (drsn_cifar10, 0.5e-4, ["classifier"]),
        (drsn, 0.5e-4, ["classifier"]),
    ):
        network = build()
        kernels = [layer.weight for name, layer in weighted(network).items() if name not in left_out]
        expected = factor * sum(kernel.double().square().sum() for kernel in kernels)
        penalty = network.penalty()
        torch.testing.assert_close(penalty.double(), expected, rtol=1e-5, atol=0)
        penalty.backward()
        touched = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
        assert touched == {f"{name}.weight" for name in weighted(network) if name not in left_out}


def bn(x, state, name, eps):
    weights = [state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
    return F.batch_norm(x, *weights, training=False, eps=eps).relu()


def conv(x, state, name, stride=1):
    """TensorFlow's "same" on even sizes: with stride 2 the one zero goes to the end."""
    x = F.pad(x, (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1))
    return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride)


def dense(x, state, name):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


@pytest.mark.parametrize(
    "build, units, size, eps",
    [
        (drsn_mnist, [(8, 8, 2)], (1, 28, 28), 1e-3),
        (drsn_cifar10, [(16, 16, 1), (16, 32, 2), (32, 32, 2)], (3, 32, 32), 1e-5),
    ],
)
def test_forward_layer_for_layer(build, units, size, eps):
    """The programs' own lines, from the weights alone, in evaluation mode after the statistics have moved."""
    network = build().double()
    x = torch.rand(5, *size, dtype=torch.float64)
    for _ in range(3):
        network(x)
    network.eval()
    state = network.state_dict()
    net = conv(x, state, "stem")
    for i, (in_channels, out_channels, stride) in enumerate(units):
        at = f"units.{i}"
        residual = conv(bn(net, state, f"{at}.bn1", eps), state, f"{at}.conv1", stride)
        residual = conv(bn(residual, state, f"{at}.bn2", eps), state, f"{at}.conv2")
        abs_mean = residual.abs().mean((2, 3))
        scales = bn(dense(abs_mean, state, f"{at}.shrink.fc.0"), state, f"{at}.shrink.fc.1", eps)
        scales = dense(scales, state, f"{at}.shrink.fc.3").sigmoid()
        sub = residual.abs() - (abs_mean * scales)[:, :, None, None]
        residual = residual.sign() * torch.maximum(sub, sub - sub)
        identity = F.avg_pool2d(net, 1, stride)
        extra = (out_channels - in_channels) // 2
        net = residual + F.pad(identity, (0, 0, 0, 0, extra, extra))
    logits = dense(bn(net, state, "bn", eps).mean((2, 3)), state, "classifier")
    torch.testing.assert_close(network(x), logits, rtol=1e-9, atol=1e-9)


def test_other_inputs():
    assert drsn_mnist(in_channels=3, num_classes=4)(torch.rand(2, 3, 8, 9)).shape == (2, 4)
    assert drsn_cifar10(1, 5, thresholds="channel-shared")(torch.rand(2, 1, 7, 5)).shape == (2, 5)


@pytest.mark.parametrize("build, size", [(drsn_mnist, (1, 28, 28)), (drsn_cifar10, (3, 32, 32))])
def test_a_program_trains_on_a_batch_of_one(build, size):
    x = torch.rand(1, *size)
    with pytest.raises(ValueError, match=r"got a batch of 1, .*norm='layer'"):
        build()(x)
    F.cross_entropy(build(norm="layer")(x), torch.tensor([3])).backward()


ERRORS = [
    (lambda: convnet(blocks=10), r"blocks: got 10, expected a multiple of the number of widths, 3"),
    (lambda: convnet(dim=4), r"dim: got 4, expected 1, 2 or 3"),
    (lambda: convnet()(torch.zeros(2, 3, 64)), r"x: got shape \(2, 3, 64\), expected \(N, 1, L1\)"),
    (lambda: drsn(blocks=10), r"blocks: got 10, expected a multiple of the number of widths, 3"),
    (lambda: drsn(blocks=0), r"blocks: got 0, expected an integer of at least 1"),
    (lambda: drsn(widths=4), r"widths: got 4, expected a sequence of integers, one a stage"),
    (lambda: convnet(widths=None), r"widths: got None, expected a sequence of integers, one a stage"),
    (
        lambda: drsn(widths=(8, 4, 16)),
        r"widths: got \(8, 4, 16\), expected none that is less than the one before",
    ),
    (lambda: drsn(widths=()), r"blocks: got 12, expected a multiple of the number of widths, 0"),
    (lambda: drsn(widths=(4, 0)), r"widths: got 0, expected an integer of at least 1"),
    (lambda: drsn(dim=0), r"dim: got 0, expected 1, 2 or 3"),
    (
        lambda: drsn(thresholds="none"),
        r"thresholds: got 'none', expected 'channel-wise', 'channel-shared' or None",
    ),
    (lambda: drsn(0), r"in_channels: got 0, expected"),
    (lambda: drsn_mnist(num_classes=0), r"num_classes: got 0, expected"),
    (lambda: drsn_mnist()(torch.zeros(2, 28, 28)), r"x: got shape \(2, 28, 28\), expected \(N, 1, L1, L2\)"),
    (lambda: drsn()(torch.zeros(2, 3, 64)), r"x: got shape \(2, 3, 64\), expected \(N, 1, L1\)"),
]


@pytest.mark.parametrize("call, message", ERRORS, ids=[message for _, message in ERRORS])
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
