"""The programs under examples/: each is run, with fewer steps than a user's, and holds what its docstring claims."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import drsn_ops

ROOT = Path(drsn_ops.__file__).parents[1]
EXAMPLES = Path(__file__).parents[1] / "examples"

WITHOUT_DRSN_OPS = """
import sys, torch
sys.modules["drsn_ops"] = None  # an import of it fails
print(torch.export.load(sys.argv[1]).module()(torch.ones(3, 1, 1024)).tolist())
"""


@pytest.fixture(autouse=True)
def one_thread():
    # on tensors this small a second thread mostly waits
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def example(name):
    spec = importlib.util.spec_from_file_location(f"examples.{name}", EXAMPLES / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where pickle looks it up
    spec.loader.exec_module(module)
    return module


def python(*arguments, cwd):
    """What a fresh process prints, in a folder that is not the project's."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout


@pytest.fixture(scope="module")
def lista():
    pytest.importorskip("sklearn")
    return example("lista")


def dictionary_and_signals(lista, dtype):
    dictionary = torch.nn.functional.normalize(torch.randn(lista.SIGNAL, lista.ATOMS), dim=0)
    signals, _ = lista.make_signals(dictionary, 20)
    return dictionary.to(dtype), signals.to(dtype)


def test_ista_ends_where_the_lasso_is(lista):
    dictionary, signals = dictionary_and_signals(lista, torch.float64)
    expected = lista.lasso(signals, dictionary, 0.1)
    found = lista.ista(signals, dictionary, 0.1, 3000)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
    assert torch.equal(found != 0, expected != 0)


def test_lista_starts_as_ista(lista):
    dictionary, signals = dictionary_and_signals(lista, torch.float32)
    with torch.no_grad():
        found = lista.LISTA(dictionary, 0.1, layers=7)(signals)
    torch.testing.assert_close(found, lista.ista(signals, dictionary, 0.1, 7), rtol=1e-4, atol=1e-5)


def test_lista_beats_as_many_steps_of_ista_and_the_lasso(lista):
    results = lista.main(steps=500)
    errors = {method: error for method, (error, _) in results.items()}
    shares = {method: share for method, (_, share) in results.items()}
    assert errors["LISTA"] < 0.85 * errors["Lasso"]
    assert errors["LISTA"] < 0.25 * errors["ISTA"]
    assert shares["LISTA"] > 0.96
    assert shares["LISTA"] > shares["ISTA"] + 0.05


@pytest.fixture(scope="module")
def denoiser():
    pytest.importorskip("pywt")
    return example("wavelet_denoiser")


@pytest.mark.parametrize("wavelet", ["haar", "db2", "sym8", "coif3"])
def test_wavelet_is_that_of_pywavelets(denoiser, wavelet):
    pywt = pytest.importorskip("pywt")
    x = torch.randn(3, 512)
    transform = denoiser.Wavelet(wavelet, 4)
    bands = transform(x)
    for band, expected in zip(bands, pywt.wavedec(x.numpy(), wavelet, "periodization", 4), strict=True):
        np.testing.assert_allclose(band.numpy(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(transform.inverse(bands), x, rtol=0, atol=1e-5)


def test_denoiser_starts_as_pywavelets(denoiser):
    noisy, _ = denoiser.make_signals(6)
    with torch.no_grad():
        found = denoiser.Denoiser(denoiser.WAVELET, denoiser.LEVELS, denoiser.UNIVERSAL)(noisy)
    torch.testing.assert_close(found, denoiser.universal(noisy), rtol=0, atol=1e-4)


def test_learned_thresholds_beat_the_universal_one(denoiser):
    results = denoiser.main(steps=60)
    assert abs(results["noisy"] - denoiser.SNR) < 0.1
    assert results["universal"] > results["noisy"] + 5
    assert results["learned"] > results["universal"] + 1.5


def test_the_search_tries_every_setting_and_beats_chance(tmp_path):
    for module in ("sklearn", "skorch"):
        pytest.importorskip(module)
    found, accuracy = example("sklearn_search").main(tmp_path / "new", epochs=1, longest=14)
    assert len(found.cv_results_["params"]) == 6 and not np.isnan(found.cv_results_["mean_test_score"]).any()
    assert accuracy > 0.5
    # skorch's files of the best epoch, and the pipeline
    assert {"params.pt", "history.json", "pipeline.pickle"} <= {
        path.name for path in (tmp_path / "new").iterdir()
    }


def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(EXAMPLES / "own_data.ipynb", nbformat.NO_CONVERT)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.text for output in outputs if output.get("name") == "stdout")
    for network in ("ResNet", "DRSN-CW"):
        curve = [
            int(share) for share in re.findall(r"(\d+)%", re.search(f"^{network} .*$", printed, re.M)[0])
        ]
        assert len(curve) == 7 and curve[0] < 60 and curve[-1] > 90
    assert "units.2.shrink  200x16x16" in printed
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder that examples/export.py has written, run as a user runs it, and the differences that it prints."""
    folder = tmp_path_factory.mktemp("exported")
    printed = python(EXAMPLES / "export.py", folder / "files", cwd=folder)
    return folder / "files", dict(re.findall(r"^(\S+) +differs by (\S+)$", printed, re.MULTILINE))


@pytest.mark.parametrize("name", ["fused.pt2", "plain.pt2", "network.onnx"])
def test_exported_files_give_the_networks_logits(exported, name):
    if name == "network.onnx":
        for module in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(module)
    folder, differences = exported
    assert (folder / name).is_file()
    assert float(differences[name]) < 1e-5


def test_plain_file_needs_no_drsn_ops(exported, tmp_path):
    folder, _ = exported
    found = torch.tensor(json.loads(python("-c", WITHOUT_DRSN_OPS, folder / "plain.pt2", cwd=tmp_path)))
    expected = torch.export.load(folder / "fused.pt2").module()(torch.ones(3, 1, 1024))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
