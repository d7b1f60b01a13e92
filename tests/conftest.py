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


def pytest_collection_modifyitems(config, items):
    if torch.cuda.is_available():
        return
    for item in items:
        if "cuda" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and PyTorch sees none"))
