"""RSNet-18 and -34: the port's names, shapes and arithmetic, what is fused, and checkpoints with shorter gates."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from checks import Replaced, operators_of, randomise
from torch import nn

from drsn_ops import Shrinkage
from drsn_ops.models import rsnet18, rsnet34
from drsn_ops.models.rsnet import RSNet, RSNetBlock

BLOCKS = {rsnet18: (2, 2, 2, 2), rsnet34: (3, 4, 6, 3)}
CW, CS = "channel-wise", "channel-shared"


def batch_norm(name, channels):
    for key in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{key}", (channels,)
    yield f"{name}.num_batches_tracked", ()


def port_gate(name, channels, normalised):
    for layer in ("0", "3" if normalised else "2"):
        yield f"{name}.fc.{layer}.weight", (channels, channels)
        yield f"{name}.fc.{layer}.bias", (channels,)
    if normalised:
        yield from batch_norm(f"{name}.fc.1", channels)


def port(blocks, classes=4, normalised=True):
    """Names and shapes in a checkpoint of the port; ``normalised`` is whether its gates have a BatchNorm."""
    yield "conv1.0.weight", (64, 1, 3)
    yield from batch_norm("conv1.1", 64)
    channels = 64
    for stage, count in enumerate(blocks):
        width = 64 << stage
        for i in range(count):
            at = f"conv{stage + 2}_x.{i}"
            yield f"{at}.residual_function.0.weight", (width, channels, 3)
            yield from batch_norm(f"{at}.residual_function.1", width)
            yield f"{at}.residual_function.3.weight", (width, width, 3)
            yield from batch_norm(f"{at}.residual_function.4", width)
            yield from port_gate(f"{at}.shrinkage", width, normalised)
            yield from port_gate(f"{at}.residual_function.5", width, normalised)
            if channels != width:
                yield f"{at}.shortcut.0.weight", (width, channels, 1)
                yield from batch_norm(f"{at}.shortcut.1", width)
            channels = width
    yield "fc.weight", (classes, channels)
    yield "fc.bias", (classes,)


def checkpoint(*args, **options):
    """A state of the port in which every tensor has values of its own, and shared ones are shared."""
    state = {}
    for key, shape in port(*args, **options):
        twin = key.replace("residual_function.5", "shrinkage")
        counts = key.endswith("num_batches_tracked")
        state[key] = state[twin] if twin in state else torch.tensor(3) if counts else torch.rand(shape)
    return state


@pytest.mark.parametrize("build", [rsnet18, rsnet34])
def test_names_and_shapes_of_the_port(build):
    with torch.device("meta"):
        network = build()
    own = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    assert own == dict(port(BLOCKS[build]))


def values(network):
    return {key: value.clone() for key, value in network.state_dict().items()}


@pytest.mark.parametrize("statistic", ["channel", "sample"])
def test_a_checkpoint_loads(statistic):
    state = checkpoint(BLOCKS[rsnet18], 7)
    network = rsnet18(num_classes=7, statistic=statistic)
    network.load_state_dict(state, strict=True)
    assert all(torch.equal(value, state[key]) for key, value in values(network).items())


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_checkpoint_of_gates_without_batch_norm_loads(wrapped):
    state = checkpoint(BLOCKS[rsnet18], normalised=False)
    network = copy.deepcopy(rsnet18(norm="none"))
    if wrapped:
        nn.Sequential(network).load_state_dict({f"0.{key}": value for key, value in state.items()})
    else:
        network.load_state_dict(state, strict=True)
    own = values(network)
    assert len(own) == len(state)
    for key, value in state.items():
        assert torch.equal(own[key.replace(".fc.2.", ".fc.3.")], value)
    # and its own state, which has other names, as well
    pickle.loads(pickle.dumps(network)).load_state_dict(own, strict=True)
    # a gate with a BatchNorm lacks its numbers there, and says so
    with pytest.raises(RuntimeError, match=r"Missing key.*conv2_x\.0\.shrinkage\.fc\.1\.weight"):
        rsnet18().load_state_dict(state)


def conv(x, state, name, stride=1):
    kernel = state[f"{name}.weight"]
    return (F.conv1d, F.conv2d, F.conv3d)[x.dim() - 3](x, kernel, None, stride, padding=kernel.shape[-1] // 2)


def bn(x, state, name):
    weights = [state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
    return F.batch_norm(x, *weights, training=False)


def dense(x, state, name):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


@pytest.mark.parametrize(
    "dim, thresholds, statistic",
    [(1, CW, "channel"), (1, CW, "sample"), (1, CS, "sample"), (2, CW, "channel"), (3, None, None)],
)
def test_forward_layer_for_layer(dim, thresholds, statistic):
    """The network's lines from the weights alone, in evaluation mode."""
    network = rsnet18(2, 3, dim=dim, thresholds=thresholds, statistic=statistic).double().eval()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            randomise(module)
    state = network.state_dict()
    x = torch.randn(2, 2, *(9, 6, 5)[:dim], dtype=torch.float64)
    axes = tuple(range(2, x.dim()))
    net = bn(conv(x, state, "conv1.0"), state, "conv1.1").relu()
    for stage in (2, 3, 4, 5):
        for i in (0, 1):
            at = f"conv{stage}_x.{i}"
            stride = 2 if stage > 2 and i == 0 else 1
            h = bn(conv(net, state, f"{at}.residual_function.0", stride), state, f"{at}.residual_function.1")
            h = bn(conv(h.relu(), state, f"{at}.residual_function.3"), state, f"{at}.residual_function.4")
            if thresholds is not None:
                mean = h.abs().mean(axes)
                gate = bn(dense(mean, state, f"{at}.shrinkage.fc.0"), state, f"{at}.shrinkage.fc.1").relu()
                gate = dense(gate, state, f"{at}.shrinkage.fc.3").sigmoid()
                tau = gate * (mean if statistic == "channel" else mean.mean(1, keepdim=True))
                h = h.sign() * (h.abs() - tau.reshape(*tau.shape, *(1,) * dim)).relu()
            if stride == 2:
                net = bn(conv(net, state, f"{at}.shortcut.0", 2), state, f"{at}.shortcut.1")
            net = (h + net).relu()
    logits = dense(net.mean(axes), state, "fc")
    torch.testing.assert_close(network(x), logits, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("build, dim", [(rsnet18, 1), (rsnet18, 2), (rsnet18, 3), (rsnet34, 1)])
@pytest.mark.parametrize("statistic", ["channel", "sample", None])
@pytest.mark.parametrize("thresholds", [CW, CS])
def test_the_statistic_reaches_every_gate(build, thresholds, statistic, dim):
    with torch.device("meta"):
        network = build(dim=dim, thresholds=thresholds, statistic=statistic)
    shrinkages = [module for module in network.modules() if isinstance(module, Shrinkage)]
    assert len(shrinkages) == sum(BLOCKS[build])
    expected = statistic or {CW: "channel", CS: "sample"}[thresholds]
    assert {(module.thresholds, module.statistic) for module in shrinkages} == {(thresholds, expected)}


@pytest.mark.parametrize("training", [True, False])
def test_the_fused_block_equals_its_modules(training, device):
    """A hook on the shrinkage sees what it takes and gives; without one the BatchNorm is in the operator too."""
    block = randomise(RSNetBlock(3, 5, stride=2)).double().to(device).train(training)
    twin = copy.deepcopy(block)
    seen = []
    twin.shrinkage.register_forward_hook(lambda *args: seen.append(args))
    x = torch.randn(4, 3, 11, dtype=torch.float64, device=device, requires_grad=True)
    y, expected = block(x), twin(x)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    assert len(seen) == 1 and seen[0][0] is twin.shrinkage
    _, (h, shortcut), out = seen[0]
    torch.testing.assert_close(out.relu(), y, rtol=1e-10, atol=1e-10)
    assert h.shape == shortcut.shape == y.shape == (4, 5, 6)
    g = torch.randn_like(y)
    parameters = [x, *block.parameters()], [x, *twin.parameters()]
    for actual, want in zip(
        torch.autograd.grad(y, parameters[0], g), torch.autograd.grad(expected, parameters[1], g), strict=True
    ):
        torch.testing.assert_close(actual, want, rtol=1e-9, atol=1e-9)
    for key, value in twin.state_dict().items():
        torch.testing.assert_close(block.state_dict()[key], value, rtol=1e-12, atol=1e-12)
    first, second = operators_of(block, x.detach())
    assert first.startswith("batch_norm_relu") and second.startswith("batch_norm_shrink")
    assert not any(name.startswith("batch_norm_shrink") for name in operators_of(twin, x.detach()))


def test_a_block_of_a_plain_sequential_is_fused():
    """A pickle from before `Layers` has one."""
    block = randomise(RSNetBlock(3, 3)).eval()
    x = torch.randn(2, 3, 8)
    expected = block(x)
    block.residual_function = nn.Sequential(*block.residual_function)
    block.residual_function[2].inplace = True
    first, second = operators_of(block, x)
    assert first.startswith("batch_norm_relu") and second.startswith("batch_norm_shrink")
    assert torch.equal(block(x), expected)


def test_a_forward_replaced_on_the_class_of_the_shrinkage_runs(device):
    block, seen = RSNetBlock(3, 3).to(device), []
    x = torch.randn(2, 3, 8, device=device)
    handle = Replaced(Shrinkage, "forward", lambda: seen.append(1))
    try:
        block(x)
    finally:
        handle.remove()
    assert len(seen) == 1


def test_another_module_in_the_place_of_the_shrinkage_is_called():
    class Nothing(nn.Module):
        def forward(self, x, residual):
            return torch.zeros_like(x)

    block = RSNetBlock(2, 2)
    block.shrinkage = Nothing()
    assert (block(torch.randn(3, 2, 8)) == 0).all()
    block = RSNetBlock(2, 2)
    block.shrinkage.use_reference = True
    assert not any("shrink" in name for name in operators_of(block, torch.randn(3, 2, 8)))


@pytest.mark.parametrize(
    "build, dim, length",
    [
        *((rsnet18, 1, length) for length in (1, 2, 7, 16)),
        *((rsnet18, dim, length) for dim in (2, 3) for length in (1, 6)),
        (rsnet34, 1, 7),
    ],
)
def test_any_length(build, dim, length, device):
    network = build(2, 5, dim=dim, reduction=16, norm="layer").to(device).eval()
    with torch.no_grad():
        assert network(torch.randn(2, 2, *(length,) * dim, device=device)).shape == (2, 5)


def test_stages_halve_the_length():
    shapes = []
    network = rsnet34(reduction=16).eval()
    for stage in (2, 3, 4, 5):
        network.get_submodule(f"conv{stage}_x").register_forward_hook(
            lambda *args: shapes.append(tuple(args[2].shape[1:]))
        )
    network(torch.randn(1, 1, 20))
    assert shapes == [(64, 20), (128, 10), (256, 5), (512, 3)]


def test_every_parameter_learns(device):
    network = rsnet18(2, 3, reduction=4, norm="layer").to(device)
    F.cross_entropy(
        network(torch.randn(4, 2, 16, device=device)), torch.tensor([0, 1, 2, 0], device=device)
    ).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())


ERRORS = [
    (lambda: rsnet18(0), r"in_channels: got 0, expected an integer of at least 1"),
    (lambda: rsnet18(num_classes=0), r"num_classes: got 0, expected an integer of at least 1"),
    (lambda: rsnet18(dim=4), r"dim: got 4, expected 1, 2 or 3"),
    (lambda: rsnet18(thresholds="CW"), r"thresholds: got 'CW', expected 'channel-wise', 'channel-shared' or"),
    (lambda: rsnet18(statistic="batch"), r"statistic: got 'batch', expected 'channel', 'sample' or None"),
    (lambda: rsnet18(norm="group"), r"norm: got 'group', expected 'batch', 'layer', 'rms' or 'none'"),
    (lambda: rsnet18(reduction=0), r"reduction: got 0, expected an integer of at least 1"),
    (lambda: RSNet(blocks=(2, 2)), r"blocks: got \(2, 2\), expected 4 numbers, one a stage"),
    (lambda: RSNet(blocks=(2, 0, 2, 2)), r"blocks: got 0, expected an integer of at least 1"),
    (lambda: RSNetBlock(1, 0), r"out_channels: got 0, expected"),
    (lambda: RSNetBlock(1, 2, stride=0), r"stride: got 0, expected"),
    (lambda: RSNetBlock(1, 2)(torch.zeros(2, 2, 8)), r"x: got shape \(2, 2, 8\), expected \(N, 1, L1\)"),
    (lambda: rsnet18()(torch.zeros(2, 8)), r"x: got shape \(2, 8\), expected \(N, 1, L1\)"),
]


@pytest.mark.parametrize("call, message", ERRORS, ids=[message for _, message in ERRORS])
def test_errors(call, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        call()
