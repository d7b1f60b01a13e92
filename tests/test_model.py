"""A model in its file: what it predicts, that it comes back to the bit, and what is refused."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from commands import environment

import drsn_ops
from drsn_ops.data.recordings import Reading
from drsn_ops.data.signals import FileOptions
from drsn_ops.data.windows import Cutting
from drsn_ops.training.model import Model, load_model, vote
from drsn_ops.training.networks import NETWORKS, arguments_of, build

CLASSES = ("good", "bad", "worse")
READING = Reading(FileOptions(), Cutting(32, None, "standard"), 1000.0)


def make_model(name="drsn", channels=1, **arguments):
    """A model of three classes, with statistics and weights as training leaves them: of no special value."""
    if name in ("drsn", "convnet"):
        arguments = {"blocks": 2, "widths": (4, 8), **arguments}
    arguments = {"in_channels": channels, "num_classes": len(CLASSES), **arguments}
    torch.manual_seed(1)
    network = build(name, arguments)
    for _ in range(3):
        network(torch.randn(8, channels, 32))
    return Model(network.eval(), name, arguments, CLASSES, READING)


@pytest.mark.parametrize(
    "probabilities, expected",
    [
        ([[0.1, 0.9], [0.6, 0.4], [0.3, 0.7]], (1, 2 / 3, 2 / 3)),
        # a vote each: the mean of the second is higher
        ([[0.6, 0.4], [0.1, 0.9]], (1, 0.65, 0.5)),
        # one vote each for the first two; the third is likely in both and has none
        ([[0.4, 0.25, 0.35], [0.1, 0.5, 0.4]], (1, 0.375, 0.5)),
        ([[0.2, 0.8]], (1, 0.8, 1.0)),
        # all the same: the first
        ([[0.5, 0.5]], (0, 0.5, 1.0)),
    ],
)
def test_vote(probabilities, expected):
    assert vote(torch.tensor(probabilities)) == pytest.approx(expected)


def test_networks_take_their_own_arguments():
    assert [*NETWORKS] == ["drsn", "convnet", "rsnet18", "rsnet34"]
    assert {"in_channels", "num_classes", "widths"} <= {*arguments_of("convnet")}
    with pytest.raises(
        ValueError, match="thresholds: got 'channel-wise', expected none with network 'convnet'"
    ):
        build("convnet", {"thresholds": "channel-wise"})
    with pytest.raises(ValueError, match="network: got 'vgg', expected 'drsn', "):
        build("vgg", {})


@pytest.mark.parametrize("name", ["drsn", "convnet", "rsnet18"])
def test_a_model_comes_back_as_it_was(name, tmp_path, monkeypatch):
    monkeypatch.setattr(drsn_ops.models.rsnet, "WIDTHS", (4, 4, 8, 8))
    model = make_model(name)
    model.trained_on = (3, 5)
    model.save(tmp_path / "model.pt")
    state = torch.get_rng_state()
    found = drsn_ops.load_model(tmp_path / "model.pt")
    assert torch.equal(torch.get_rng_state(), state)
    x = torch.randn(5, 1, 32)
    assert not found.network.training
    assert torch.equal(found.network(x), model.network(x))
    assert not any(value.is_meta for value in found.network.state_dict().values())
    for field in ("name", "arguments", "classes", "reading", "trained_on", "version"):
        assert getattr(found, field) == getattr(model, field)
    assert found.version == drsn_ops.__version__


def test_a_fresh_process_computes_the_same_bits(tmp_path):
    model, x = make_model(norm="layer"), torch.randn(5, 1, 32)
    model.save(tmp_path / "model.pt")
    torch.save((x, model.network(x).detach()), tmp_path / "expected.pt")
    program = (
        "import torch, drsn_ops\n"
        "x, y = torch.load('expected.pt')\n"
        "assert torch.equal(drsn_ops.load_model('model.pt').network(x), y)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment(), check=True)


@pytest.mark.parametrize("default", ["float64", "meta"])
def test_whatever_the_defaults(default, tmp_path):
    model, x = make_model(), torch.randn(5, 1, 32)
    model.save(tmp_path / "model.pt")
    expected = model.network(x)
    try:
        if default == "float64":
            torch.set_default_dtype(torch.float64)
        else:
            torch.set_default_device("meta")
        found = load_model(tmp_path / "model.pt")
        assert torch.equal(found.network(x), expected)
        prediction = found.predict(np.arange(70.0))
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert prediction.probabilities.dtype == torch.float32
