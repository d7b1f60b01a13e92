"""Shrinkage in networks that were built without it: where it goes, what stays, and what is refused.

The blocks are laid out as those of torchvision 0.28 and timm 1.0 are; the libraries themselves are tested where they
can be imported.
"""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from checks import operators_of, randomise
from torch import nn

from drsn_ops import Shrinkage
from drsn_ops.layers import BATCH_NORMS, CONVOLUTIONS
from drsn_ops.models import rsnet18
from drsn_ops.models.conversion import Placement, convert
from drsn_ops.models.rsnet import RSNetBlock
from drsn_ops.modules import RSBU


class BasicBlock(nn.Module):
    """torchvision's layout."""

    def __init__(self, channels, width, stride=1, dim=2):
        super().__init__()
        conv, norm = CONVOLUTIONS[dim], BATCH_NORMS[dim]
        self.conv1 = conv(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = norm(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv(width, width, 3, padding=1, bias=False)
        self.bn2 = norm(width)
        self.downsample = None
        if stride != 1 or channels != width:
            self.downsample = nn.Sequential(conv(channels, width, 1, stride, bias=False), norm(width))

    def branch(self, x):
        return self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))

    def forward(self, x):
        out = self.branch(x)
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class Bottleneck(BasicBlock):
    def __init__(self, channels, width, stride=1, dim=2):
        super().__init__(channels, width, stride, dim)
        conv, norm = CONVOLUTIONS[dim], BATCH_NORMS[dim]
        self.conv3 = conv(width, 2 * width, 1, bias=False)
        self.bn3 = norm(2 * width)
        self.downsample = nn.Sequential(conv(channels, 2 * width, 1, stride, bias=False), norm(2 * width))

    def branch(self, x):
        return self.bn3(self.conv3(self.relu(super().branch(x))))


class PreActBlock(nn.Module):
    """Normalisation before convolution; the shortcut is an attribute only where it has weights."""

    def __init__(self, channels, width, stride=1):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        if channels != width:
            self.shortcut = nn.Conv2d(channels, width, 1, stride, bias=False)

    def branch(self, x):
        return self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))

    def forward(self, x):
        return self.branch(x) + (self.shortcut(x) if hasattr(self, "shortcut") else x)


class SEModule(nn.Module):
    """timm's layout."""

    def __init__(self, channels):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, 2, 1)
        self.bn = nn.Identity()
        self.fc2 = nn.Conv2d(2, channels, 1)

    def forward(self, x):
        return x * self.fc2(self.fc1(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class SE_Layer(nn.Module):
    """The layout that is copied most, with linear layers."""

    def __init__(self, channels):
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(channels, 2), nn.ReLU(), nn.Linear(2, channels), nn.Sigmoid())

    def forward(self, x):
        return x * self.fc(x.mean((2, 3)))[:, :, None, None]


class SEBasicBlock(BasicBlock):
    def __init__(self, channels, width, stride=1, squeeze=SEModule):
        super().__init__(channels, width, stride)
        self.se = squeeze(width)

    def branch(self, x):
        return self.se(super().branch(x))


class ResNetDBlock(BasicBlock):
    """The shortcut pools before it convolves, and the branch ends in stochastic depth."""

    def __init__(self, channels, width, stride=1):
        super().__init__(channels, width, stride)
        if self.downsample is not None:
            self.downsample = nn.Sequential(
                nn.AvgPool2d(stride, stride, ceil_mode=True),
                nn.Conv2d(channels, width, 1),
                nn.BatchNorm2d(width),
            )
        self.drop_path = nn.Dropout(0.0)

    def branch(self, x):
        return self.drop_path(super().branch(x))


class WideShortcutBlock(BasicBlock):
    """A shortcut as wide as the branch's convolutions."""

    def __init__(self, channels, width, stride=1):
        super().__init__(channels, width, stride)
        self.downsample = nn.Conv2d(channels, width, 3, stride, padding=1)


class NamedBlock(BasicBlock):
    """A shortcut of another common name."""

    def __init__(self, channels, width, stride=1, name="identity_downsample"):
        super().__init__(channels, width, stride)
        setattr(self, name, self.downsample)
        self.name = name
        del self.downsample

    def forward(self, x):
        shortcut = getattr(self, self.name)
        return self.relu(self.branch(x) + (x if shortcut is None else shortcut(x)))


class LayersBlock(nn.Module):
    """Its layers are a Sequential of any name."""

    def __init__(self, channels, width, stride=1, name="layers", unit=nn.Sequential):
        super().__init__()
        self.name = name
        layers = nn.Sequential(
            unit(nn.Conv2d(channels, width, 3, stride, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.Dropout(0.0),
        )
        setattr(self, name, layers)
        self.shortcut = nn.Conv2d(channels, width, 1, stride) if channels != width else nn.Identity()

    def forward(self, x):
        return F.relu(getattr(self, self.name)(x) + self.shortcut(x))


class Encoder(BasicBlock):
    """A level of a U-Net: no residual, and ``downsample`` leads to the next level."""

    def __init__(self, channels, width, downsample):
        super().__init__(channels, width)
        self.downsample = downsample

    def forward(self, x):
        y = self.relu(self.branch(x))
        return y if self.downsample is None else self.downsample(y)


class SequenceBlock(BasicBlock):
    """Its layers have two names each, and are called by the second."""

    def __init__(self, channels, width, stride=1):
        super().__init__(channels, width, stride)
        self.sequence = nn.Sequential(self.conv1, self.bn1, nn.ReLU(), self.conv2, self.bn2)

    def branch(self, x):
        return self.sequence(x)


class LayerNorm2d(nn.LayerNorm):
    """timm's layout: a normalisation that is no BatchNorm."""

    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class ScaledNorm(nn.Module):
    """A layer with a child called ``layer``, like the one in a `ShrunkLayer`."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width, 1, 1))
        self.layer = nn.BatchNorm2d(width)

    def forward(self, x):
        return self.weight * self.layer(x)


class ResNet(nn.Module):
    def __init__(self, *blocks, dim=2):
        super().__init__()
        self.conv1 = CONVOLUTIONS[dim](3, 4, 3, padding=1)
        self.bn1 = BATCH_NORMS[dim](4)
        self.layer1 = nn.Sequential(*blocks)
        self.fc = nn.LazyLinear(5)

    def forward(self, x):
        return self.fc(self.layer1(F.relu(self.bn1(self.conv1(x)))).flatten(2).mean(-1))


def changed(module, **layers):
    """The module with other layers."""
    for name, layer in layers.items():
        setattr(module, name, layer)
    return module


def network(*blocks, dim=2):
    """The blocks in a network whose numbers are not the first ones, and an input for it; float64."""
    model = ResNet(*blocks, dim=dim).double()
    x = torch.randn(4, 3, *(8, 7, 6)[:dim], dtype=torch.float64)
    model(x)
    return randomise(model), x


def shrinkages(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, Shrinkage)}


def shrunk_by_hooks(model, converted):
    """The model before its conversion, with copies of the converted one's shrinkages in hooks, in plain PyTorch."""
    for name, shrinkage in shrinkages(converted).items():
        shrinkage = copy.deepcopy(shrinkage)
        shrinkage.use_reference = True
        layer = name.removesuffix(".shrinkage")

        def hook(module, args, y, shrinkage=shrinkage, behind=layer != name):
            return shrinkage.train(module.training)(y if behind else args[0])

        model.get_submodule(layer).register_forward_hook(hook)
    return model


def check_same(model, expected, x):
    for training in (True, False):
        torch.testing.assert_close(
            model.train(training)(x), expected.train(training)(x), rtol=1e-9, atol=1e-9
        )


BEHIND = [
    (lambda: [BasicBlock(4, 6, 2), BasicBlock(6, 6)], "bn2", "BatchNorm2d", 6, 2),
    (lambda: [Bottleneck(4, 5, 2), Bottleneck(10, 5)], "bn3", "BatchNorm2d", 10, 2),
    (lambda: [PreActBlock(4, 6, 2), PreActBlock(6, 6)], "conv2", "Conv2d", 6, 2),
    (lambda: [BasicBlock(4, 6, 2, dim=1), BasicBlock(6, 6, dim=1)], "bn2", "BatchNorm1d", 6, 1),
    (lambda: [BasicBlock(4, 6, 2, dim=3), BasicBlock(6, 6, dim=3)], "bn2", "BatchNorm3d", 6, 3),
    (lambda: [SequenceBlock(4, 6, 2), SequenceBlock(6, 6)], "bn2", "BatchNorm2d", 6, 2),
    (lambda: [ResNetDBlock(4, 6, 2), ResNetDBlock(6, 6)], "bn2", "BatchNorm2d", 6, 2),
    (lambda: [WideShortcutBlock(4, 6, 2), WideShortcutBlock(6, 6)], "bn2", "BatchNorm2d", 6, 2),
    (lambda: [NamedBlock(4, 6, 2), NamedBlock(6, 6)], "bn2", "BatchNorm2d", 6, 2),
    (lambda: [NamedBlock(4, 6, 2, "i_downsample"), NamedBlock(6, 6)], "bn2", "BatchNorm2d", 6, 2),
    (lambda: [LayersBlock(4, 6, 2), LayersBlock(6, 6)], "layers.2", "BatchNorm2d", 6, 2),
    (lambda: [LayersBlock(4, 6, 2, "body"), LayersBlock(6, 6, name="body")], "body.2", "BatchNorm2d", 6, 2),
    (lambda: plain(RSBU), "conv2", "Conv1d", 6, 1),
    (lambda: plain(RSNetBlock), "residual_function.4", "BatchNorm1d", 6, 1),
]


def plain(unit):
    """Two of this package's units without shrinkage."""
    return [unit(4, 6, stride=2, thresholds=None), unit(6, 6, thresholds=None)]


@pytest.mark.parametrize("blocks, layer, kind, channels, dim", BEHIND)
def test_behind_the_last_convolution(blocks, layer, kind, channels, dim):
    model, x = network(*blocks(), dim=dim)
    before = copy.deepcopy(model)
    report = convert(model, reduction=2)
    assert report.placements == tuple(
        Placement(f"layer1.{i}.{layer}.shrinkage", channels, "behind", kind) for i in (0, 1)
    )
    assert list(shrinkages(model)) == [placement.name for placement in report.placements]
    check_same(model, shrunk_by_hooks(before, model), x)
    model.train()(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("squeeze", [SEModule, SE_Layer])
def test_in_the_place_of_squeeze_and_excite(squeeze):
    model, x = network(SEBasicBlock(4, 6, 2, squeeze), BasicBlock(6, 6), SEBasicBlock(6, 6, 1, squeeze))
    before = copy.deepcopy(model)
    report = convert(model, thresholds="channel-shared")
    kind = squeeze.__name__
    assert report.placements == (
        Placement("layer1.0.se", 6, "in the place of", kind),
        Placement("layer1.1.bn2.shrinkage", 6, "behind", "BatchNorm2d"),
        Placement("layer1.2.se", 6, "in the place of", kind),
    )
    count = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in before.parameters())
    assert report.added - report.removed == count
    assert report.removed == 2 * sum(p.numel() for p in squeeze(6).parameters())
    check_same(model, shrunk_by_hooks(before, model), x)


@pytest.mark.parametrize(
    "name",
    """SE SELayer SELayer1D SELayer1d SELayer_1d SEBlock1d SEUnit SEAttention SqueezeExcite1d SqueezeExcitation2D
    SqueezeAndExcitation ChannelSELayer3D EffectiveSEModule""".split(),
)
def test_class_names_of_squeeze_and_excite(name):
    model = nn.Sequential(type(name, (SEModule,), {})(4))
    assert convert(model).placements == (Placement("0", 4, "in the place of", name),)


def test_a_squeeze_and_excite_module_within_another():
    model = nn.Sequential(type("SEUnit", (nn.Sequential,), {})(SEModule(4)))
    report = convert(model)
    assert [one.name for one in report.placements] == ["0"]
    assert report.removed == sum(p.numel() for p in SEModule(4).parameters())


def test_a_relu_at_the_end_of_a_branch_stays():
    block = RSNetBlock(4, 4, thresholds=None)
    block.relu = nn.ReLU()
    block.residual_function.append(block.relu)
    assert [one.name for one in convert(block).placements] == ["residual_function.4.shrinkage"]
    assert type(block.relu) is nn.ReLU


def test_the_report_in_print():
    model, _ = network(SEBasicBlock(4, 6), BasicBlock(6, 6))
    report = convert(model)
    assert str(report).splitlines() == [
        "layer1.0.se                 6 channels  in the place of SEModule",
        "layer1.1.bn2.shrinkage      6 channels  behind BatchNorm2d",
        f"2 in all: {report.added} parameters added, {report.removed} removed",
    ]
    assert (report.added, report.removed) == (2 * (2 * 42 + 12), 14 + 18)


def test_the_options_reach_every_shrinkage():
    model, _ = network(SEBasicBlock(4, 6), BasicBlock(6, 6))
    convert(model, thresholds="channel-wise", statistic="sample", reduction=3, norm="rms")
    for shrinkage in shrinkages(model).values():
        assert (shrinkage.statistic, shrinkage.reduction, shrinkage.norm) == ("sample", 3, "rms")
        assert shrinkage.fc[3].weight.shape == (6, 2)


def test_dtype_device_and_mode_are_kept():
    model, _ = network(SEBasicBlock(4, 6), BasicBlock(6, 6))
    model = model.to(torch.bfloat16).to("meta").eval().requires_grad_(False)
    model.layer1[0].train()
    convert(model)
    for name, shrinkage in shrinkages(model).items():
        numbers = [value for value in shrinkage.state_dict().values() if value.is_floating_point()]
        assert {(value.dtype, value.device.type) for value in numbers} == {(torch.bfloat16, "meta")}
        modes = {module.training for module in shrinkage.modules()}
        assert modes == {name.startswith("layer1.0")}
        assert all(parameter.requires_grad for parameter in shrinkage.parameters())
    assert model.layer1[0].training and not model.layer1[1].bn2.training


def test_a_frozen_batch_norm_stays_frozen():
    model, x = network(BasicBlock(4, 4))
    model.layer1[0].bn2.eval()
    mean = model.layer1[0].bn2.running_mean.clone()
    convert(model)
    model(x)
    assert torch.equal(model.layer1[0].bn2.layer.running_mean, mean)


def test_a_block_without_parameters():
    block = BasicBlock(4, 4).double()
    block.count = nn.Buffer(torch.tensor(0))
    for layer in list(block.modules()):
        for name, parameter in list(layer.named_parameters(recurse=False)):
            delattr(layer, name)
            layer.register_buffer(name, parameter.detach())
    convert(block)
    assert {parameter.dtype for parameter in block.parameters()} == {torch.float64}
    block(torch.randn(2, 4, 5, 5, dtype=torch.float64))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_checkpoint_from_before_loads(copied):
    model, x = network(BasicBlock(4, 6, 2), PreActBlock(6, 8), SEBasicBlock(8, 6))
    state = {
        key: torch.rand_like(value.double()).to(value.dtype) for key, value in model.state_dict().items()
    }
    convert(model)
    model = copied(model)
    loaded = model.load_state_dict(state, strict=False)
    assert all(".shrinkage.fc." in key or ".se.fc." in key for key in loaded.missing_keys)
    assert {key.rpartition(".")[0] for key in loaded.unexpected_keys} == {
        "layer1.2.se.fc1",
        "layer1.2.se.fc2",
    }
    block = model.layer1[0]
    assert torch.equal(block.bn2.layer.weight, state["layer1.0.bn2.weight"])
    assert torch.equal(block.bn2.layer.running_var, state["layer1.0.bn2.running_var"])
    assert torch.equal(model.layer1[1].conv2.layer.weight, state["layer1.1.conv2.weight"])
    own = {key: value.clone() for key, value in model.state_dict().items()}
    assert "layer1.0.bn2.layer.weight" in own and "layer1.0.bn2.shrinkage.fc.0.weight" in own
    copied(model).load_state_dict(own, strict=True)


def test_a_checkpoint_of_a_layer_with_a_child_called_layer():
    model, _ = network(changed(BasicBlock(4, 4), bn2=ScaledNorm(4)))
    before = {key: torch.rand_like(value.double()) for key, value in model.state_dict().items()}
    convert(model)
    loaded = model.load_state_dict(before, strict=False)
    assert not loaded.unexpected_keys and all(".shrinkage.fc." in key for key in loaded.missing_keys)
    bn2 = model.layer1[0].bn2
    assert torch.equal(bn2.layer.weight, before["layer1.0.bn2.weight"])
    assert torch.equal(bn2.layer.layer.weight, before["layer1.0.bn2.layer.weight"])
    after = {key: value + 1 for key, value in model.state_dict().items()}
    model.load_state_dict(after, strict=True)
    assert all(torch.equal(value, after[key]) for key, value in model.state_dict().items())


def test_the_batch_norm_is_in_the_operator():
    model, x = network(BasicBlock(4, 4))
    convert(model)
    names = operators_of(model, x)
    assert len(names) == 1 and names[0].startswith("batch_norm_shrink")


def test_where():
    model, _ = network(SEBasicBlock(4, 6), BasicBlock(6, 6), BasicBlock(6, 6))
    asked = []

    def second(name, module):
        asked.append((name, type(module)))
        return name == "layer1.2"

    assert [one.name for one in convert(model, where=second).placements] == ["layer1.2.bn2.shrinkage"]
    assert asked == [("layer1.0.se", SEModule), ("layer1.1", BasicBlock), ("layer1.2", BasicBlock)]
    # what holds a shrinkage is left alone
    rest = [one.name for one in convert(model).placements]
    assert rest == ["layer1.0.se", "layer1.1.bn2.shrinkage"]


def test_a_module_with_two_names_is_one_place():
    block = SEBasicBlock(4, 4)
    block.attention = block.se
    block.tail = nn.Sequential(block.se)
    report = convert(block)
    assert [one.name for one in report.placements] == ["se"]
    assert isinstance(block.se, Shrinkage) and block.attention is block.se and block.tail[0] is block.se


def test_a_layer_of_two_blocks_is_one_place():
    blocks = pair()
    blocks[0].bn2 = blocks[1].bn2
    report = convert(blocks)
    assert [one.name for one in report.placements] == ["0.bn2.shrinkage"]
    assert blocks[0].bn2 is blocks[1].bn2 and type(blocks[0].bn2.layer) is nn.BatchNorm2d


def test_what_only_looks_alike_is_left_alone():
    class SEBlock(nn.Sequential):
        """Such a name, but no squeeze: a convolution of width 3, or another number of channels."""

    class DoubleConvolution(nn.Module):
        """Two convolutions without a shortcut."""

        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = nn.Conv1d(2, 2, 3), nn.Conv1d(2, 2, 3)

    network = type("SENet", (SEModule,), {})(4)
    squeezes = [SEBlock(nn.Conv1d(4, 4, 3)), SEBlock(nn.Linear(4, 2)), SEBlock(), network]
    with pytest.raises(ValueError, match="no place"):
        convert(nn.Sequential(*squeezes, DoubleConvolution()))


WAYS_OUT = {
    "pooling": lambda: nn.MaxPool2d(2),
    "poolings": lambda: nn.Sequential(nn.AvgPool2d(2), nn.MaxPool2d(1)),
    "pooling and dropout": lambda: nn.Sequential(nn.MaxPool2d(2), nn.Dropout2d(0.1)),
    "convolution": lambda: nn.Conv2d(6, 6, 2, 2),
    "pooling and convolution": lambda: nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(6, 6, 3, padding=1)),
}


@pytest.mark.parametrize("way", WAYS_OUT)
@pytest.mark.parametrize("channels", [4, 6])
def test_an_encoder_is_no_residual_block(way, channels):
    """Its last level, which has no way out, is none either: it is of the same class."""
    model = nn.Sequential(Encoder(channels, 6, WAYS_OUT[way]()), Encoder(6, 6, None))
    with pytest.raises(ValueError, match=r"Sequential with no place .* that is no pooling alone\)"):
        convert(model)
    # beside residual blocks it stays as it is
    model.append(BasicBlock(6, 6))
    assert [one.name for one in convert(model).placements] == ["2.bn2.shrinkage"]


def test_a_pooling_by_the_name_of_shortcut_is_one():
    model = changed(PreActBlock(4, 4, 2), shortcut=nn.MaxPool2d(2))
    assert [one.name for one in convert(model).placements] == ["conv2.shrinkage"]


def test_a_stage_of_blocks_is_no_block():
    class ConvNeXtBlock(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.mlp = nn.Conv2d(4, 4, 7, padding=3), nn.Linear(4, 4)

    class Stage(nn.Module):
        def __init__(self, *blocks):
            super().__init__()
            self.downsample, self.blocks = nn.Identity(), nn.Sequential(*blocks)

    for block in (ConvNeXtBlock, lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))):
        with pytest.raises(ValueError, match="no place"):
            convert(Stage(block(), block()))


def test_the_message_says_what_is_looked_for():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv1d(2, 2, 3), nn.Conv1d(2, 2, 3)
            self.skip = None

    names = "downsample, identity_downsample, i_downsample or shortcut"
    with pytest.raises(ValueError, match=rf"\(conv1, conv2, ... or one Sequential of layers, and a {names} "):
        convert(Odd())


def test_a_second_conversion_says_what_is_there():
    model, _ = network(BasicBlock(4, 6), BasicBlock(6, 6))
    first = convert(model, where=lambda name, module: name == "layer1.1")
    assert first.kept == () and len(str(first).splitlines()) == 2
    second = convert(model)
    assert [one.name for one in second.placements] == ["layer1.0.bn2.shrinkage"]
    assert second.kept == ("layer1.1.bn2.shrinkage",)
    assert str(second).splitlines()[-1] == "1 were there before, layer1.1.bn2.shrinkage the first"
    state = list(model.state_dict())
    with pytest.raises(
        ValueError, match=r"got ResNet that has 2 shrinkages already, layer1\.0\.bn2\.shrinkage the first"
    ):
        convert(model)
    assert list(model.state_dict()) == state


class SEUnit(SEModule):
    """A squeeze-and-excite module that may leave some positions out of its means."""

    def forward(self, x, mask=None):
        return super().forward(x if mask is None else x * mask)


class MaskedBlock(BasicBlock):
    def __init__(self, named):
        super().__init__(4, 4)
        self.se = SEUnit(4)
        self.named = named

    def forward(self, x, mask=None):
        y = self.branch(x)
        return self.relu((self.se(y, mask=mask) if self.named else self.se(y, mask)) + x)


@pytest.mark.parametrize("named", [False, True])
def test_a_mask_is_not_added_as_a_residual(named):
    block, x = MaskedBlock(named), torch.randn(2, 4, 5, 5)
    report = convert(block)
    assert report.placements == (Placement("se", 4, "in the place of", "SEUnit"),)
    assert block(x).shape == x.shape
    with pytest.raises(
        TypeError, match=r"another argument than x, .* 4 channels .* `where` of drsn_ops.convert"
    ):
        block(x, torch.ones(2, 1, 5, 5))
    if not named:
        compiled = torch.compile(block, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), block(x))


def test_one_module_in_two_roles_is_refused():
    model = BasicBlock(4, 4)
    model.bn2 = model.bn1
    with pytest.raises(ValueError, match=r"got one module as bn1 and bn2 of BasicBlock, .* behind bn2 "):
        convert(model)
    model = LayersBlock(4, 4)
    model.layers.append(model.layers[2])
    with pytest.raises(ValueError, match=r"got one module as 2 and 4 of Sequential, .* behind layers\.4 "):
        convert(model)
    assert type(model.layers[2]) is nn.BatchNorm2d


def test_hooks_are_not_lost_in_silence():
    model, x = network(SEBasicBlock(4, 6), BasicBlock(6, 6))
    seen = []
    hook = model.layer1[0].se.fc1.register_forward_hook(lambda *_: seen.append("fc1"))
    with pytest.raises(ValueError, match=r"got hooks on layer1\.0\.se, which is replaced"):
        convert(model)
    hook.remove()
    model.layer1[1].bn2.register_forward_hook(lambda *_: seen.append("bn2"))
    convert(model)
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: seen.append(name))
    model(x)
    assert set(seen) == {"bn2", *(name for name, _ in model.named_modules())}


@pytest.mark.parametrize(
    "wrap, blocks, dim",
    [
        (nn.DataParallel, lambda: plain(RSNetBlock), 1),
        (
            lambda model: torch.compile(model, backend="eager"),
            lambda: [SEBasicBlock(4, 4), BasicBlock(4, 4)],
            2,
        ),
        (nn.Sequential, lambda: [SEBasicBlock(4, 4), BasicBlock(4, 4)], 2),
    ],
    ids=["DataParallel", "compile", "Sequential"],
)
def test_wrapped_networks(wrap, blocks, dim):
    model, x = network(*blocks(), dim=dim)
    wrapped = wrap(model)
    wrapped(x)
    before = copy.deepcopy(model)
    names = [one.name for one in convert(wrapped).placements]
    inner = [name for name in dict(wrapped.named_modules()) if name in names]
    assert inner == names and len(names) == 2
    torch.testing.assert_close(wrapped(x), shrunk_by_hooks(before, model)(x), rtol=1e-9, atol=1e-9)


def test_what_would_not_see_a_shrinkage_is_refused():
    model, x = network(BasicBlock(4, 4))
    traced = torch.fx.symbolic_trace(model)
    for sealed, name in ((torch.jit.trace(model.eval(), x), "ScriptModule"), (traced, "GraphModule")):
        with pytest.raises(ValueError, match=f"model: got a {name}, expected the module that it was made of"):
            convert(sealed)
        with pytest.raises(ValueError, match=f"model: got a {name} at 0, expected the module"):
            convert(nn.Sequential(sealed))
    # beside them there may be places
    assert [one.name for one in convert(nn.Sequential(traced.fc, BasicBlock(4, 4))).placements] == [
        "1.bn2.shrinkage"
    ]


def test_a_network_that_is_distributed_already_is_refused():
    model, _ = network(BasicBlock(4, 4))
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        replica = nn.parallel.DistributedDataParallel(model)
        with pytest.raises(
            ValueError, match="got a DistributedDataParallel, expected the module that it wraps"
        ):
            convert(replica)
    finally:
        torch.distributed.destroy_process_group()
    assert not shrinkages(model)


def test_a_block_on_two_devices():
    block = BasicBlock(4, 4)
    block.bn2.to("meta")
    convert(block)
    assert {one.device.type for one in block.bn2.shrinkage.parameters()} == {"meta"}


def zero_init(block):
    """A block whose branch starts at 0, as libraries initialise it."""
    last = block.conv2 if isinstance(block, PreActBlock) else block.bn2
    for parameter in last.parameters():
        nn.init.zeros_(parameter)
    return block


def failing(name, module):
    if name == "1":
        raise RuntimeError("name: 1")
    return True


def layer_norm_block():
    return changed(BasicBlock(6, 6), bn2=LayerNorm2d(6))


def lazy_block():
    return changed(BasicBlock(6, 6), conv2=nn.LazyConv2d(6, 3, padding=1))


def lazy_squeeze():
    return changed(SE_Layer(6), fc=nn.Sequential(nn.LazyLinear(2), nn.ReLU(), nn.Linear(2, 6)))


def pair(*blocks):
    return nn.Sequential(BasicBlock(4, 6), *(blocks or [BasicBlock(6, 6)]))


ERRORS = [
    (pair, {"thresholds": None}, ValueError, r"thresholds: got None, expected 'channel-wise' or"),
    (pair, {"statistic": "batch"}, ValueError, r"statistic: got 'batch', expected"),
    (pair, {"reduction": 0}, ValueError, r"reduction: got 0, expected an integer of at least 1"),
    (pair, {"norm": "group"}, ValueError, r"norm: got 'group', expected"),
    (pair, {"where": "layer1"}, TypeError, r"where: got str, expected a function of a name and a module"),
    (pair, {"where": lambda name, module: False}, ValueError, r"model: got Sequential with no place for"),
    (pair, {"where": failing}, RuntimeError, r"name: 1"),
    (lambda: pair(zero_init(BasicBlock(6, 6))), {}, ValueError, r"all 0 in front of 1\.bn2\.shrinkage"),
    (lambda: pair(zero_init(layer_norm_block())), {}, ValueError, r"all 0 in front of 1\.bn2\.shrinkage,"),
    (lambda: pair(lazy_block()), {}, ValueError, r"lazy modules without their numbers at 1\.bn2, expected"),
    (lambda: pair(lazy_squeeze()), {}, ValueError, r"lazy modules without their numbers at 1, expected"),
    (lambda: pair(zero_init(SEBasicBlock(6, 6))), {}, ValueError, r"all 0 in front of 1\.se, where"),
    (lambda: pair(zero_init(PreActBlock(6, 8))), {}, ValueError, r"all 0 in front of 1\.conv2\.shrinkage"),
]


@pytest.mark.parametrize("build, options, kind, message", ERRORS, ids=[error[-1] for error in ERRORS])
def test_errors_change_nothing(build, options, kind, message):
    model = build()
    before = list(model.named_modules()), list(model.state_dict())
    with pytest.raises(kind, match=message):
        convert(model, **options)
    assert (list(model.named_modules()), list(model.state_dict())) == before


def test_a_model_that_is_none():
    with pytest.raises(TypeError, match=r"model: got list, expected a torch.nn.Module"):
        convert([BasicBlock(4, 4)])


def test_a_normalisation_without_weights_may_come_first():
    model = BasicBlock(4, 4)
    model.bn2 = nn.BatchNorm2d(4, affine=False)
    assert len(convert(model).placements) == 1


def library(name):
    """The library, or a skip where it is not installed or was built for another PyTorch."""
    try:
        return pytest.importorskip(name)
    except RuntimeError as error:
        pytest.skip(f"{name} does not load with this PyTorch: {error}")


@pytest.mark.parametrize(
    "name, count, kind",
    [
        ("resnet18", 8, "behind BatchNorm2d"),
        ("resnet50", 16, "behind BatchNorm2d"),
        ("mobilenet_v3_small", 9, "in the place of SqueezeExcitation"),
        ("regnet_y_400mf", 16, "in the place of SqueezeExcitation"),
    ],
)
def test_torchvision(name, count, kind):
    model = library("torchvision").models.get_model(name, weights=None)
    check_library(model, count, kind)


@pytest.mark.parametrize(
    "name, count, kind",
    [
        ("resnet18", 8, "behind BatchNorm2d"),
        ("seresnet18", 8, "in the place of SEModule"),
        ("resnetv2_50", 16, "behind Conv2d"),
        ("regnetx_002", 13, "behind ConvNormAct"),
        ("mobilenetv3_small_100", 9, "in the place of SqueezeExcite"),
    ],
)
def test_timm(name, count, kind):
    options = {"zero_init_last": False} if "net18" in name or "regnet" in name else {}
    check_library(library("timm").create_model(name, **options), count, kind)


def check_library(model, count, kind):
    expected = copy.deepcopy(model)
    report = convert(model, reduction=16)
    assert [f"{one.kind} {one.other}" for one in report.placements] == count * [kind]
    expected = shrunk_by_hooks(expected, model)
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model.eval()(x), expected.eval()(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("old", ["rsnet", "conversion"])
def test_pickles_that_name_a_former_module_load(old):
    network = rsnet18(3, 4) if old == "rsnet" else nn.Sequential(BasicBlock(4, 4))
    if old == "conversion":
        convert(network)
    content = pickle.dumps(network, 2)
    renamed = content.replace(f"cdrsn_ops.models.{old}\n".encode(), f"cdrsn_ops.{old}\n".encode())
    assert renamed != content
    assert [type(m) for m in pickle.loads(renamed).modules()] == [type(m) for m in network.modules()]
