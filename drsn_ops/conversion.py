"""Puts `Shrinkage` into a ResNet that is already there, a pretrained one or one of another library."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.conv import _ConvNd

from .functional import Statistic
from .modules import Shrinkage
from .rsnet import shrink_behind

# The class names, in lower case and without underscores, of squeeze-and-excite modules.
SQUEEZE = re.compile(
    r"(effective|channel)?(se|squeezeexcit(e|ation)|squeezeandexcit(e|ation))(module|layer|block)?"
)


class ShrunkLayer(nn.Module):
    """A layer and the shrinkage behind it: ``shrinkage(layer(x))``.

    A BatchNorm is computed together with the shrinkage, see `drsn_ops.batch_norm_shrink`. `load_state_dict` takes
    the bare layer's names too, those of a checkpoint from before the conversion.
    """

    def __init__(self, layer: nn.Module, shrinkage: Shrinkage) -> None:
        super().__init__()
        self.layer = layer
        self.shrinkage = shrinkage
        self.register_load_state_dict_pre_hook(lower_names)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.layer, _BatchNorm):
            return shrink_behind(self.layer, self.shrinkage, x)
        y: Tensor = self.shrinkage(self.layer(x))
        return y


def lower_names(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
    """Renames what a checkpoint calls by the bare layer's names, ``weight``, to ``layer.weight``."""
    for key in [key for key in state_dict if key.startswith(prefix)]:
        name = key[len(prefix) :]
        if not name.startswith(("layer.", "shrinkage.")):
            state_dict[f"{prefix}layer.{name}"] = state_dict.pop(key)


@dataclass(frozen=True)
class Placement:
    """One `Shrinkage` that `convert` put into a model.

    Attributes:
        name: its name within the model.
        channels: the number of its channels.
        kind: ``"behind"`` a layer, or ``"in the place of"`` a squeeze-and-excite module.
        other: the class of that layer or module.
    """

    name: str
    channels: int
    kind: str
    other: str


@dataclass(frozen=True)
class Conversion:
    """What `convert` did; printed, it is a table.

    Attributes:
        placements: every `Shrinkage` that was put in, in the order of the model's modules.
        added: the number of parameters that they have.
        removed: the number of parameters of the squeeze-and-excite modules that are gone.
    """

    placements: tuple[Placement, ...]
    added: int
    removed: int

    def __str__(self) -> str:
        width = max(len(one.name) for one in self.placements)
        rows = [
            f"{one.name:<{width}}  {one.channels:>5} channels  {one.kind} {one.other}"
            for one in self.placements
        ]
        total = f"{len(rows)} in all: {self.added} parameters added, {self.removed} removed"
        return "\n".join([*rows, total])


@dataclass(frozen=True)
class _Place:
    """A child of a module that gets a shrinkage behind it or, a squeeze-and-excite module, in its place."""

    parent: nn.Module
    child: str
    name: str
    channels: int
    squeeze: bool

    @property
    def module(self) -> nn.Module:
        return self.parent.get_submodule(self.child)

    @property
    def placement(self) -> Placement:
        name, kind = (self.name, "in the place of") if self.squeeze else (f"{self.name}.shrinkage", "behind")
        return Placement(name, self.channels, kind, type(self.module).__name__)


def _squeeze_channels(module: nn.Module) -> int | None:
    """The number of channels of a squeeze-and-excite module, None for any other."""
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
    return ends[0][0] if ends and ends[0][0] == ends[-1][1] else None


def _convolutions(block: nn.Module) -> dict[int, _ConvNd]:
    """The convolution of each child that is called ``convN``, the last one of a child that has several."""
    found = {}
    for name, child in block.named_children():
        layers = [layer for layer in child.modules() if isinstance(layer, _ConvNd)]
        if layers and (number := re.fullmatch(r"conv(\d+)", name)):
            found[int(number[1])] = layers[-1]
    return found


def _adds_shortcut(module: nn.Module) -> bool:
    """Whether the module has a ``downsample`` or ``shortcut``, even one of None, as residual blocks have."""
    shortcuts = [getattr(module, name, False) for name in ("downsample", "shortcut")]
    return any(one is None or isinstance(one, nn.Module) for one in shortcuts)


def _holds(block: nn.Module) -> bool:
    """Whether the block has a shrinkage or a squeeze-and-excite module."""
    return any(isinstance(one, Shrinkage) or _squeeze_channels(one) for one in block.modules())


def _places(model: nn.Module) -> Iterator[tuple[str, nn.Module, _Place]]:
    """Every place for a shrinkage, with the name and the module that ``where`` decides on."""
    # only the first block of a stage may have the attribute
    classes = {type(one) for one in model.modules() if len(_convolutions(one)) > 1 and _adds_shortcut(one)}
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        # not named_children, which leaves out the second name of a module
        for child, squeeze in module._modules.items():
            if squeeze is not None and (channels := _squeeze_channels(squeeze)):
                at = f"{prefix}{child}"
                yield at, squeeze, _Place(module, child, at, channels, True)
        if type(module) in classes and len(_convolutions(module)) > 1 and not _holds(module):
            last, convolution = max(_convolutions(module).items())
            names = {f"conv{last}", f"bn{last}", f"norm{last}"}
            child = [child for child, _ in module.named_children() if child in names][-1]
            at = f"{prefix}{child}"
            yield name, module, _Place(module, child, at, convolution.out_channels, False)


def _returns_zeros(layer: nn.Module) -> bool:
    """Whether weight and bias are all 0, as the last layers of residual branches often start."""
    numbers = [one for one in (layer.weight, layer.bias) if isinstance(one, Tensor)]
    return bool(numbers) and not any(one.is_meta or one.any() for one in numbers)


def _require_signal(place: _Place) -> None:
    """Raise ValueError where the layer in front of the shrinkage returns zeros: no gradient would ever reach it."""
    layers: list[nn.Module] = []
    for child in place.parent.children():
        if place.squeeze and child is place.module:
            break
        layers += [
            layer for layer in child.modules() if isinstance(layer, (_ConvNd, _NormBase, nn.GroupNorm))
        ]
        if child is place.module:
            break
    if layers and _returns_zeros(layers[-1]):
        raise ValueError(
            f"model: got weights that are all 0 in front of {place.placement.name}, where a "
            "shrinkage passes no gradient, expected others (zero_init_residual=False in torchvision, "
            "zero_init_last=False in timm)"
        )


def _make(place: _Place, options: dict[str, Any]) -> Shrinkage:
    """A shrinkage for the place, in the dtype, on the device and in the mode of what is there."""
    there = place.module if place.squeeze else place.parent
    weight = next(there.parameters())
    _require_signal(place)
    return Shrinkage(place.channels, **options).to(weight.device, weight.dtype).train(there.training)


def _put(place: _Place, shrinkage: Shrinkage) -> None:
    """Puts the shrinkage where it belongs."""
    if place.squeeze:
        setattr(place.parent, place.child, shrinkage)
    else:
        shrunk = ShrunkLayer(place.module, shrinkage)
        shrunk.training = shrinkage.training
        setattr(place.parent, place.child, shrunk)


def convert(
    model: nn.Module,
    *,
    thresholds: str = "channel-wise",
    statistic: Statistic | None = None,
    reduction: int = 1,
    norm: str = "batch",
    where: Callable[[str, nn.Module], bool] | None = None,
) -> Conversion:
    """Puts a `Shrinkage` into each residual block of a ResNet, in place, and reports where::

        network = torchvision.models.resnet18(weights="DEFAULT")
        print(drsn_ops.convert(network, reduction=16))

    - A squeeze-and-excite module gives its place to the shrinkage, anywhere in the model: a module with such a class
      name (``SqueezeExcitation`` of torchvision; ``SEModule``, ``SqueezeExcite`` and ``EffectiveSEModule`` of timm;
      ``SELayer``, ``SEBlock`` and the like) whose linear layers, or convolutions of width 1, lead from C channels to
      C.
    - A residual block without one gets the shrinkage behind its last convolution and the normalisation there, before
      the sum. A block is a module with children ``conv1``, ``conv2`` and so on and a ``downsample`` or ``shortcut``,
      a module or None, and every module of the same class: ``BasicBlock`` and ``Bottleneck`` of torchvision, of timm
      and of what is written like them, with one to three spatial axes. The shrinkage comes behind the last ``convN``
      or its ``bnN`` or ``normN``, whichever was registered later: behind the convolution in a pre-activation block,
      as in the paper.

    The layouts are those of torchvision 0.28 and timm 1.0. A block that holds a `Shrinkage` is left alone.

    A ``bn2`` with a shrinkage behind it becomes ``bn2.layer`` and ``bn2.shrinkage``, also in the names of parameters.
    A checkpoint from before the conversion still loads, with ``strict=False``: it has no gates, and its numbers of
    squeeze-and-excite modules are not needed. The new modules
    take the dtype, the device and the training mode of what they join, and their parameters require gradients; make
    the optimiser after the conversion. Thresholds start at about half of the mean magnitude, so that a trained
    network has to be trained on. Soft thresholding passes no gradient where all is 0, so residual branches whose last
    weights start at 0 are refused.

    Args:
        model: the network; it is changed.
        thresholds, statistic, reduction, norm: of every `Shrinkage`.
        where: called with the name and the module of each block without a squeeze-and-excite module, and of each such
            module. Where it returns False nothing is changed.

    Returns:
        A `Conversion`, the list of what was put where.

    Raises:
        TypeError: a model that is no module, or a ``where`` that cannot be called.
        ValueError: a bad argument, a model without a place for a shrinkage, or one whose residual branches start at
            0. Whenever an error is raised the model is as it was.

    Sources: Zhao et al., DOI 10.1109/TII.2019.2943898, for the shrinkage; Hu et al., DOI 10.1109/CVPR.2018.00745, for
    squeeze-and-excite modules.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module")
    if where is not None and not callable(where):
        raise TypeError(
            f"where: got {type(where).__name__}, expected a function of a name and a module, or None"
        )
    places = [place for name, module, place in _places(model) if where is None or where(name, module)]
    if not places:
        raise ValueError(
            f"model: got {type(model).__name__} with no place for a shrinkage, expected residual blocks (conv1, "
            "conv2, ... and a downsample or shortcut) or squeeze-and-excite modules, and `where` to return True for one"
        )
    # a module that is registered more than once is one place
    distinct = {place.module: place for place in reversed(places)}
    options = {"thresholds": thresholds, "statistic": statistic, "reduction": reduction, "norm": norm}
    # all are made, or refused, before the first is put in
    shrinkages = {module: _make(place, options) for module, place in reversed(distinct.items())}
    report = Conversion(
        tuple(distinct[module].placement for module in shrinkages),
        added=sum(p.numel() for shrinkage in shrinkages.values() for p in shrinkage.parameters()),
        removed=sum(
            p.numel() for module, place in distinct.items() if place.squeeze for p in module.parameters()
        ),
    )
    for place in places:
        _put(place, shrinkages[place.module])
    return report
