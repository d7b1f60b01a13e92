"""`adapt_batch_norm`: the statistics are those of the signals, and nothing else changes."""

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from drsn_ops import adapt_batch_norm, models


def signals(count=12, scale=3.0, shift=2.0):
    torch.manual_seed(0)
    return scale * torch.randn(count, 1, 64, dtype=torch.float64) + shift


def trained(**options):
    torch.manual_seed(1)
    return models.drsn(blocks=3, num_classes=3, **options).double()


def norms_of(network):
    return [m for m in network.modules() if isinstance(m, _BatchNorm)]


def test_the_statistics_are_those_of_what_each_batch_norm_gets():
    network, x, seen = adapt_batch_norm(trained(), signals()), signals(), {}
    for norm in norms_of(network):
        norm.momentum = 0.0  # the batch normalises itself, and the statistics stay
        norm.register_forward_pre_hook(lambda norm, inputs: seen.update({norm: inputs[0]}))
    network(x)
    assert len(seen) == 10  # three in each unit, one of them in its gate, and the last
    for norm, h in seen.items():
        rows = h.transpose(0, 1).flatten(1)
        torch.testing.assert_close(norm.running_mean, rows.mean(1), rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(norm.running_var, rows.var(1), rtol=1e-8, atol=1e-8)


def test_one_batch_norm_by_hand():
    network = nn.Sequential(nn.BatchNorm1d(1, momentum=0.3).double(), nn.Flatten(), nn.Linear(64, 2).double())
    x = signals()
    assert adapt_batch_norm(network, x) is network
    norm = network[0]
    torch.testing.assert_close(norm.running_mean, x.mean().reshape(1))
    torch.testing.assert_close(norm.running_var, x.var().reshape(1))
    assert norm.momentum == 0.3 and network.training
    adapt_batch_norm(network, x, batch_size=4)
    parts = x.split(4)
    torch.testing.assert_close(norm.running_mean, torch.stack([p.mean() for p in parts]).mean().reshape(1))
    torch.testing.assert_close(norm.running_var, torch.stack([p.var() for p in parts]).mean().reshape(1))
    assert norm.num_batches_tracked == 3


@pytest.mark.parametrize("thresholds", ["channel-wise", "channel-shared", None])
def test_a_network_of_fused_operators(thresholds):
    """Evaluated on these signals it then does what it does in training, where the batch normalises itself."""
    network, x = trained(thresholds=thresholds), signals(200)
    state = {k: v.clone() for k, v in network.state_dict().items()}
    expected = network.train()(x)
    network.load_state_dict(state)
    adapt_batch_norm(network.eval(), x)
    assert not any(module.training for module in network.modules())
    torch.testing.assert_close(network(x), expected, rtol=0.02, atol=0.02)
    changed = {k for k, v in network.state_dict().items() if not torch.equal(v, state[k])}
    assert changed == {k for k in state if "running" in k or "batches" in k}


@pytest.mark.parametrize("count, size", [(5, 2), (3, 2), (7, 3), (6, 6), (6, 100)])
def test_no_batch_has_one_signal(count, size):
    network, sizes = trained(), []
    network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    adapt_batch_norm(network, signals(count), batch_size=size)
    assert sum(sizes) == count and min(sizes) >= 2 and max(sizes) <= size + 1


def test_dropout_is_off_and_modes_stay():
    network = trained(dropout=0.5).train()
    network.units[0].eval()
    drawn = []
    network.dropout.register_forward_hook(lambda module, *_: drawn.append(module.training))
    adapt_batch_norm(network, signals())
    assert drawn == [False] and network.dropout.training and not network.units[0].bn1.training


class TwoHeads(nn.Module):
    """A network of which a call uses the first half alone."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.BatchNorm1d(1).double(), nn.BatchNorm1d(1).double()

    def forward(self, x):
        return self.used(x)


def test_a_batch_norm_that_sees_nothing_keeps_its_statistics():
    network = TwoHeads()
    network.unused.load_state_dict(
        {
            "running_mean": torch.tensor([7.0]),
            "running_var": torch.tensor([5.0]),
            "num_batches_tracked": torch.tensor(9),
        },
        strict=False,
    )
    adapt_batch_norm(network, signals())
    buffers = [buffer.item() for buffer in network.unused.buffers()]
    assert buffers == [7, 5, 9] and network.used.num_batches_tracked == 1


def test_a_network_that_raises_keeps_its_statistics():
    network = trained()
    state = {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises(RuntimeError, match="stop"):
        network.classifier.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("stop")))
        adapt_batch_norm(network, signals())
    assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())
    assert all(norm.momentum == 0.1 for norm in norms_of(network)) and network.training


@pytest.mark.parametrize(
    "call, kind, message",
    [
        (
            lambda: adapt_batch_norm(abs, signals()),
            TypeError,
            "network: got builtin_function_or_method, expected a torch",
        ),
        (lambda: adapt_batch_norm(trained(), [1.0]), TypeError, "x: got list, expected a tensor"),
        (
            lambda: adapt_batch_norm(trained(), signals(1)),
            ValueError,
            r"x: got shape \(1, 1, 64\), expected a batch of",
        ),
        (
            lambda: adapt_batch_norm(trained(), signals(), batch_size=1),
            ValueError,
            "batch_size: got 1, expected an int",
        ),
        (
            lambda: adapt_batch_norm(nn.ReLU(), signals()),
            ValueError,
            "network: got ReLU, expected one with a BatchNorm",
        ),
    ],
)
def test_errors(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
