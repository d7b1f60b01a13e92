"""What is not installed: the core does without, and everything else names the package and the extra that brings it."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import assert_refused, environment
from test_model import make_model

from drsn_ops.__main__ import PACKAGES, main
from drsn_ops.arguments import require_packages
from drsn_ops.data import datasets, mat_files, rates, read_recordings, signals
from drsn_ops.data.signals import FileOptions, read_signal
from drsn_ops.training import model

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
OPTIONAL = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
RUNTIME = ("train", "files", "export", "tensorboard")
IMPORTED = {"scikit-learn": "sklearn"}


def packages_of(*extras):
    """The names to import of what these extras bring."""
    names = named_in(one for extra in extras for one in OPTIONAL[extra])
    return {IMPORTED.get(name, name) for name in names}


def named_in(requirements):
    """The names of the packages in these lines."""
    return {match[0] for line in requirements if (match := re.match(r"[\w-]+", line))}


CORE = """
import importlib, pkgutil, sys

sys.modules |= dict.fromkeys({names}, None)  # an import fails, as where they are not installed
import torch
import drsn_ops
from drsn_ops.__main__ import main

for module in pkgutil.walk_packages(drsn_ops.__path__, "drsn_ops."):
    parts = module.name.split(".")
    if parts[1] not in ("data", "vibration", "training", "experiment", "__main__") and "_ops_" not in parts[1]:
        importlib.import_module(module.name)
network = drsn_ops.models.drsn(blocks=3)
network(torch.randn(4, 1, 64)).sum().backward()
drsn_ops.check_shrinkage(drsn_ops.Shrinkage(4), 4, dim=1)
found = drsn_ops.inspect(network, torch.randn(4, 1, 64))
assert str(found) and main(["info"]) == 0
for name, call in {{
    "drsn_ops.data": lambda: drsn_ops.data,
    "drsn_ops.vibration": lambda: drsn_ops.vibration,
    "load_model": lambda: drsn_ops.load_model("model.pt"),
    "plot": lambda: found.plot("plot.png"),
}}.items():
    try:
        call()
    except ImportError as error:
        print(f"{{name}}: {{error}}", file=sys.stderr)
"""


def test_the_core_needs_torch_alone(tmp_path):
    program = CORE.format(names=sorted(packages_of(*RUNTIME)))
    command = [sys.executable, "-W", "ignore:Failed to initialize NumPy", "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [
        "drsn_ops.data: drsn_ops.data needs numpy: pip install 'drsn_ops[files]'",
        "drsn_ops.vibration: drsn_ops.data needs numpy: pip install 'drsn_ops[files]'",
        "load_model: load_model needs numpy: pip install 'drsn_ops[files]'",
        "plot: a plot needs matplotlib: pip install 'drsn_ops[train]'",
    ]
    assert not [*tmp_path.iterdir()]


def test_every_import_is_of_the_core_or_an_extra():
    found = set()
    for path in (ROOT / "drsn_ops").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.partition(".")[0])
    assert found - sys.stdlib_module_names - {"torch", "drsn_ops"} <= packages_of(*RUNTIME)


def test_an_extra_brings_what_it_is_said_to():
    said = [*PACKAGES.values(), *(("files", *names) for names in signals.PACKAGES.values())]
    for path in (ROOT / "drsn_ops").rglob("*.py"):
        calls = re.findall(r'require_packages\("[^"]+", ("\w+"(?:, "\w+")+)\)', path.read_text())
        said += [re.findall(r"\w+", call) for call in calls]
    assert len(said) > 15
    for extra, *names in said:
        assert packages_of(extra).issuperset(names), (extra, names)
    assert packages_of(*RUNTIME) == {name for _, *names in said for name in names}


@pytest.mark.parametrize(
    "command, name", [(command, name) for command, (_, *names) in PACKAGES.items() for name in names]
)
def test_a_command_names_what_it_needs(command, name, alone_in, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, name, None)
    message = (
        f"drsn_ops {command}: the command needs {name}: pip install 'drsn_ops[{PACKAGES[command][0]}]'\n"
    )
    assert_refused(main, [[command]], message, alone_in, capsys)


def test_a_folder_of_the_name_of_a_package_is_none(tmp_path, monkeypatch):
    (tmp_path / "tensorbored").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="--tensorboard needs tensorbored"):
        require_packages("--tensorboard", "tensorboard", "tensorbored")


@pytest.mark.parametrize(
    "suffix, name", [(suffix, name) for suffix, names in signals.PACKAGES.items() for name in names]
)
def test_a_reader_names_what_it_needs(suffix, name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError) as caught:
        read_signal(tmp_path / f"a{suffix}", FileOptions())
    assert str(caught.value) == f"reading {suffix} files needs {name}: pip install 'drsn_ops[files]'"


@pytest.mark.parametrize(
    "name, call, message",
    [
        ("h5py", lambda: mat_files.read_hdf5(Path("a.h5")), "reading HDF5 files needs h5py: .*files"),
        ("sklearn", datasets.read_digits, "reading the digits needs sklearn: .*train"),
        ("scipy", lambda: rates.resampled(np.ones((9, 1)), 0.5), "resampling needs scipy: .*files"),
    ],
    ids=["h5py", "sklearn", "scipy"],
)
def test_a_function_names_what_it_needs(name, call, message, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=message):
        call()


def test_a_missing_reader_is_named_before_the_first_prediction(alone_in, monkeypatch, capsys):
    make_model().save("model.pt")
    np.save("a.npy", np.random.default_rng(0).standard_normal(64))
    Path("b.parquet").touch()
    monkeypatch.setattr(model, "evaluation_batch", lambda *_: 1)  # it predicts each as soon as it is read
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    message = "drsn_ops predict: reading .parquet files needs pyarrow: pip install 'drsn_ops[files]'\n"
    predict = ["predict", "model.pt", "a.npy", "b.parquet", "--output", "out.csv"]
    assert_refused(main, [predict], message, alone_in, capsys)


def test_a_missing_reader_of_a_table_is_named_without_advice_on_its_lines(alone_in, monkeypatch, capsys):
    for part in ("TRAIN", "TEST"):
        Path(f"data_{part}.csv").write_text("0,1,2\n1,2,1\n")
    monkeypatch.setitem(sys.modules, "pandas", None)
    message = "drsn_ops train: reading .csv files needs pandas: pip install 'drsn_ops[files]'\n"
    assert_refused(main, [["train", "--data", "."]], message, alone_in, capsys)
    with pytest.raises(ImportError, match="pandas"):
        read_recordings(".")


def test_dev_is_pinned():
    """By requirements.txt, which the first make installs, or by pyproject.toml itself."""
    pinned = named_in((ROOT / "requirements.txt").read_text().splitlines())
    loose = [
        one for extra in (*RUNTIME[:3], "test", "docs", "dev") for one in OPTIONAL[extra] if "==" not in one
    ]
    assert named_in(loose) - {"drsn_ops"} <= pinned


class TestTheTool:
    LINE = "drsn_ops train: the command needs numpy: pip install 'drsn_ops[train]'\n"

    @pytest.fixture
    def tool(self, load_tool):
        return load_tool("check_extras")

    @pytest.fixture
    def lacks(self, tool, tmp_path, monkeypatch):
        """What the tool makes of a command that ends so."""
        environment = object.__new__(tool.Bare)
        environment.python, environment.shared = sys.executable, tmp_path

        def judged(status, out, err, writes=()):
            def result(_, *command, folder):
                for name in writes:
                    (tmp_path / name).touch()
                return subprocess.CompletedProcess(command, status, out, err)

            monkeypatch.setattr(tool.Bare, "result", result)
            return environment.lacks("train", "the command", "numpy", "train")

        return judged

    def test_a_command_that_says_what_it_lacks(self, lacks):
        assert lacks(2, "", self.LINE) == "drsn_ops[train]"

    @pytest.mark.parametrize(
        "ended",
        [
            (0, "", LINE),
            (2, "epoch 1", LINE),
            (2, "", LINE + LINE),
            (2, "", LINE.replace("numpy", "scipy")),
            (2, "", LINE, ["a"]),
        ],
    )
    def test_a_command_that_does_not(self, lacks, ended):
        with pytest.raises(SystemExit, match="train: "):
            lacks(*ended)

    def test_the_recordings_are_of_every_format(self, tool, tmp_path):
        tool.write_all(tmp_path)
        held = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
        # read as others are
        assert held == {*signals.SUFFIXES} - {".tsv", ".txt", ".flac", ".hdf5"}
