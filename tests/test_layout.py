"""The memory layout of a network: laid out once, kept by convolutions and units, the same numbers in every layout."""

import copy
import pickle
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from checks import Replaced, lay_out, randomise, require_compilation_no_export
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

import drsn_ops
from drsn_ops import RSBU, layers
from drsn_ops.models import ConvolutionalUnit, convnet, drsn, drsn_cifar10, drsn_mnist, rsnet18


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setattr("drsn_ops.models.rsnet.WIDTHS", (4, 4, 8, 8))


def strides(shape):
    """Those of channels_last."""
    n, c, *spatial = shape
    memory = torch.empty(n, *spatial, c).stride()
    return (memory[0], memory[-1], *memory[1:-1])


class Convolutions(TorchDispatchMode):
    """The strides of what convolutions take, in this context."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.convolution.default:
            self.seen.append((args[0].shape, args[0].stride()))
        return function(*args, **(kwargs or {}))


SHAPES = [(2, 3, 8), (1, 1, 8), (2, 1, 1), (1, 4, 1), (0, 1, 8), (2, 3, 4, 5), (2, 1, 4, 5), (1, 2, 3, 4, 5)]


@pytest.mark.parametrize(
    "shape, dtype", [(shape, torch.float32) for shape in SHAPES] + [(SHAPES[0], torch.bfloat16)], ids=str
)
def test_a_networks_input_becomes_channels_last(shape, dtype):
    x = torch.randn(shape).to(dtype)
    y = layers.lay_out(x)
    assert torch.equal(y, x)
    for size, stride, expected in zip(shape, y.stride(), strides(shape), strict=True):
        assert stride == expected or size == 1
    # one channel: no copy, and a stride of 1, by which PyTorch's convolution knows the layout
    assert shape[1] > 1 or (y.data_ptr() == x.data_ptr() and y.stride(1) == 1)


def test_what_keeps_the_layout_that_comes_in(device):
    x = torch.randn(2, 3, 8, device=device)
    last = lay_out(x, "channels_last")
    kept = [
        x.double(),
        x.half(),
        last,
        x[..., ::2],
        x.to("meta"),
        x.as_subclass(type("Own", (torch.Tensor,), {})),
    ]
    for given in kept + [x] * (device.type != "cpu"):
        assert layers.lay_out(given) is given
    with torch.backends.mkldnn.flags(enabled=False):
        assert layers.lay_out(x) is x


@pytest.mark.parametrize("dim", [2, 3])
def test_short_axes_of_bfloat16_keep_the_layout(dim):
    """In channels_last oneDNN writes the gradient of a weight past its end, where an axis is short."""
    x = torch.randn(2, 3, *(5, 4, 6)[:dim])
    narrow = x.bfloat16()
    assert layers.lay_out(narrow) is narrow
    with torch.autocast("cpu", torch.bfloat16):
        assert layers.lay_out(x) is x


def test_a_convolution_with_ints_for_its_axis():
    conv, x = nn.Conv1d(4, 6, 3), lay_out(torch.randn(2, 4, 9), "channels_last")
    conv.stride, conv.padding, conv.dilation = 2, 3, 2
    torch.testing.assert_close(layers.apply(conv, x), conv(x))


@pytest.mark.parametrize("inside", [torch.func.vmap, torch.func.grad])
def test_what_keeps_the_layout_under_a_transform(inside):
    def function(x):
        seen.append(layers.lay_out(x) is x)
        return x.sum()

    seen = []
    inside(function)(torch.randn(2, 3, 8))
    assert seen == [True]


SETTINGS = [
    {},
    {"stride": 2},
    {"padding": 0},
    {"padding": "same", "dilation": 2},
    {"stride": 3, "dilation": 2, "padding": 3, "bias": False},
    {"groups": 2},
    {"kernel_size": 1, "padding": 0, "stride": 2},
    {"kernel_size": 4, "padding": "valid"},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_a_convolution_runs_on_views(options, dtype, device):
    conv = nn.Conv1d(4, 6, **{"kernel_size": 3, "padding": 1, **options}).to(device, dtype)
    x = torch.randn(3, 4, 11, device=device, dtype=dtype)
    given = [x.clone().requires_grad_(), lay_out(x, "channels_last").requires_grad_()]
    with Convolutions() as convolutions:
        expected, y = (layers.apply(conv, one) for one in given)
    assert convolutions.seen == [((3, 4, 11), x.stride()), ((3, 4, 1, 11), (44, 1, 44, 4))]
    unit = 0.02 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(y, expected, rtol=unit, atol=unit)
    if device.type == "cpu" and dtype != torch.float64:  # which oneDNN does not convolve
        assert y.stride() == strides(y.shape)
    g = torch.randn_like(expected)
    found = [
        torch.autograd.grad(out, (one, *conv.parameters()), g)
        for out, one in zip((expected, y), given, strict=True)
    ]
    for actual, want in zip(*found, strict=True):
        torch.testing.assert_close(actual, want, rtol=unit, atol=unit)


class Own(nn.Conv1d):
    pass


def attach(conv, how, seen):
    """The convolution with something attached that says so, and what removes it from a class."""
    if how == "a hook":
        return conv, conv.register_forward_hook(lambda *_: seen())
    if how == "a global hook":
        return conv, nn.modules.module.register_module_forward_pre_hook(lambda *_: seen())
    if how == "a subclass":
        return Own(4, 4, 3), Replaced(Own, "forward", seen)
    if how == "a parametrization":
        conv = weight_norm(conv)
        return conv, conv.parametrizations.weight.register_forward_hook(lambda *_: seen())
    if how.startswith("on the class"):
        return conv, Replaced(nn.Conv1d, how.split()[-1], seen)
    own = getattr(conv, how)
    setattr(conv, how, lambda *args: (seen(), own(*args))[1])
    return conv, None


@pytest.mark.parametrize("how", ["a hook", "a global hook", "a subclass", "a parametrization", "forward",
    "_conv_forward", "on the class: forward", "on the class: _conv_forward"])  # fmt: skip
def test_what_is_attached_to_a_convolution_runs(how):
    x, seen = lay_out(torch.randn(2, 4, 9), "channels_last"), []
    conv, handle = attach(nn.Conv1d(4, 4, 3), how, lambda: seen.append(how))
    try:
        y = layers.apply(conv, x)
    finally:
        if handle:
            handle.remove()
    assert seen == [how]
    torch.testing.assert_close(y, F.conv1d(x, conv.weight, conv.bias))


def test_other_borders_than_zeros_are_the_modules():
    x, conv = (
        lay_out(torch.randn(2, 4, 9), "channels_last"),
        nn.Conv1d(4, 4, 3, padding=1, padding_mode="circular"),
    )
    torch.testing.assert_close(layers.apply(conv, x), conv(x))


@pytest.mark.parametrize("train", [True, False])
def test_a_batch_norm_keeps_the_layout(train, device):
    """And what it keeps of the batch is what it would have kept."""
    norm = randomise(nn.BatchNorm1d(4)).to(device).train(train)
    other = copy.deepcopy(norm)
    x = torch.randn(3, 4, 9, device=device)
    y, expected = layers.apply(norm, lay_out(x, "channels_last")), other(x)
    assert y.stride() == strides(y.shape)
    torch.testing.assert_close((y, *norm.buffers()), (expected, *other.buffers()))


def converted(model):
    drsn_ops.convert(model)
    return model


NETWORKS = {
    "drsn": (lambda: drsn(1, 3, blocks=3), (4, 1, 33)),
    "drsn of two channels": (
        lambda: drsn(2, 3, blocks=2, widths=(4, 7), thresholds="channel-shared"),
        (4, 2, 32),
    ),
    "its ResNet": (lambda: drsn(1, 3, blocks=3, thresholds=None), (4, 1, 32)),
    "drsn in space": (lambda: drsn(1, 3, dim=3, blocks=2, widths=(4, 6)), (4, 1, 8, 9, 8)),
    "convnet": (lambda: convnet(2, 3, blocks=3), (4, 2, 32)),
    "drsn_mnist": (drsn_mnist, (4, 1, 28, 28)),
    "drsn_cifar10": (drsn_cifar10, (4, 3, 9, 8)),
    "rsnet18": (lambda: rsnet18(1, 3), (4, 1, 32)),
    "rsnet18 in the plane": (lambda: rsnet18(2, 3, dim=2, norm="layer"), (4, 2, 9, 9)),
    "its post-activation ResNet": (lambda: rsnet18(1, 3, thresholds=None), (4, 1, 32)),
    "converted": (lambda: converted(drsn(1, 3, blocks=3, thresholds=None)), (4, 1, 32)),
    "converted, post-activation": (lambda: converted(rsnet18(1, 3, thresholds=None)), (4, 1, 32)),
}
networks = pytest.mark.parametrize("name", NETWORKS)


def make(name, train):
    """A network, its input, and the number of its spatial axes."""
    torch.manual_seed(0)
    build, shape = NETWORKS[name]
    return randomise(build()).train(train), torch.randn(shape)


def step(network, x):
    """The result, the gradients and the statistics that a training step leaves."""
    x = x.clone().requires_grad_()
    y = network(x)
    gradients = torch.autograd.grad(y.square().sum(), [x, *network.parameters()])
    return y.detach(), *gradients, *(buffer.clone() for buffer in network.buffers())


def same(found, expected):
    """Equal to float32's rounding of the largest number of each tensor, and of all that a sum cancels from."""
    largest = max(b.abs().max().item() for b in expected)
    for a, b in zip(found, expected, strict=True):
        scale = b.abs().max().item()
        torch.testing.assert_close(a.to(b.dtype), b, rtol=1e-3, atol=1e-3 * scale + 1e-6 * largest)


@pytest.mark.parametrize("train", [True, False])
@networks
def test_a_network_computes_the_same_in_every_layout(name, train):
    network, x = make(name, train)
    truth = step(copy.deepcopy(network).double(), x.double())
    with torch.backends.mkldnn.flags(enabled=False):
        same(step(copy.deepcopy(network), x), truth)
    for given in (x, lay_out(x, "channels_last"), lay_out(x, "transposed")):
        same(step(copy.deepcopy(network), given), truth)


@networks
def test_every_convolution_of_a_network_takes_channels_last(name):
    network, x = make(name, True)
    with Convolutions() as convolutions:
        network(x)
    assert convolutions.seen
    for shape, stride in convolutions.seen:
        assert len(shape) > 3  # PyTorch's convolution of one axis would copy
        for size, found, expected in zip(shape, stride, strides(shape), strict=True):
            assert found == expected or size == 1


@networks
def test_hooks_change_no_numbers(name):
    """Every module with a hook is called as it is, on strided features too."""
    network, x = make(name, True)
    expected = step(copy.deepcopy(network), x)
    seen = []
    for module in network.modules():
        module.register_forward_hook(lambda module, *_: seen.append(module))
    same(step(network, x), expected)
    assert set(seen) == set(network.modules())


def test_features_of_a_network_may_be_strided():
    """What the docs say of them."""
    network, x = make("drsn", True)
    seen = []
    network.units[0].register_forward_hook(lambda *args: seen.append(args[2]))
    network(x)
    (y,) = seen
    assert not y.is_contiguous() and y.contiguous().stride() == torch.empty(y.shape).stride()
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        y.view(len(y), -1)
    assert torch.equal(y.flatten(1), y.contiguous().view(len(y), -1))


def wide_unit(thresholds="channel-wise"):
    """Of so many channels that PyTorch convolves."""
    return RSBU(20, 24, stride=2, thresholds=thresholds)


@pytest.mark.parametrize("thresholds", ["channel-wise", None])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_unit_overwrites_what_its_convolution_returned_where_nobody_sees_it(
    thresholds, layout, monkeypatch
):
    unit, x = wide_unit(thresholds), lay_out(torch.randn(2, 20, 9), layout)
    made, convolve = [], torch.conv1d if layout == "contiguous" else torch.conv2d

    def convolution(*args):
        made.append(convolve(*args))
        return made[-1]

    monkeypatch.setattr(F, convolve.__name__, convolution)
    y = unit(x)
    assert len(made) == 2 and y.data_ptr() == made[1].data_ptr()
    seen = []
    unit.conv2.register_forward_hook(lambda *args: seen.append((args[2], args[2].clone())))
    torch.testing.assert_close(unit(x), y, rtol=1e-4, atol=1e-5)
    assert torch.equal(*seen[0])


class Kept(TorchFunctionMode):
    """Every tensor that is returned in this context, and a copy of it."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        y = function(*args, **(kwargs or {}))
        if isinstance(y, torch.Tensor) and function in (F.conv1d, F.conv2d, F.batch_norm):
            self.kept.append((y, y.clone()))
        return y


@pytest.mark.parametrize("thresholds", ["channel-wise", None])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_unit_overwrites_nothing_that_a_mode_keeps(thresholds, layout):
    unit, x = wide_unit(thresholds), lay_out(torch.randn(2, 20, 9), layout)
    with Kept() as mode:
        unit(x)
        unit.bn2.momentum = torch.tensor(0.1)  # so that it is called
        unit(x)
    assert len(mode.kept) == 5 and all(torch.equal(*pair) for pair in mode.kept)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_selective_checkpoints_keep_convolutions(layout):
    unit, x = wide_unit(), lay_out(torch.randn(2, 20, 9), layout).requires_grad_()
    keep = partial(create_selective_checkpoint_contexts, [torch.ops.aten.convolution.default])
    (expected,) = torch.autograd.grad(unit(x).square().sum(), x)
    (found,) = torch.autograd.grad(
        checkpoint(unit, x, use_reentrant=False, context_fn=keep).square().sum(), x
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("kind, channels, stride", [(RSBU, 4, 1), (RSBU, 6, 2), (ConvolutionalUnit, 6, 2)])
def test_a_unit_gives_out_the_layout_that_came_in(kind, channels, stride, dim):
    unit, x = kind(4, channels, stride=stride, dim=dim), torch.randn(2, 4, *(9, 6, 7)[:dim])
    y = unit(x)
    assert y.is_contiguous()
    strided = unit(lay_out(x, "channels_last"))
    assert strided.stride() == strides(y.shape)
    torch.testing.assert_close(strided, y, rtol=1e-4, atol=1e-5)


@networks
def test_copies_of_a_network_compute_the_same(name):
    network, x = make(name, False)
    y = network(x)
    for copied in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(copied(x), y)


def test_sizes_of_one(device):
    for shape in ((1, 1, 1), (1, 1, 2), (3, 1, 1), (1, 2, 9)):
        network = drsn(shape[1], 3, blocks=2, widths=(1, 3), norm="layer").to(device).eval()
        x = torch.randn(shape, device=device)
        torch.testing.assert_close(
            network(x), copy.deepcopy(network).double()(x.double()).float(), rtol=1e-4, atol=1e-5
        )


def test_autocast():
    network, x = make("drsn", True)
    with torch.autocast("cpu", torch.bfloat16):
        y = network(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), network(x), rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    "name", ["drsn of two channels", "rsnet18", "its post-activation ResNet", "drsn_mnist"]
)
def test_compile(name, no_caches):
    require_compilation_no_export()

    def backend(module, inputs):
        called.extend(str(node.target) for node in module.graph.nodes)
        return torch._dynamo.lookup_backend("aot_eager")(module, inputs)

    network, x = make(name, True)
    expected, called = step(copy.deepcopy(network), x), []
    same(step(torch.compile(network, fullgraph=True, backend=backend), x), expected)
    assert any("conv2d" in one for one in called)
    # the first, of a single channel
    assert sum("conv1d" in one for one in called) == (x.dim() == 3 and x.shape[1] == 1)


def test_inductor_takes_the_layout_of_a_single_channel_for_what_it_is(no_caches):
    """It forgets the strides of an axis of one: masks once had the size of another layout, and gradients were wrong."""
    network = drsn(1, 3, blocks=1, widths=(4,), thresholds="channel-wise", norm="layer")
    other, x = copy.deepcopy(network), torch.randn(4, 1, 64)
    compiled = torch.compile(network, fullgraph=True, dynamic=False)
    for given in (x, x.squeeze(1).unsqueeze(-1).movedim(-1, 1)):
        same(step(compiled, given), step(other, given))


@pytest.mark.parametrize("name", ["drsn of two channels", "rsnet18", "drsn_mnist"])
def test_an_export_has_no_layout(name):
    network, x = make(name, False)
    program = torch.export.export(network, (x,))
    found = {str(node.target) for node in program.graph.nodes if "conv" in str(node.target)}
    axes = x.dim() - 2
    assert f"aten.conv{axes}d.default" in found
    assert not found & {f"aten.conv{dim}d.default" for dim in (1, 2, 3) if dim != axes}
    traced = torch.fx.symbolic_trace(network)
    assert sum(node.op == "call_module" and "conv" in node.target for node in traced.graph.nodes) > 1


def test_a_gradient_has_the_strides_of_its_weight():
    """DistributedDataParallel, for one, warns of others."""
    conv = nn.Conv1d(1, 4, 3)
    layers.apply(conv, lay_out(torch.randn(2, 1, 9), "channels_last")).sum().backward()
    assert conv.weight.grad.stride() == conv.weight.stride()
