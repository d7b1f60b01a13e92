"""WDCNN: its layers, its parameters and first weights, and its way through the commands and PyTorch's tools."""

import json
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from checks import randomise
from torch import nn

import drsn_ops
from drsn_ops import models
from drsn_ops.__main__ import main
from drsn_ops.training import train, verdict
from drsn_ops.training.model import load_model
from drsn_ops.training.networks import EVALUATION_BYTES, evaluation_batch
from drsn_ops.training.recordings import optimiser
from drsn_ops.training.run import penalty

# of the convolutions and of the poolings behind them
LENGTHS = {
    2048: [(128, 64), (64, 32), (32, 16), (16, 8), (6, 3)],
    1024: [(64, 32), (32, 16), (16, 8), (8, 4), (2, 1)],
    1009: [(64, 32), (32, 16), (16, 8), (8, 4), (2, 1)],
}


@pytest.mark.parametrize("points", LENGTHS)
def test_layer_by_layer(points, device):
    """The network as it is written down in its docstring, in PyTorch's functions and float64."""
    network = randomise(models.wdcnn(in_channels=2, num_classes=5, points=points)).double().to(device).eval()
    x = torch.randn(3, 2, points, dtype=torch.float64).to(device)
    zeros = max((-(-points // 16) - 1) * 16 + 64 - points, 0)
    h = F.pad(x, (zeros // 2, zeros - zeros // 2))
    stages = zip(
        network.convolutions, network.batch_norms, (16, 32, 64, 64, 64), LENGTHS[points], strict=True
    )
    for i, (conv, norm, width, (convolved, pooled)) in enumerate(stages):
        h = F.conv1d(h, conv.weight, conv.bias, 1 if i else 16, padding=1 if 0 < i < 4 else 0)
        assert h.shape == (3, width, convolved) and conv.kernel_size == ((3,) if i else (64,))
        h = F.batch_norm(h, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-5)
        h = F.max_pool1d(h.relu(), 2)
        assert h.shape == (3, width, pooled)
    h = F.linear(h.flatten(1), network.hidden.weight, network.hidden.bias).relu()
    expected = F.linear(h, network.classifier.weight, network.classifier.bias)
    assert h.shape == (3, 100) and expected.shape == (3, 5)
    torch.testing.assert_close(network(x), expected)


def test_parameters():
    """Kernels and biases, two numbers for each channel of a BatchNorm, and the linear layers."""
    convolutions = (64 * 16 + 16) + (3 * 16 * 32 + 32) + (3 * 32 * 64 + 64) + 2 * (3 * 64 * 64 + 64)
    norms = 2 * (16 + 32 + 64 + 64 + 64)
    counts = {2048: 3 * 64 * 100 + 100, 1024: 64 * 100 + 100}
    for points, hidden in counts.items():
        network = models.wdcnn(points=points)
        count = sum(parameter.numel() for parameter in network.parameters())
        assert count == convolutions + norms + hidden + (100 * 10 + 10)
    assert count == 41_510


def test_first_weights_are_those_of_the_paper_s_network():
    network = models.wdcnn()
    layers = [module for module in network.modules() if isinstance(module, nn.Conv1d | nn.Linear)]
    assert len(layers) == 7 and layers[-1] is network.classifier
    assert not any(layer.bias.any() for layer in layers)
    assert network.convolutions[0].weight.abs().max() <= (3 / 64) ** 0.5
    assert network.classifier.weight.abs().max() <= 0.04
    for layer in layers[1:-1]:
        assert abs(layer.weight.std() / (0.8796 * (2.6 / layer.weight[0].numel()) ** 0.5) - 1) < 0.05


def test_penalty():
    network = models.wdcnn(points=1024)
    kernels = [*(conv.weight for conv in network.convolutions), network.hidden.weight]
    expected = 0.5e-4 * sum(kernel.double().square().sum() for kernel in kernels)
    torch.testing.assert_close(network.penalty().double(), expected)
    (network(torch.randn(4, 1, 1024)).square().sum() + network.penalty()).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())
    # a training has it in its loss, and no weight decay beside it
    assert torch.equal(penalty(network), network.penalty()) and penalty(models.rsnet18()) == 0
    assert optimiser(network, 0.1).param_groups[0]["weight_decay"] == 0


def test_pytorch_s_tools():
    torch.compiler.reset()
    network, x = randomise(models.wdcnn(points=1024)).eval(), torch.randn(3, 1, 1024)
    expected = network(x)
    torch.testing.assert_close(torch.fx.symbolic_trace(network)(x), expected)
    torch.testing.assert_close(torch.compile(network, fullgraph=True, backend="aot_eager")(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(network))(x), expected)
    drsn_ops.adapt_batch_norm(network, torch.randn(8, 1, 1024) + 3)
    assert not torch.equal(network(x), expected)


def test_how_many_signals_are_evaluated_together():
    """The first convolution makes 16 channels of a 16th of the points, and nothing behind it is larger."""
    network = models.wdcnn()
    assert evaluation_batch(network, torch.zeros(1, 1, 2048)) == EVALUATION_BYTES // (4 * 2048)
    sizes = []
    for module in (*network.convolutions, *network.batch_norms):
        module.register_forward_hook(lambda _, inputs, y: sizes.append(y.numel()))
    network.eval()(torch.zeros(1, 1, 2048))
    assert max(sizes) == 2048


@pytest.mark.parametrize(
    "options, message",
    [
        ({"points": 1008}, "points: got 1008, expected an integer of at least 1009"),
        ({"points": 2048.0}, r"points: got 2048\.0, expected an integer of at least 1009"),
        ({"in_channels": 0}, "in_channels: got 0, expected an integer of at least 1"),
        ({"num_classes": -1}, "num_classes: got -1, expected an integer of at least 1"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        models.wdcnn(**options)


@pytest.mark.parametrize("shape", [(2, 1, 1024), (2, 2, 2048), (1, 2048)])
def test_another_shape(shape):
    with pytest.raises(ValueError, match=r"x: got shape \(.*\), expected \(N, 1, 2048\)"):
        models.wdcnn()(torch.zeros(shape))
    with pytest.raises(TypeError, match="x: got list, expected a tensor"):
        models.wdcnn()([0.0])


def test_through_the_commands(alone_in, monkeypatch, capsys):
    """Trained, reloaded, exported for windows of its length, and asked."""
    for package in ("sklearn", "matplotlib", "tqdm", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    monkeypatch.setattr(train, "draw_curve", lambda run, folder: None)
    monkeypatch.setattr(verdict, "draw_confusion", lambda counts, classes, title, path: path.touch())
    random = np.random.default_rng(0)
    for name in ("bad", "good"):
        (alone_in / "rec" / name).mkdir(parents=True)
        for i in range(4):
            np.save(f"rec/{name}/{i}.npy", random.standard_normal(3 * 1024))
    flags = "train --data rec --network wdcnn --points 1024 --epochs 1 --output-dir out".split()
    for more, message in [
        (["--points", "512"], "--points: got 512, expected an integer of at least 1009"),
        (["--widths", "4"], "--widths 4: expected none with --network wdcnn"),
    ]:
        assert main([*flags, *more]) == 2
        assert message in capsys.readouterr().err and not (alone_in / "out").exists()
    assert main(flags) == 0
    assert "wdcnn: " in capsys.readouterr().out
    model = load_model("out/model.pt")
    assert model.arguments == {"in_channels": 1, "num_classes": 2, "points": 1024}
    assert len(list(model.predict_files("rec/bad/0.npy"))) == 1
    assert main(["predict", "out/model.pt", "rec/good"]) == 0
    assert main(["evaluate", "out/model.pt", "--data", "rec"]) == 0
    assert main(["export", "out/model.pt", "--format", "onnx"]) == 0
    import onnxruntime

    session = onnxruntime.InferenceSession("out/model.onnx", providers=["CPUExecutionProvider"])
    x = torch.randn(5, 1, 1024)
    (logits,) = session.run(["logits"], {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), model.network(x).detach(), rtol=1e-4, atol=1e-5)
    assert json.loads(session.get_modelmeta().custom_metadata_map["points"]) == 1024
