"""The first convolution of the paper's networks at other widths and strides, and dropout before the classifier."""

import pickle

import pytest
import torch
import torch.nn.functional as F

from drsn_ops import models

NETWORKS = {"drsn": models.drsn, "convnet": models.convnet}


@pytest.mark.parametrize("size", [(64,), (67,), (17, 22), (9, 10, 11)])
@pytest.mark.parametrize("width, stride", [(64, 8), (64, 16), (7, 2), (4, 1), (5, 1), (1, 2), (2, 5), (3, 4)])
def test_the_stem_pads_as_tensorflow_pads(width, stride, size):
    """Of n positions ceil(n / stride) stay, with as many zeros around, the odd one behind."""
    if len(size) > 1 and width == 64:
        width = 8
    network = models.drsn(blocks=3, dim=len(size), stem_width=width, stem_stride=stride).double().eval()
    x = torch.randn(2, 1, *size, dtype=torch.float64)
    seen = []
    network.units.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(x)
    padding = []
    for n in reversed(size):
        total = max((-(-n // stride) - 1) * stride + width - n, 0)
        padding += [total // 2, total - total // 2]
    conv = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(size)]
    expected = conv(F.pad(x, padding), network.stem.weight, network.stem.bias, stride)
    assert seen[0].shape == (2, 4, *(-(-n // stride) for n in size))
    torch.testing.assert_close(seen[0], expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_wide_network_trains_and_is_exported(name):
    network = NETWORKS[name](blocks=3, stem_width=64, stem_stride=16, dropout=0.5)
    assert network.stem.kernel_size == (64,) and network.stem.stride == (16,)
    x = torch.randn(4, 1, 1024)
    (network(x).square().sum() + network.penalty()).backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in network.stem.parameters())
    network.eval()
    torch.testing.assert_close(torch.fx.symbolic_trace(network)(x), network(x))
    dynamic = ({0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(network, (x,), dynamic_shapes=dynamic)
    other = torch.randn(3, 1, 1000)
    torch.testing.assert_close(program.module()(other), network(other), rtol=1e-4, atol=1e-5)


def test_dropout_is_before_the_classifier_and_in_training_alone():
    network = models.drsn(blocks=3, dropout=0.75)
    seen, given = [], []
    network.dropout.register_forward_hook(lambda _, inputs, y: seen.append((inputs[0], y)))
    network.classifier.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    x = torch.randn(400, 1, 64)
    network(x)
    network.eval()
    network(x)
    (before, dropped), (same, kept) = seen
    assert abs((dropped[before > 0] == 0).double().mean() - 0.75) < 0.05
    assert torch.equal(kept, same) and given[0] is dropped and given[1] is kept
    assert list(network.state_dict()) == list(models.drsn(blocks=3).state_dict())


def test_defaults_are_the_paper_s():
    network = models.drsn(blocks=3)
    assert (network.stem.kernel_size, network.stem.stride, network.dropout) == ((3,), (2,), None)


def test_a_pickle_from_before_these_options():
    network = models.drsn(blocks=3).eval()
    old = pickle.loads(pickle.dumps(network))
    state = {key: value for key, value in vars(network).items() if key not in ("stem_width", "dropout")}
    old.__dict__.clear()
    old.__setstate__(state)
    x = torch.randn(2, 1, 64)
    assert torch.equal(old(x), network(x))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_dropout_that_is_no_number(name):
    with pytest.raises(TypeError, match="dropout: got str, expected a number from 0 to less than 1"):
        NETWORKS[name](dropout="0.5")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"stem_width": 0}, "stem_width: got 0, expected an integer of at least 1"),
        ({"stem_stride": 2.0}, r"stem_stride: got 2\.0, expected an integer of at least 1"),
        ({"dropout": 1}, "dropout: got 1, expected a number from 0 to less than 1"),
        ({"dropout": -0.1}, "dropout: got -0.1, expected"),
    ],
)
@pytest.mark.parametrize("name", NETWORKS)
def test_errors(name, options, message):
    with pytest.raises(ValueError, match=message):
        NETWORKS[name](**options)
