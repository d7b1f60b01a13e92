"""PyTorch's default type and device, and its global random numbers: what leans on none of them gives the same bits."""

import contextlib
import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import drsn_ops
from drsn_ops import data, noise, reference
from drsn_ops.benchmark import contest
from drsn_ops.benchmark.cases import Case
from drsn_ops.data.vibration import vibration
from drsn_ops.experiment import cell, signals
from drsn_ops.experiment.settings import SMALL
from drsn_ops.training.recipes import Settings
from drsn_ops.training.run import Run


def generator(seed=3):
    return torch.Generator().manual_seed(seed)


def features(*shape):
    return torch.randn(shape, generator=generator(), dtype=torch.float32, device="cpu")


@contextlib.contextmanager
def float64():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def another_device():
    """Of it no value can be read, so that a tensor made there by mistake is found at once."""
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def other_random_numbers():
    torch.manual_seed(12345)
    yield


DEFAULTS = [float64, another_device, other_random_numbers]


class Block(nn.Module):
    """A residual block as `convert` takes it."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(4, 4, 3, padding=1), nn.Conv1d(4, 4, 3, padding=1)
        self.downsample = None

    def forward(self, x):
        return x + self.conv2(self.conv1(x).relu())


def converted(block):
    block = copy.deepcopy(block)
    torch.manual_seed(0)
    drsn_ops.convert(block, norm="layer")
    return block.state_dict(), block(features(2, 4, 9))


def plain_shrink(x):
    return x.sign() * (x.abs() - 0.5 * x.abs().mean(-1, keepdim=True)).relu()


def check_of(module):
    check = drsn_ops.check_shrinkage(module, 4)
    assert check, check
    return str(check)


def inspection_of(network):
    inspection = drsn_ops.inspect(network, features(2, 1, 64))
    blocks = [[block.tau, block.alpha, block.zeroed, block.passed] for block in inspection.blocks]
    return str(inspection), inspection.output, blocks


def epoch_of(run):
    run = copy.deepcopy(run)
    torch.manual_seed(0)
    return run.epoch(lambda: None, lambda: None)[:-1], run.network.state_dict()


def adam_counts_on_the_cpu():
    """False for PyTorch 2.11's, which counts its steps on the default device and reads the number there."""
    weight = nn.Parameter(features(1))
    weight.grad = features(1)
    optimiser = torch.optim.Adam([weight])
    with another_device(), contextlib.suppress(RuntimeError):
        optimiser.step()
    return optimiser.state[weight]["step"].device.type == "cpu"


def augmented(images):
    torch.manual_seed(0)
    return data.augment(images)


def fitted(network, x):
    network = copy.deepcopy(network)
    torch.manual_seed(0)
    settings = replace(SMALL, epochs=2, batch_size=2)
    optimiser = cell.momentum(network.parameters(), settings.lr)
    cell.fit(network, optimiser, [x] * settings.epochs, torch.tensor([0, 1, 2, 3], device="cpu"), settings)
    return network.state_dict()


def make_recordings(folder):
    for name in ("good", "bad"):
        (folder / name).mkdir()
        for i in range(2):
            np.save(
                folder / name / f"{i}.npy", np.random.default_rng((i, len(name))).standard_normal(100) + 3
            )
    return folder


def make_calls(folder):
    """Public functions by name; the modules and tensors that they take are made before any default is changed."""
    threshold, shrinkage, block = drsn_ops.SoftThreshold(4), drsn_ops.Shrinkage(4, norm="none"), Block()
    network = drsn_ops.models.drsn(blocks=3)
    x, gate, images = features(3, 4, 50), shrinkage.fc, features(6, 1, 8, 8)
    folder = make_recordings(folder)
    simulated = replace(SMALL, num_signals=24, points=64)
    recorded = replace(SMALL, data=str(folder), num_signals=None, points=20)
    split = data.Split(images, torch.arange(6))
    run = Run(
        Settings("digits", "channel-wise", "drsn_ops", 1, 3, 0.1, 0.0, 0),
        data.Dataset(split, split, torch.zeros(1, 1, 1)),
        torch.device("cpu"),
    )
    case = Case("shrink", "inference", (2, 3, 9))
    return {
        "noise": lambda: [getattr(noise, kind)((3, 1, 65), generator=generator()) for kind in noise.KINDS],
        "add_noise": lambda: [noise.add_noise(x, 3, kind, generator=generator()) for kind in noise.KINDS],
        "snr": lambda: noise.snr(x, 1.1 * x),
        "vibration": lambda: vibration(9, points=64),
        "digits": lambda: data.load("digits", None, noise=0.5, seed=3),
        "augment": lambda: augmented(images),
        "recordings": lambda: data.read_recordings(folder, points=20)[:3],
        "simulated_signals": lambda: [signals.simulated.cache_clear(), signals.load_simulated(simulated, 1)],
        "recorded_signals": lambda: signals.load_recordings(recorded, 1),
        "epoch": lambda: epoch_of(run),
        "cell": lambda: fitted(network, features(4, 1, 64)),
        "soft_threshold": lambda: drsn_ops.soft_threshold(x, 0.3),
        "abs_mean": lambda: drsn_ops.abs_mean(x),
        "shrink": lambda: drsn_ops.shrink(x, 0.3, return_threshold=True),
        "gated_shrink": lambda: drsn_ops.gated_shrink(x, gate),
        "reference.soft_threshold": lambda: reference.soft_threshold(x, 0.3),
        "reference.shrink": lambda: reference.shrink(x, 0.3, return_threshold=True),
        "reference.gated_shrink": lambda: reference.gated_shrink(x, gate),
        "SoftThreshold": lambda: threshold(x),
        "Shrinkage": lambda: shrinkage(x),
        "convert": lambda: converted(block),
        "check_shrinkage": lambda: check_of(shrinkage),
        "check_of_a_function": lambda: check_of(plain_shrink),
        "inspect": lambda: inspection_of(network),
        "benchmark": lambda: [contest.Inputs(case, 1).x, contest.Inputs(case, 1).threshold],
        "benchmark_of_a_copy": lambda: [source.dtype for source in contest.Copy(case).sources],
    }


NAMES = """noise add_noise snr vibration digits augment recordings simulated_signals recorded_signals epoch cell
    soft_threshold abs_mean shrink gated_shrink reference.soft_threshold reference.shrink reference.gated_shrink
    SoftThreshold Shrinkage convert check_shrinkage check_of_a_function inspect benchmark benchmark_of_a_copy""".split()


def same(a, b):
    """Whether two results are of the same types, on the same devices and of the same bits."""
    if isinstance(a, torch.Tensor):
        return (a.dtype, a.device) == (b.dtype, b.device) and torch.equal(a, b)
    if isinstance(a, dict):
        return same([*a.items()], [*b.items()])
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("default", DEFAULTS)
@pytest.mark.parametrize("name", NAMES)
def test_the_same_bits_whatever_the_default(name, default, tmp_path):
    calls = make_calls(tmp_path)
    assert [*calls] == NAMES
    if name == "epoch" and default is another_device and not adam_counts_on_the_cpu():
        pytest.skip("this PyTorch's Adam, 2.11's, reads a number from the default device")
    call = calls[name]
    expected = call()
    with default():
        found = call()
    assert same(found, expected)


@pytest.mark.parametrize("kind", noise.KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_noise_has_the_type_of_x(kind, dtype):
    with float64():
        assert noise.add_noise(features(2, 1, 9).to(dtype), 3, kind).dtype == dtype
        assert getattr(noise, kind)((2, 9)).dtype == torch.float32


def test_parameters_follow_the_defaults():
    with float64(), another_device():
        tensors = [*drsn_ops.Shrinkage(4).parameters(), *drsn_ops.SoftThreshold().parameters()]
    assert {(t.dtype, t.device.type) for t in tensors} == {(torch.float64, "meta")}
