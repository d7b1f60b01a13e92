"""A model in its file: what it predicts, that it comes back to the bit, and what is refused."""

import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from commands import environment

import drsn_ops
from drsn_ops.arguments import InputError
from drsn_ops.data.recordings import Reading, Windows
from drsn_ops.data.signals import FileOptions
from drsn_ops.data.windows import Cutting
from drsn_ops.training import ahead
from drsn_ops.training.checkpoints import read_checkpoint
from drsn_ops.training.model import Model, checksums, load_model, vote
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
    assert [*NETWORKS] == ["drsn", "convnet", "rsnet18", "rsnet34", "wdcnn"]
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
    model.snr, model.noise_kind = -5.0, "pink"
    model.save(tmp_path / "model.pt")
    state = torch.get_rng_state()
    found = drsn_ops.load_model(tmp_path / "model.pt")
    assert torch.equal(torch.get_rng_state(), state)
    x = torch.randn(5, 1, 32)
    assert not found.network.training
    assert torch.equal(found.network(x), model.network(x))
    assert not any(value.is_meta for value in found.network.state_dict().values())
    for field in ("name", "arguments", "classes", "reading", "trained_on", "snr", "noise_kind", "version"):
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


def test_checksums_know_a_recording_by_its_first_window():
    x = torch.randn(5, 1, 32)
    recordings = torch.tensor([4, 4, 7, 7, 7])
    windows = Windows(x, torch.zeros(5, dtype=torch.long), recordings)
    first, second = checksums(windows)
    alone = Windows(x[2:3].clone(), torch.zeros(1, dtype=torch.long), torch.tensor([0]))
    assert first != second and checksums(alone) == (second,)
    alone.x[0, 0, 3] += 1
    assert checksums(alone) != (second,)
    # silence is all alike
    x[2] = x[3] = 0
    assert checksums(windows) == (first, *checksums(Windows(*(part[4:] for part in windows))))
    x[:2] = 0
    assert len(checksums(windows)) == 1


def test_predict(tmp_path):
    """Of values, of a file, and by hand."""
    model, values = make_model(), np.random.default_rng(0).standard_normal(100) + 5
    np.save(tmp_path / "a.npy", values)
    windows = values[:96].reshape(3, 32)
    standard = (windows - windows.mean(1, keepdims=True)) / windows.std(1, keepdims=True)
    expected = model.network(torch.from_numpy(standard[:, None]).float()).softmax(1).detach()
    prediction = model.predict(values)
    torch.testing.assert_close(prediction.probabilities, expected)
    label, probability, share = vote(expected)
    assert prediction.label == CLASSES[label]
    assert prediction[1:3] == pytest.approx((probability, share))
    ((path, found),) = model.predict_files(str(tmp_path / "a.npy"))
    assert path == tmp_path / "a.npy" and torch.equal(found.probabilities, prediction.probabilities)
    assert not found.probabilities.is_inference()


@pytest.mark.parametrize(
    "values, rate, message",
    [
        (
            np.zeros(31),
            None,
            "x: has 31 points, expected at least the 32 of a window; a cutting with pad=True",
        ),
        (np.zeros((64, 2)), None, "x: has 2 channels, expected 1"),
        (np.zeros(64), 2000, "rate: got 2000 Hz, expected 1000; a reading with resample=True resamples"),
        (np.zeros(64), 0, "rate: got 0, expected a positive number of Hz, or None"),
        (np.zeros(64), "1000", "rate: got '1000', expected a positive number of Hz, or None"),
        (np.full(64, np.nan), None, "x: holds values that are not finite"),
    ],
)
def test_values_that_cannot_be_predicted(values, rate, message):
    with pytest.raises(ValueError, match=message) as raised:
        make_model().predict(values, rate=rate)
    assert "--" not in str(raised.value)


def test_files_are_predicted_together_and_in_order(tmp_path, monkeypatch):
    """Each as alone, whatever lies between them, and the network sees batches, not files."""
    model, sizes = make_model(), []
    paths = []
    for i in range(30):
        paths.append(tmp_path / f"{i}.npy")
        np.save(paths[-1], np.random.default_rng(i).standard_normal(32 * (1 + i % 3)))
    paths[4].write_text("text")
    paths.insert(20, tmp_path / "missing.npy")
    alone = {path: model.predict(np.load(path)) for path in paths if path not in (paths[4], paths[20])}
    # 4 of the first convolution's channels at 16 points, 20 windows of them
    monkeypatch.setattr("drsn_ops.training.networks.EVALUATION_BYTES", 20 * 16 * 4 * 4)
    model.network.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    found = list(model.predict_files(map(str, paths), jobs=2))
    assert [path for path, _ in found] == paths
    assert sum(sizes) == sum(len(p.probabilities) for p in alone.values()) and len(sizes) <= 6
    for path, prediction in found:
        if path in alone:
            assert prediction[:1] == alone[path][:1]
            torch.testing.assert_close(prediction.probabilities, alone[path].probabilities)
        else:
            assert isinstance(prediction, InputError) and str(prediction).startswith(f"{path}: ")


def test_little_is_read_ahead(tmp_path, monkeypatch):
    monkeypatch.setattr(ahead, "BYTES_AHEAD", 25)
    read = []
    paths = [tmp_path / str(i) for i in range(40)]
    for path in paths:
        path.write_bytes(b"1234567890")
    values = ahead.read_ahead(lambda path: read.append(path) or path.name, paths, 1)
    for i in range(40):
        assert next(values) == (paths[i], str(i))
        # what was taken, two ahead of it and one that is about to be
        assert len(read) <= i + 4
    assert list(values) == []


def test_what_is_not_taken_is_not_read(tmp_path):
    read, all_asked_for = [], threading.Event()

    def paths():
        yield from (tmp_path / str(i) for i in range(100))
        all_asked_for.set()

    def wait(path):
        read.append(path)
        all_asked_for.wait()
        time.sleep(0.01)

    values = ahead.read_ahead(wait, paths(), 1)
    next(values)
    values.close()
    assert len(read) < 50


def test_another_error_of_a_reader_is_raised(tmp_path):
    def fail(path):
        raise ModuleNotFoundError("pandas")

    with pytest.raises(ModuleNotFoundError):
        list(ahead.read_ahead(fail, [tmp_path], None))
    with pytest.raises(ValueError, match="jobs: got 0"):
        list(ahead.read_ahead(fail, [tmp_path], 0))


def bad_files(folder):
    """Files that are no models, and what is said of them."""
    model = make_model()
    model.save(folder / "model.pt")
    values = torch.load(folder / "model.pt", weights_only=True)

    def saved(name, **changes):
        torch.save({**values, **changes}, folder / name)

    whole = (folder / "model.pt").read_bytes()
    (folder / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (folder / "text.pt").write_text("text")
    torch.save(values["state_dict"], folder / "weights.pt")
    saved("checkpoint.pt", format="drsn_ops.train 2")
    saved("newer.pt", format="drsn_ops.model 2")
    saved("foreign.pt", format="others.model 1")
    saved("object.pt", classes=object)
    saved("network.pt", network="vgg")
    saved("arguments.pt", arguments={**values["arguments"], "widths": (4, 16)})
    saved("reading.pt", reading={"points": 3})
    return {
        "nowhere.pt": "no such file",
        ".": "a folder, expected a model, as",
        "cut.pt": "damaged, or not a model",
        "text.pt": "damaged, or not a model",
        "object.pt": "damaged, or not a model",
        "weights.pt": "not a model of this program",
        "foreign.pt": "not a model of this program",
        "checkpoint.pt": "a checkpoint, expected a model, as the model.pt that train on recordings leaves",
        "newer.pt": "a model of drsn_ops.model 2, not of this version's drsn_ops.model 1",
        "network.pt": "not a model of this version: network: got 'vgg'",
        "arguments.pt": "not a model of this version: ",
        "reading.pt": "not a model of this version: ",
    }


def test_files_that_are_no_models(tmp_path):
    for name, message in bad_files(tmp_path).items():
        with pytest.raises(InputError) as raised:
            load_model(tmp_path / name)
        assert str(raised.value).startswith(f"{tmp_path / name}: {message}")
        assert "\n" not in str(raised.value)
    with pytest.raises(
        InputError, match="a model, expected a checkpoint, as the checkpoint.pt that train leaves"
    ):
        read_checkpoint(tmp_path / "model.pt")
