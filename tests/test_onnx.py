"""``torch.onnx.export`` of a network in evaluation mode: plain operators, any batch and length, nothing to set up."""

import io
import warnings

import pytest
import torch
from checks import lay_out, randomise
from test_export import Functions, Shrinkages
from torch import nn
from torch.export import Dim

import drsn_ops
from drsn_ops import RSBU
from drsn_ops.models import convnet, drsn, drsn_cifar10, drsn_mnist, rsnet18

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


class InPlace(nn.Module):
    """The forms that overwrite x, and a BatchNorm before a shrinkage."""

    def __init__(self):
        super().__init__()
        self.norm, self.gate = nn.BatchNorm1d(4), drsn_ops.Shrinkage(4, "channel-shared").fc

    def forward(self, x):
        y = drsn_ops.soft_threshold(x * 2, 0.1, inplace=True)
        y = drsn_ops.shrink(y, 0.3, residual=x, inplace=True)
        y = drsn_ops.gated_shrink(y, self.gate, statistic="sample", inplace=True)
        y = drsn_ops.batch_norm_shrink(y, self.norm, self.gate, residual=x)
        return drsn_ops.batch_norm_relu(y, self.norm)


NETWORKS = {
    "functions": (Functions, 1),
    "functions in place": (InPlace, 1),
    "every norm": (
        lambda: Shrinkages(*(("channel-wise", norm) for norm in ("batch", "layer", "rms", "none"))),
        1,
    ),
    "RSBU": (lambda: RSBU(4, 6, stride=2), 1),
    "drsn": (lambda: drsn(4, 3, blocks=3), 1),
    "drsn by group": (lambda: drsn(4, 3, dim=2, blocks=3, thresholds="channel-shared", norm="layer"), 2),
    "drsn in 3-D": (lambda: drsn(4, 3, dim=3, blocks=3), 3),
    "convnet": (lambda: convnet(4, 3, blocks=3), 1),
    "drsn_mnist": (lambda: drsn_mnist(4), 2),
    "drsn_cifar10": (lambda: drsn_cifar10(4), 2),
    "rsnet18": (lambda: rsnet18(4, 3, reduction=8), 1),
    "rsnet18 in 2-D": (lambda: rsnet18(4, 3, dim=2, norm="layer"), 2),
}


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setattr(drsn_ops.models.rsnet, "WIDTHS", (4, 4, 8, 8))


def make(name):
    build, dim = NETWORKS[name]
    return randomise(build()).eval(), dim


def by_dynamo(module, x):
    axes = {axis: Dim.DYNAMIC for axis in (0, *range(2, x.dim()))}
    model = torch.onnx.export(module, (x,), dynamic_shapes=(axes,), verbose=False).model_proto
    assert not model.functions and not [node.op_type for node in model.graph.node if node.domain]
    return model.SerializeToString()


def by_torchscript(module, x):
    file = io.BytesIO()
    axes = {axis: f"axis{axis}" for axis in (0, *range(2, x.dim()))}
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # the exporter is deprecated, and the tracer does not follow checks of shapes
        torch.onnx.export(module, (x,), file, dynamo=False, input_names=["x"], dynamic_axes={"x": axes})
    return file.getvalue()


def agree(file, module, dim):
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for samples, length in ((3, 24), (1, 24), (2, 33), (5, 38)):
        x = torch.randn(samples, 4, *(length, 25, 26)[:dim])
        (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(y), module(x), rtol=1e-4, atol=1e-5)


# The older exporter has no RMSNorm.
@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "every norm"])
def test_torchscript_exporter(name):
    module, dim = make(name)
    agree(by_torchscript(module, torch.randn(3, 4, *(24, 24, 24)[:dim])), module, dim)


def test_torchscript_exporter_of_a_strided_example():
    module, dim = make("drsn")
    agree(by_torchscript(module, lay_out(torch.randn(3, 4, 24), "channels_last")), module, dim)


# Each kind of module is in one of these; an export takes seconds.
@pytest.mark.parametrize(
    "name",
    ["functions", "functions in place", "every norm", "drsn", "drsn by group", "drsn_mnist", "rsnet18"],
)
def test_exporter(name):
    module, dim = make(name)
    agree(by_dynamo(module, torch.randn(3, 4, *(24, 24, 24)[:dim])), module, dim)


def test_an_export_changes_nothing_that_is_compiled(no_caches):
    """What the exporter sees of a function is kept for no one else."""
    graphs = []

    def keep(graph, _):
        graphs.append(graph.code)
        return graph.forward

    module, x = drsn_ops.Shrinkage(4).eval(), torch.randn(3, 4, 24)
    compiled = torch.compile(module, backend=keep, fullgraph=True)
    compiled(x)
    by_dynamo(module, x)
    by_torchscript(module, x)
    compiled(torch.randn(5, 4, 31))
    torch.compile(drsn_ops.Shrinkage(4), backend=keep, fullgraph=True)(x)
    assert len(graphs) == 3 and all("drsn_ops" in code for code in graphs)
    names = {str(node.target) for node in torch.export.export(module, (x,)).graph.nodes}
    assert "drsn_ops.gated_shrink_with_mask.default" in names
