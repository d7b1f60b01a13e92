import pytest
import torch


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="where the operators run: cpu (the default) or cuda")


@pytest.fixture(scope="session")
def device(request):
    device = torch.device(request.config.getoption("--device"))
    if device.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("--device cuda: PyTorch sees no CUDA device")
    return device


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def alone_in(tmp_path, monkeypatch):
    """A folder to train in with one thread: on data this small a second one mostly waits."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.fixture
def no_caches():
    """Nothing that an earlier compilation, by an earlier version of the package too, has left behind."""
    torch._dynamo.reset()
    with torch.compiler.config.patch(force_disable_caches=True):
        yield
    torch._dynamo.reset()


def pytest_collection_modifyitems(config, items):
    if torch.cuda.is_available():
        return
    for item in items:
        if "cuda" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and PyTorch sees none"))
