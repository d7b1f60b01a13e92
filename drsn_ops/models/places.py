"""Finds the places for a shrinkage in a network: squeeze-and-excite modules and the ends of residual branches."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd

from ..modules import Shrinkage

# What a block calls its shortcut, which is None where it is x itself.
SHORTCUTS = ("downsample", "identity_downsample", "i_downsample", "shortcut")
# The class names of squeeze-and-excite modules, in lower case and without underscores.
SQUEEZE = re.compile(
    r"(effective|channel)?(se|squeeze(and)?excit(e|ation))(module|layer|block|unit|attention)?([123]d)?"
)


@dataclass(frozen=True)
class Place:
    """The place of a module in a model: a shrinkage comes behind it, or instead of a squeeze-and-excite module."""

    parent: nn.Module
    name: str
    channels: int
    squeeze: bool


def find_places(model: nn.Module, where: Callable[[str, nn.Module], bool]) -> dict[nn.Module, Place]:
    """Every module that gets a shrinkage behind it or in its place, in the order of the model's modules.

    Args:
        model: the network.
        where: called with the name and the module of each candidate; False leaves it as it is.
    """
    # by class: only the first block of a stage may have a shortcut as an attribute
    verdicts = [
        (type(block), _has_shortcut(block, branch)) for block in model.modules() if (branch := _branch(block))
    ]
    classes = {kind for kind, verdict in verdicts if verdict} - {
        kind for kind, verdict in verdicts if verdict is False
    }
    places: dict[nn.Module, Place] = {}
    replaced: set[nn.Module] = set()
    for name, module in model.named_modules():
        # what is inside a replaced module goes with it
        if module in replaced:
            continue
        if name and (channels := _squeeze_channels(module)):
            if where(name, module):
                parent = model.get_submodule(name.rpartition(".")[0])
                places[module] = Place(parent, name, channels, True)
                replaced.update(module.modules())
        elif type(module) in classes and (branch := _branch(module)) and not _has_gate(module):
            if where(name, module):
                at = f"{name}.{branch.end}" if name else branch.end
                parent = model.get_submodule(at.rpartition(".")[0])
                channels = branch.convolutions[-1].out_channels
                # several blocks may share the layer
                places.setdefault(model.get_submodule(at), Place(parent, at, channels, False))
    return places


def _squeeze_channels(module: nn.Module) -> int | None:
    """The number of channels of a squeeze-and-excite module, None for any other module."""
    if not SQUEEZE.fullmatch(type(module).__name__.replace("_", "").lower()):
        return None
    ends: list[tuple[int, int]] = []
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            ends.append((layer.in_features, layer.out_features))
        elif isinstance(layer, _ConvNd):
            if set(layer.kernel_size) != {1}:
                return None
            ends.append((layer.in_channels, layer.out_channels))
    # a lazy layer says that it takes 0 channels: found here, it is refused later, not passed over in silence
    return ends[-1][1] if ends and ends[0][0] in (ends[-1][1], 0) else None


def _has_gate(block: nn.Module) -> bool:
    """Whether the block has a shrinkage or a squeeze-and-excite module."""
    return any(isinstance(one, Shrinkage) or _squeeze_channels(one) for one in block.modules())


@dataclass(frozen=True)
class _Branch:
    """The convolutions of a residual branch, two at least, and the name of the layer that ends it."""

    convolutions: list[_ConvNd]
    end: str


def _branch(block: nn.Module) -> _Branch | None:
    """The block's branch: ``conv1``, ``conv2`` and so on, or else its only Sequential of several convolutions."""
    # by every name, also where one module has two
    children = {name: child for name, child in block._modules.items() if child is not None}
    numbered = {
        int(name[4:]): layers
        for name, child in children.items()
        if re.fullmatch(r"conv\d+", name) and (layers := _convolutions(child))
    }
    if len(numbered) > 1:
        last = max(numbered)
        ends = [name for name in children if name in (f"conv{last}", f"bn{last}", f"norm{last}")]
        return _Branch([layer for number in sorted(numbered) for layer in numbered[number]], ends[-1])
    branches = [
        _Branch(_convolutions(child), f"{name}.{_last_weighted(child)}")
        for name, child in children.items()
        if name not in SHORTCUTS and isinstance(child, nn.Sequential) and _is_sequence_of_layers(child)
    ]
    return branches[0] if len(branches) == 1 else None


def _last_weighted(branch: nn.Sequential) -> str:
    """The name of the last layer with weights: a ReLU behind it may be the one that is called after the sum too."""
    return [name for name, layer in branch._modules.items() if layer is not None and layer.state_dict()][-1]


def _is_sequence_of_layers(module: nn.Sequential) -> bool:
    """Whether it has several convolutions, one a layer, and no layer that is a block of its own."""
    layers = [layer for layer in module if _convolutions(layer)]
    return len(layers) > 1 and all(
        len(_convolutions(layer)) == 1 and not any(isinstance(one, nn.Linear) for one in layer.modules())
        for layer in layers
    )


def _has_shortcut(block: nn.Module, branch: _Branch) -> bool | None:
    """Whether the block has a shortcut, even one that is None; None where it has no attribute of such a name."""
    named = {name: getattr(block, name, False) for name in SHORTCUTS}
    found = {name: one for name, one in named.items() if one is None or callable(one)}
    # what is called "shortcut" is one
    return any("shortcut" in name or _leads_past(found[name], branch) for name in found) if found else None


def _leads_past(downsample: object, branch: _Branch) -> bool:
    """Whether what a block calls ``downsample`` leads past the branch; in an encoder it comes behind the branch."""
    if not isinstance(downsample, nn.Module):
        return True
    convolutions = _convolutions(downsample)
    if not convolutions:
        return not _pools(downsample)
    first, last = branch.convolutions[0], branch.convolutions[-1]
    taken = {first.in_channels, convolutions[0].in_channels} - {0}  # 0 of a lazy layer
    if len(taken) > 1 or convolutions[-1].out_channels != last.out_channels:
        return False
    narrow = all(set(one.kernel_size) == {1} for one in convolutions)
    return narrow or _stride(downsample.modules()) == _stride(branch.convolutions)


def _convolutions(module: nn.Module) -> list[_ConvNd]:
    return [layer for layer in module.modules() if isinstance(layer, _ConvNd)]


def _pools(module: nn.Module) -> bool:
    """Whether the module is a pooling, or a Sequential of poolings and dropouts."""
    if isinstance(module, nn.Sequential):
        layers = [one for one in module if not isinstance(one, _DropoutNd)]
        return bool(layers) and all(map(_pools, layers))
    return "pool" in type(module).__name__.lower() and not _convolutions(module)


def _stride(layers: Iterable[nn.Module]) -> int:
    """The product of their strides along the first axis."""
    strides = [getattr(layer, "stride", 1) for layer in layers if not list(layer.children())]
    return math.prod(one[0] if isinstance(one, tuple) else one for one in strides)
