"""Options, fixtures and the choice of tests by device."""

import ctypes
import importlib.util
import os
import random
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

BUILD = Path(__file__).parent.parent / "build"
EMULATOR = BUILD / os.environ.get("DRSN_OPS_EMULATOR", "emulator") / "_ops_cuda.so"
# The longest first, so that two processes that share the files end together.
LONGEST = (
    "test_torchrun test_distributed test_train test_export test_experiment test_library test_gated_shrink "
    "test_machinery test_checking test_examples test_fx test_packaging test_conversion test_processes "
    "test_setup test_study test_transforms"
).split()

os.environ.setdefault("DRSN_OPS_FILL", "nan")  # an element that an operator leaves unwritten is seen
# The order in which the emulator runs threads and blocks; another in every run, the same in all its processes.
os.environ.setdefault("DRSN_OPS_EMULATOR_SEED", str(random.randrange(2**32)))
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no process is started for the few compilations


def pytest_addoption(parser):
    parser.addoption(
        "--device",
        choices=("cpu", "cuda", "emulated"),
        help="where the operators run: cpu (the default, without test_kernels.py), cuda, or emulated: the CUDA "
        "kernels on the CPU",
    )


def pytest_configure(config):
    if config.getoption("--device") == "emulated":
        # Before the package loads its own: the first library that defines the operators stays.
        if not EMULATOR.exists():
            raise pytest.UsageError(f"--device emulated: no {EMULATOR}; make emulate compiles it")
        torch.ops.load_library(EMULATOR)
        ctypes.CDLL(EMULATOR).tell_errors_to(os.dup(2))  # before pytest puts a file in its place


@pytest.fixture(scope="session")
def device(request):
    device = torch.device("cuda" if request.config.getoption("--device") == "cuda" else "cpu")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("--device cuda: PyTorch sees no CUDA device")
        # convolutions that repeat to the bit, in the type of their tensors
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.allow_tf32 = False
    return device


@pytest.fixture(scope="session")
def emulator(request):
    """The library with the emulated kernels, where the operators run there."""
    return EMULATOR if request.config.getoption("--device") == "emulated" else None


@pytest.fixture(autouse=True)
def seed(request, emulator):
    torch.manual_seed(0)
    if emulator is not None:
        order = os.environ["DRSN_OPS_EMULATOR_SEED"]
        ctypes.CDLL(emulator).seed_emulator(ctypes.c_uint64(int(order)))
        request.node.add_report_section("setup", "emulator", f"DRSN_OPS_EMULATOR_SEED={order} repeats this")


@pytest.fixture
def alone_in(tmp_path, monkeypatch):
    """A folder to train in with one thread: on data this small a second one mostly waits."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.fixture
def load_tool(monkeypatch):
    """Loads the program of that name from tools/, which may import its neighbours there."""
    tools = Path(__file__).parents[1] / "tools"
    monkeypatch.syspath_prepend(tools)

    def load(name):
        # not under the name alone, which may be that of a package
        spec = importlib.util.spec_from_file_location(f"tools_{name}", tools / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def small_files():
    """A context in which a file of more than a thousand bytes fails to be written, as on a full disk."""

    @contextmanager
    def limited():
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited()


@pytest.fixture
def no_caches():
    """Nothing that an earlier compilation, by an earlier version of the package too, has left behind."""
    torch._dynamo.reset()
    with torch.compiler.config.patch(force_disable_caches=True):
        yield
    torch._dynamo.reset()


def pytest_ignore_collect(collection_path, config):
    """What test_kernels.py chooses by a GPU's kernels, the CPU has in the tests of the operators."""
    device = config.getoption("--device")
    needs = {"test_kernels.py": device is not None, "test_emulator.py": device == "emulated"}
    return None if needs.get(collection_path.name, True) else True


def pytest_collection_modifyitems(config, items):
    device = config.getoption("--device") or "cpu"

    def for_a_gpu(item):
        return item.get_closest_marker("cuda") is not None

    if device != "cpu":  # the others would do again what they do without the option
        others = [
            item
            for item in items
            if "device" not in item.fixturenames or (device == "emulated" and for_a_gpu(item))
        ]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]
    for item in items:
        if for_a_gpu(item) and device != "cuda":
            item.add_marker(pytest.mark.skip(reason="needs --device cuda"))
    if hasattr(config, "workerinput"):  # of pytest-xdist
        order = {name: place for place, name in enumerate(LONGEST)}
        items.sort(key=lambda item: order.get(item.path.stem, len(order)))
