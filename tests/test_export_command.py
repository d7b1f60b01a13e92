"""The command ``export``: files that load again and compute what the network does, with what is needed to use them."""

import json
import os
import sys

import pytest
import torch
from commands import assert_refused
from test_model import CLASSES, make_model

import drsn_ops
from drsn_ops.__main__ import main
from drsn_ops.training import export as exporting


def make():
    """A model of two channels, of one block: an export takes seconds."""
    return make_model(channels=2, blocks=1, widths=(4,))


@pytest.fixture
def folder(alone_in):
    make().save("model.pt")
    return alone_in


def export(*flags):
    return main(["export", "model.pt", *map(str, flags)])


def check(metadata):
    assert json.loads(metadata["classes"]) == [*CLASSES]
    assert metadata["points"] == "32" and metadata["normalise"] == "standard"
    assert json.loads(metadata["sampling_rate"]) == 1000
    assert metadata["drsn_ops"] == drsn_ops.__version__ and metadata["network"] == "drsn"


def test_onnx(folder, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert export("--format", "onnx") == 0
    out, err = capsys.readouterr()
    assert out.startswith("model.onnx: its logits differ from the network's by at most ") and err == ""
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx", "model.pt"]
    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    check(session.get_modelmeta().custom_metadata_map)
    network = make().network
    for shape in ((1, 2, 32), (7, 2, 45)):
        x = torch.randn(shape)
        (logits,) = session.run(["logits"], {"x": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), network(x).detach(), rtol=1e-4, atol=1e-5)


def test_onnx_of_another_rule_and_pooling(alone_in):
    """ONNX has no function of the smooth rule's, and none that takes the batch of both poolings apart."""
    for name in ("onnxruntime", "onnxscript"):
        pytest.importorskip(name)
    make_model(blocks=1, widths=(4,), rule="smooth", pooling="avg+max").save("model.pt")
    assert export("--format", "onnx") == 0


def test_hypot_of_any_size():
    x, y = torch.tensor([3.0, -3e30, 0.0, 1e-30, -5.0]), torch.tensor([-4.0, 4e30, 0.0, 0.0, 12.0])
    torch.testing.assert_close(exporting.hypot(x, y), torch.hypot(x, y))


@pytest.mark.parametrize("kind, name", [("pt2", "model.pt2"), ("pt2-plain", "model-plain.pt2")])
def test_pt2(folder, kind, name, capsys):
    assert export("--format", kind) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{name}: its logits differ from the network's by at most ") and err == ""
    extra = {exporting.METADATA: ""}
    program = torch.export.load(name, extra_files=extra)
    check(json.loads(extra[exporting.METADATA]))
    assert ("drsn_ops" in program.graph_module.code) == (kind == "pt2")
    x = torch.randn(3, 2, 51)
    torch.testing.assert_close(program.module()(x), make().network(x), rtol=1e-4, atol=1e-5)


def test_another_result_is_not_kept(folder, monkeypatch, capsys):
    network = make().network
    monkeypatch.setattr(exporting, "pt2_content", lambda *_, **__: b"content")
    monkeypatch.setattr(exporting, "load_pt2", lambda content: lambda x: network(x) * 1.001)
    assert export("--format", "pt2", "--output", "other.pt2") == 1
    out, err = capsys.readouterr()
    assert out == "" and "other.pt2: not written: its logits differ from the network's by 1.0e-03" in err
    assert [path.name for path in folder.iterdir()] == ["model.pt"]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--output", "model.pt"], "--output model.pt: is model.pt, which is read; expected another file"),
        (["--output", "nowhere/model.onnx"], "--output nowhere/model.onnx: its folder does not exist"),
        (["--format", "tflite"], "--format: invalid choice: 'tflite'"),
    ],
)
def test_refused(folder, flags, message, capsys):
    assert_refused(export, flags, message, folder, capsys)


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime"])
def test_a_package_that_is_missing_is_named(folder, name, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, name, None)
    message = f"drsn_ops export: --format onnx needs {name}: pip install 'drsn_ops[export]'"
    assert_refused(export, ["--format", "onnx"], message, folder, capsys)


def test_the_difference_repeats():
    model = make()
    loaded = lambda x: model.network(x) * (1 + 1e-6 * x.sum())  # noqa: E731
    assert exporting.largest_difference(model, loaded) == exporting.largest_difference(model, loaded) > 0


def test_metadata_is_text_whatever_the_names():
    model = make_model()
    model.classes = ("轴承", os.fsdecode(b"\xff"), "worse")
    metadata = exporting.metadata(model)
    assert all(value.isascii() for value in metadata.values())
    assert tuple(json.loads(metadata["classes"])) == model.classes


def test_metadata_of_a_model_of_no_rate():
    model = make_model()
    model.reading = model.reading.__class__(model.reading.options, model.reading.cutting)
    assert json.loads(exporting.metadata(model)["sampling_rate"]) is None
