"""What is attached to a module inside a network: it acts, it sees what the module returned, and it changes nothing."""

import copy

import pytest
import torch
from checks import randomise
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper
from torch.nn.modules import module as module_hooks

import drsn_ops
from drsn_ops import RSBU, Shrinkage
from drsn_ops.models import convnet, drsn, drsn_cifar10, drsn_mnist, rsnet18, rsnet34
from drsn_ops.models.rsnet import RSNet, RSNetBlock


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """RSNets of a size at which every module can be tried."""
    monkeypatch.setattr(drsn_ops.models.rsnet, "WIDTHS", (4, 4, 8, 8))


class Block(nn.Module):
    """A residual block of torchvision's kind, for `convert`."""

    def __init__(self, end):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv1d(4, 4, 3, padding=1), nn.BatchNorm1d(4)
        self.conv2, self.bn2 = nn.Conv1d(4, 4, 3, padding=1), end
        self.relu1, self.relu2, self.downsample = nn.ReLU(), nn.ReLU(), None

    def forward(self, x):
        y = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(y)) + x)


def converted(*layers):
    model = nn.Sequential(*layers)
    drsn_ops.convert(model, norm="layer")
    return model


NETWORKS = {
    "Shrinkage": lambda: Shrinkage(4),
    "Shrinkage by group": lambda: Shrinkage(4, "channel-shared", reduction=2, norm="rms"),
    "RSBU": lambda: RSBU(4, 6, stride=2),
    "RSBU without thresholds": lambda: RSBU(4, 6, thresholds=None),
    "drsn": lambda: drsn(4, 3, blocks=2, widths=(4, 8)),
    "drsn without thresholds": lambda: drsn(4, 3, blocks=3, thresholds=None),
    "convnet": lambda: convnet(4, 3, blocks=3),
    "drsn_mnist": lambda: drsn_mnist(4),
    "drsn_cifar10": lambda: drsn_cifar10(4),
    "RSNetBlock": lambda: RSNetBlock(4, 6, stride=2),
    "RSNetBlock with the shortcut x": lambda: RSNetBlock(4, 4, norm="layer"),
    "rsnet18": lambda: rsnet18(4, 3, reduction=8),
    "rsnet18 without thresholds": lambda: rsnet18(4, 3, thresholds=None),
    "rsnet34": lambda: rsnet34(4, 3, reduction=16, norm="layer"),
    "RSNet of four blocks": lambda: RSNet(4, 3, blocks=(1, 1, 1, 1), norm="none"),
    "converted, BatchNorm": lambda: converted(Block(nn.BatchNorm1d(4))),
    "converted, GroupNorm": lambda: converted(Block(nn.GroupNorm(2, 4))),
    "converted rsnet18": lambda: converted(rsnet18(4, 3, thresholds=None)),
}
networks = pytest.mark.parametrize("name", NETWORKS)
# Every kind of module is in one of these.
small_networks = pytest.mark.parametrize(
    "name", [name for name in NETWORKS if "rsnet" not in name and name not in ("drsn_cifar10", "convnet")]
)


def make(name):
    torch.manual_seed(0)
    return randomise(NETWORKS[name]()).double()


def make_input(name):
    shape = (3, 4, 8, 8) if name in ("drsn_mnist", "drsn_cifar10") else (3, 4, 16)
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def step(network, x):
    """The result, the gradients of x and of the parameters, and the statistics that a training step leaves."""
    y = network(x)
    gradients = torch.autograd.grad(y.square().sum(), [x, *network.parameters()])
    return y, *gradients, *(buffer.clone() for buffer in network.buffers())


def same(found, expected):
    """Equal up to the rounding of another order: what is attached to a gate has its modules called."""
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def called(network):
    """The modules that have a forward of their own: all but plain lists of modules."""
    return {module: name for name, module in network.named_modules() if not isinstance(module, nn.ModuleList)}


class Kept(dict):
    """The outputs of modules, as they were and as they are."""

    def __call__(self, module, args, output):
        self[module] = output, output.detach().clone()

    def check(self, network):
        assert set(self) == set(called(network))
        for module, name in called(network).items():
            now, then = self[module]
            assert torch.equal(now, then), name


@networks
def test_forward_hooks_fire_and_see_what_was_returned(name):
    network, x = make(name), make_input(name)
    expected = step(copy.deepcopy(network), x)
    kept = Kept()
    for module in called(network):
        module.register_forward_hook(kept)
    found = step(network, x)
    kept.check(network)
    same(found, expected)


@small_networks
def test_a_hook_on_one_module_sees_what_was_returned(name):
    """Every other module is as plain as it was."""
    network, x = make(name), make_input(name)
    for module, at in called(network).items():
        kept = Kept()
        handle = module.register_forward_hook(kept)
        network(x)
        handle.remove()
        now, then = kept[module]
        assert torch.equal(now, then), at


@networks
def test_forward_pre_hooks_fire(name):
    network, x = make(name), make_input(name)
    seen = set()
    for module in called(network):
        module.register_forward_pre_hook(lambda module, args: seen.add(module))
    network(x)
    assert seen == set(called(network))


@networks
def test_full_backward_hooks_fire(name):
    network, x = make(name), make_input(name)
    expected = step(copy.deepcopy(network), x)
    seen, before = set(), set()
    for module in called(network):
        module.register_full_backward_hook(lambda module, *_: seen.add(module))
        module.register_full_backward_pre_hook(lambda module, *_: before.add(module))
    found = step(network, x)
    assert seen == before == set(called(network))
    same(found, expected)


@networks
def test_global_hooks_fire_and_see_what_was_returned(name):
    network, x = make(name), make_input(name)
    expected = step(copy.deepcopy(network), x)
    kept, seen = Kept(), set()
    handles = [
        module_hooks.register_module_forward_hook(kept),
        module_hooks.register_module_full_backward_hook(lambda module, *_: seen.add(module)),
    ]
    try:
        found = step(network, x)
    finally:
        for handle in handles:
            handle.remove()
    kept.check(network)
    assert seen == set(called(network))
    same(found, expected)


class Wrapper(nn.Module):
    """A module around another, as those that checkpoint, shard or count."""

    def __init__(self, module):
        super().__init__()
        self.module, self.calls = module, 0

    def forward(self, *args):
        self.calls += 1
        return self.module(*args)


@small_networks
def test_wrappers_act(name):
    """Around every module, one at a time: a gate's, a block's, a container."""
    network, x = make(name), make_input(name)
    for at in [at for at in called(network).values() if at]:
        expected, module = network(x), network.get_submodule(at)
        wrapper = Wrapper(module)
        network.set_submodule(at, wrapper)
        same(network(x), expected)
        network.set_submodule(at, module)
        assert wrapper.calls == 1, at


@small_networks
def test_activation_checkpoints_act(name):
    network, x = make(name), make_input(name)
    runs = []
    for at in [at for at in called(network).values() if at]:
        module = network.get_submodule(at)
        if any(parameter.requires_grad for parameter in module.parameters()):
            handle = module.register_forward_pre_hook(lambda module, _: runs.append(module))
            network.set_submodule(at, CheckpointWrapper(module))
            network(x).square().sum().backward()
            network.set_submodule(at, module)
            handle.remove()
            assert runs == [module, module], at  # forward, and once more in the backward pass
            runs.clear()


def test_replaced_norms_leave_the_input_alone():
    """After a BatchNorm is folded into the convolution before it, an Identity stands there."""
    unit = RSBU(4, 4).double().eval()
    x = torch.randn(2, 4, 8, dtype=torch.float64)
    given = x.clone()
    unit.bn1 = unit.bn2 = nn.Identity()
    h = unit.conv2(unit.conv1(given.relu()).relu())
    same(unit(x), unit.shrink(h, given))
    assert torch.equal(x, given)


@pytest.mark.parametrize("thresholds", ["channel-wise", None])
def test_residual_function_is_right_by_itself_and_may_grow(thresholds):
    block = randomise(RSNetBlock(4, 4, thresholds=thresholds)).double().eval()
    x = torch.randn(2, 4, 8, dtype=torch.float64)
    same((block.residual_function(x) + x).relu(), block(x))
    block.residual_function.append(nn.Tanh())
    same((block.residual_function(x) + x).relu(), block(x))
    assert block.residual_function(x).abs().max() <= 1


def test_both_names_of_a_shrinkage_are_replaced():
    block = randomise(RSNetBlock(4, 4)).double().eval()
    x = torch.randn(2, 4, 8, dtype=torch.float64)
    plain = copy.deepcopy(block)
    block.shrinkage = randomise(Shrinkage(4, "channel-shared", norm="none")).double()
    assert block.residual_function[5] is block.shrinkage
    same(block(x), (block.residual_function(x) + x).relu())
    plain.shrinkage = None
    same(plain(x), (block.residual_function[:5](x) + x).relu())
    # by the second name alone it is the Sequential that counts
    block.residual_function[5] = nn.Tanh()
    same(block(x), (block.residual_function[:5](x).tanh() + x).relu())


def test_penalty_leaves_a_wrapped_classifier_out():
    network = drsn(4, 3, blocks=3)
    expected = network.penalty()
    network.classifier = Wrapper(network.classifier)
    assert torch.equal(network.penalty(), expected)


def test_a_replaced_stem_and_shrinkage_need_no_attributes():
    network = drsn(4, 3, blocks=3)
    x = torch.randn(2, 4, 32)
    network.eval()
    expected = network(x)
    network.stem = nn.Sequential(network.stem)
    same(network(x), expected)
    model = converted(Block(nn.BatchNorm1d(4))).eval()
    model[0].bn2.shrinkage = nn.Identity()
    block = model[0]
    y = block.bn2.layer(block.conv2(block.relu1(block.bn1(block.conv1(x[..., :8])))))
    same(model(x[..., :8]), (y + x[..., :8]).relu())


@pytest.mark.parametrize(
    "name", ["RSBU", "drsn", "convnet", "RSNetBlock", "rsnet18", "rsnet18 without thresholds"]
)
def test_plain_networks_overwrite_what_nobody_sees(name, monkeypatch):
    """In place is what saves memory, and goes on where nothing is attached."""
    network, x, places = make(name), make_input(name), []

    def relu(y, inplace=False):
        places.append(inplace)
        return torch.relu(y)

    monkeypatch.setattr("torch.nn.functional.relu", relu)
    monkeypatch.setattr("drsn_ops.functional.pre_activation", lambda *_: None)
    network(x)
    assert places and all(places)
