"""How many samples are evaluated together, and that their number decides nothing."""

import pytest
import torch

from drsn_ops import models
from drsn_ops.data import Dataset, Split
from drsn_ops.experiment import cell
from drsn_ops.layers import pad_same
from drsn_ops.training.networks import evaluation_batch
from drsn_ops.training.recipes import Settings
from drsn_ops.training.run import Run


@pytest.mark.parametrize(
    "network, shape, expected",
    [
        # stems of 16 and 8 channels, at the size of the image, and of 4 at half the length: 8 MiB of float32
        (models.drsn_cifar10, (3, 32, 32), 128),
        (models.drsn_mnist, (1, 28, 28), 334),
        (models.drsn_mnist, (1, 8, 8), 4096),
        (models.drsn, (1, 2048), 512),
        (models.convnet, (1, 1024), 1024),
        # 64 channels at full length
        (models.rsnet18, (1, 2048), 16),
        (models.drsn_cifar10, (3, 2048, 2048), 1),
    ],
)
def test_evaluation_batch(network, shape, expected):
    assert evaluation_batch(network(), torch.empty(5, *shape, device="meta")) == expected


@pytest.mark.parametrize(
    "network, shape",
    [
        (models.drsn_cifar10, (3, 32, 32)),
        (models.drsn_mnist, (1, 28, 28)),
        (models.drsn, (1, 2048)),
        (models.convnet, (1, 1024)),
    ],
)
@torch.inference_mode()
def test_no_activation_is_wider_than_the_stem(network, shape):
    network = network().eval()
    widest = []
    for module in network.modules():
        module.register_forward_hook(lambda _, __, output: widest.append(output[0].numel()))
    network(torch.randn(2, *shape))
    assert max(widest) == network.stem(pad_same(torch.randn(1, *shape), network.stem.stride[0])).numel()


class Seen(torch.nn.Module):
    """Notes the size of each batch."""

    def __init__(self, network):
        super().__init__()
        self.network, self.sizes = network, []
        self.stem, self.classifier = network.stem, network.classifier

    def forward(self, x):
        self.sizes.append(len(x))
        return self.network(x)


@pytest.fixture
def small_batches(monkeypatch):
    """Batches of three CIFAR-10 images, and of as many bytes of others."""
    monkeypatch.setattr("drsn_ops.training.networks.EVALUATION_BYTES", 3 * 16 * 32 * 32 * 4)


def test_training_evaluates_batches_of_that_size(small_batches):
    torch.manual_seed(0)
    split = Split(torch.rand(8, 3, 32, 32), torch.arange(8))
    settings = Settings("cifar10", "channel-wise", "drsn_ops", 1, 4, 0.1, 0.0, 0)
    run = Run(settings, Dataset(split, split, torch.full((3, 1, 1), 0.5)), torch.device("cpu"))
    run.network = Seen(run.network)
    loss, accuracy = run.evaluate("test", lambda: None)
    assert run.network.sizes == [3, 3, 2]
    with torch.inference_mode():
        logits = run.network(split.images - 0.5)
    assert accuracy == (logits.argmax(1) == split.labels).double().mean()
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits, split.labels).item(), rel=1e-6)


def test_the_experiment_evaluates_batches_of_that_size(small_batches):
    torch.manual_seed(0)
    network = Seen(models.drsn(blocks=3))
    x = torch.randn(100, 1, 2048)
    features = cell.features_of(network, x)
    assert network.sizes == [12] * 8 + [4]
    with torch.inference_mode():
        whole = torch.cat([cell.features_of(network, sample) for sample in x.split(1)])
    torch.testing.assert_close(features, whole)
