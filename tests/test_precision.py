"""Types that differ: a threshold wider than the features, autocast, gradient scaling."""

import copy

import pytest
import torch
from checks import REAL, assert_close, leaf, make_features, make_gate, randomise
from torch import nn
from torch.func import jvp, vmap

import drsn_ops
from drsn_ops import reference

NARROW = (torch.float16, torch.bfloat16)


@pytest.mark.parametrize("tau_dtype", REAL)
@pytest.mark.parametrize("dtype", REAL)
def test_each_gradient_has_the_type_of_its_tensor(device, dtype, tau_dtype):
    x = leaf(make_features((3, 4, 50), device).to(dtype))
    tau = leaf(torch.rand(4, 1, device=device).to(tau_dtype))
    alpha = leaf(torch.rand(3, 4, device=device).to(tau_dtype))
    for function, companion in ((drsn_ops.soft_threshold, tau), (drsn_ops.shrink, alpha)):
        y = function(x, companion)
        assert y.dtype == dtype
        dx, dcompanion = torch.autograd.grad(y.double().sum(), (x, companion))
        assert dx.dtype == dtype and dcompanion.dtype == tau_dtype
        wide = [leaf(t.detach().double()) for t in (x, companion)]
        expected = getattr(reference, function.__name__)(*wide)
        assert_close(y.detach(), expected.detach())
        found = torch.autograd.grad(expected.sum(), wide)
        assert_close(dx, found[0])
        torch.testing.assert_close(dcompanion.double(), found[1], rtol=0.01, atol=0.01)


@pytest.mark.parametrize("dtype", NARROW)
def test_autocast_changes_no_function(device, dtype):
    """A threshold is a small difference of large numbers: nothing here is on autocast's lists."""
    x, tau, alpha = torch.randn(3, 4, 50, device=device), torch.rand(4, 1), torch.rand(3, 4, device=device)
    gate = make_gate(4, 5, 4, "layer").float().to(device)
    norm = randomise(nn.BatchNorm1d(4)).to(device).eval()
    calls = {
        "soft_threshold": lambda x: drsn_ops.soft_threshold(x, tau.to(device)),
        "abs_mean": drsn_ops.abs_mean,
        "shrink": lambda x: drsn_ops.shrink(x, alpha, return_threshold=True),
        "gated_shrink": lambda x: drsn_ops.gated_shrink(x, gate),
        "batch_norm_relu": lambda x: drsn_ops.batch_norm_relu(x, norm),
    }
    for function in calls.values():
        for features in (x, x.to(dtype)):
            expected = function(features)
            with torch.autocast(device.type, dtype):
                torch.testing.assert_close(function(features), expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", NARROW)
def test_autocast_changes_no_gate_under_a_transform(device, dtype):
    x = torch.randn(3, 4, 50, device=device)
    shrinkage = drsn_ops.Shrinkage(4, norm="layer").to(device)
    expected = shrinkage(x)
    with torch.autocast(device.type, dtype):
        for y in (vmap(shrinkage)(x[None])[0], jvp(shrinkage, (x,), (x,))[0]):
            torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)
    shrinkage.fc[0].register_forward_hook(lambda module, inputs, y: seen.append(y.dtype))
    seen = []
    with torch.autocast(device.type, dtype):
        shrinkage(x)
    assert seen == [dtype]


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(2, 8, 3, padding=1)
        self.unit = drsn_ops.RSBU(8, 8, norm="layer")
        self.threshold = drsn_ops.SoftThreshold(8)
        self.seen = {}

    def forward(self, x):
        h = self.conv(x)
        self.seen["features"] = h.dtype
        h = self.threshold(self.unit(h))
        self.seen["result"] = h.dtype
        return h.mean(-1)


class Plain(nn.Module):
    """A module of the package by the plain formulas, its thresholds and statistics in float32."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x, residual=None):
        with torch.autocast(x.device.type, enabled=False):
            if isinstance(self.module, drsn_ops.Shrinkage):
                return reference.gated_shrink(x, self.module.fc, residual=residual)
            return reference.soft_threshold(x, self.module.weight[:, None])


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("compiled", [False, True])
def test_autocast_of_a_network(device, dtype, compiled, no_caches):
    network = Network().to(device)
    plain = copy.deepcopy(network)
    plain.unit.shrink, plain.threshold = Plain(plain.unit.shrink), Plain(plain.threshold)
    x = torch.randn(4, 2, 64, device=device)
    found = []
    for each in (plain, network):
        run = torch.compile(each, fullgraph=True, backend="aot_eager") if compiled else each
        with torch.autocast(device.type, dtype):
            y = run(x)
        assert each.seen == {"features": dtype, "result": dtype}
        found.append(torch.autograd.grad(y.float().square().sum(), list(each.parameters())))
    for wanted, grad in zip(*found, strict=True):
        assert grad.dtype == torch.float32
        assert (grad - wanted).norm() <= 2 * torch.finfo(dtype).eps * (wanted.norm() + 0.1)


def test_gradient_scaling(device):
    """Gradients too small for float16 come back when the loss is scaled; infinite ones skip the step."""
    network = Network().to(device)
    before = copy.deepcopy(network.state_dict())
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**14)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    x = torch.randn(4, 2, 64).to(device)  # the same numbers everywhere: some gradients nearly cancel

    def gradients(factor):
        optimiser.zero_grad()
        with torch.autocast(device.type, torch.float16):
            loss = network(x).float().square().sum() * factor
        scaler.scale(loss).backward()
        scaler.unscale_(optimiser)
        return [p.grad for p in network.parameters()]

    exact = torch.autograd.grad(network(x).square().sum() * 1e-4, list(network.parameters()))
    for grad, wanted in zip(gradients(1e-4), exact, strict=True):
        assert (grad - wanted).norm() <= 0.05 * wanted.norm() + 1e-6
    scaler.step(optimiser)
    scaler.update()
    assert not torch.equal(network.threshold.weight, before["threshold.weight"])
    after = copy.deepcopy(network.state_dict())
    gradients(1e30)
    scaler.step(optimiser)
    scaler.update()
    assert scaler.get_scale() == 2.0**13
    parameters = dict(network.named_parameters())
    torch.testing.assert_close(parameters, {k: after[k] for k in parameters}, rtol=0, atol=0)
