"""Puts `Shrinkage` into a ResNet that is already there, a pretrained one or one of another library."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from .functional import Statistic
from .modules import Shrinkage
from .rsnet import shrink_behind

# The class names, in lower case and without underscores, of squeeze-and-excite modules.
SQUEEZE = re.compile(
    r"(effective|channel)?(se|squeeze(and)?excit(e|ation))(module|layer|block|unit|attention)?([123]d)?"
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
        # the layer keeps its own mode: it may be frozen
        self.training = shrinkage.training
        self.register_load_state_dict_pre_hook(lower_names)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.layer, _BatchNorm):
            return shrink_behind(self.layer, self.shrinkage, x)
        y: Tensor = self.shrinkage(self.layer(x))
        return y


def lower_names(module: ShrunkLayer, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
    """Renames what a checkpoint calls by the bare layer's names, ``weight``, to ``layer.weight``."""
    own = module.layer.state_dict()
    layer = f"{prefix}layer."
    moved = {}
    for key in [key for key in state_dict if key.startswith(prefix)]:
        name = key[len(prefix) :]
        # the layer may itself have a child that is called layer
        if not name.startswith(("layer.", "shrinkage.")) or (name in own and layer + name not in state_dict):
            moved[layer + name] = key
    # all are taken out before the first is put in, since the new name of one may be the old name of another
    state_dict.update({new: state_dict.pop(old) for new, old in moved.items()})


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
    """Where a module gets a shrinkage behind it or, a squeeze-and-excite module, in its place."""

    parent: nn.Module
    name: str
    channels: int
    squeeze: bool

    def placement(self, module: nn.Module) -> Placement:
        name, kind = (self.name, "in the place of") if self.squeeze else (f"{self.name}.shrinkage", "behind")
        return Placement(name, self.channels, kind, type(module).__name__)


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
    # a lazy layer says that it takes 0 channels; it is refused later, and not passed over
    return ends[-1][1] if ends and ends[0][0] in (ends[-1][1], 0) else None


def _convolutions(module: nn.Module) -> list[_ConvNd]:
    return [layer for layer in module.modules() if isinstance(layer, _ConvNd)]


def _branch_end(block: nn.Module) -> tuple[str, int] | None:
    """The layer that ends the residual branch and its channels, None where there are not two convolutions."""
    branch = getattr(block, "residual_function", None)
    if isinstance(branch, nn.Sequential):
        convolutions = _convolutions(branch)
        # a ReLU at the end may be the block's only one, called after the sum too
        ends = [f"residual_function.{name}" for name, layer in branch.named_children() if layer.state_dict()]
    else:
        numbered = {
            int(name[4:]): layers[-1]
            for name, child in block.named_children()
            if re.fullmatch(r"conv\d+", name) and (layers := _convolutions(child))
        }
        convolutions = [numbered[number] for number in sorted(numbered)]
        names = {f"{kind}{number}" for number in sorted(numbered)[-1:] for kind in ("conv", "bn", "norm")}
        ends = [name for name, _ in block.named_children() if name in names]
    return (ends[-1], convolutions[-1].out_channels) if len(convolutions) > 1 else None


def _adds_shortcut(module: nn.Module) -> bool:
    """Whether the module has a ``downsample`` or ``shortcut``, even one of None, as residual blocks have."""
    shortcuts = [getattr(module, name, False) for name in ("downsample", "shortcut")]
    return any(one is None or callable(one) for one in shortcuts)


def _holds(block: nn.Module) -> bool:
    """Whether the block has a shrinkage or a squeeze-and-excite module."""
    return any(isinstance(one, Shrinkage) or _squeeze_channels(one) for one in block.modules())


def _places(model: nn.Module, where: Callable[[str, nn.Module], bool]) -> dict[nn.Module, _Place]:
    """Every module that gets a shrinkage behind it or in its place, and where that is."""
    # only the first block of a stage may have the attribute
    classes = {type(one) for one in model.modules() if _branch_end(one) and _adds_shortcut(one)}
    places: dict[nn.Module, _Place] = {}
    replaced: set[nn.Module] = set()
    for name, module in model.named_modules():
        # what is inside a replaced module is gone with it
        if module in replaced:
            continue
        if name and (channels := _squeeze_channels(module)):
            if where(name, module):
                parent = model.get_submodule(name.rpartition(".")[0])
                places[module] = _Place(parent, name, channels, True)
                replaced.update(module.modules())
        elif type(module) in classes and (end := _branch_end(module)) and not _holds(module):
            if where(name, module):
                at = f"{name}.{end[0]}" if name else end[0]
                parent = model.get_submodule(at.rpartition(".")[0])
                # blocks may share the layer
                places.setdefault(model.get_submodule(at), _Place(parent, at, end[1], False))
    return places


def _returns_zeros(layer: nn.Module) -> bool:
    """Whether weight and bias are all 0, as the last layers of residual branches often start."""
    numbers = [one for one in (layer.weight, getattr(layer, "bias", None)) if isinstance(one, Tensor)]
    return not any(one.is_meta or one.any() for one in numbers)


def _require_signal(module: nn.Module, place: _Place) -> None:
    """Raise ValueError where the layer in front of the shrinkage returns zeros: no gradient would ever reach it."""
    children = list(place.parent.children())
    front = children[: children.index(module) + (not place.squeeze)]
    # whatever their class: normalisations come in many
    layers = [
        one for child in front for one in child.modules() if isinstance(getattr(one, "weight", 0), Tensor)
    ]
    if layers and _returns_zeros(layers[-1]):
        raise ValueError(
            f"model: got weights that are all 0 in front of {place.placement(module).name}, where a "
            "shrinkage passes no gradient, expected others (zero_init_residual=False in torchvision, "
            "zero_init_last=False in timm)"
        )


def _make(module: nn.Module, place: _Place, options: dict[str, Any]) -> Shrinkage:
    """A shrinkage for the place, in the dtype, on the device and in the mode of what is there."""
    there = module if place.squeeze else place.parent
    numbers = [*there.parameters(), *there.buffers()]
    if any(map(is_lazy, numbers)):
        raise ValueError(
            f"model: got lazy modules without their numbers at {place.name}, expected a model that has been called "
            "once on an input"
        )
    _require_signal(module, place)
    # frozen blocks may have no parameters, and counters are integers
    like = next(
        (one for one in numbers if one.is_floating_point()), torch.empty(0, dtype=torch.float32, device="cpu")
    )
    return _draw(place.channels, options).to(like.device, like.dtype).train(there.training)


def _draw(channels: int, options: dict[str, Any]) -> Shrinkage:
    """A shrinkage in float32 on the CPU, whose first weights do not depend on PyTorch's default type and device."""
    with torch.device("meta"):
        shrinkage = Shrinkage(channels, **options)
    shrinkage.to(torch.float32).to_empty(device="cpu")
    for layer in shrinkage.fc:
        reset: Any = getattr(layer, "reset_parameters", None)
        if reset is not None:
            reset()
    return shrinkage


def _count(modules: Iterable[nn.Module]) -> int:
    """The number of their parameters."""
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


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
      ``SELayer``, ``SEBlock1d`` and the like) whose linear layers, or convolutions of width 1, lead from C channels
      to C. It must return x scaled, ``x * weights(x)``. One that returns the weights alone looks the same from
      outside, and ``y * se(y)`` would become ``y * shrink(y)``: exclude it by ``where``.
    - A residual block without one gets the shrinkage behind its last convolution and the normalisation there, before
      the sum. A block is a module with children ``conv1``, ``conv2`` and so on and a ``downsample`` or ``shortcut``,
      a module, a method or None, and every module of the same class: ``BasicBlock`` and ``Bottleneck`` of
      torchvision, of timm and of what is written like them, with one to three spatial axes, and `RSBU` without
      thresholds. The shrinkage comes behind the last ``convN`` or its ``bnN`` or ``normN``, whichever was registered
      later: behind the convolution in a pre-activation block, as in the paper.
    - A block whose layers are a Sequential called ``residual_function``, as in `drsn_ops.models.rsnet18` without
      thresholds and the port that it follows, gets the shrinkage behind the last of them that has weights.

    The layouts are those of torchvision 0.28 and timm 1.0. A block that holds a `Shrinkage` is left alone. A block of
    any other layout is passed over; a model that has only such raises a ValueError. A module that is registered under
    several names, ``bn2`` and ``branch.4``, is replaced under each; a reference in a plain list is not seen.

    A ``bn2`` with a shrinkage behind it becomes ``bn2.layer`` and ``bn2.shrinkage``, also in the names of parameters.
    A checkpoint from before the conversion still loads, with ``strict=False``: it has no gates, and its numbers of
    squeeze-and-excite modules are not needed. The new modules take the dtype, the device and the training mode of
    what they join, and their parameters require gradients; make the optimiser after the conversion. Thresholds start
    at about half of the mean magnitude, so that a trained network has to be trained on. Soft thresholding passes no
    gradient where all is 0, so residual branches whose last weights start at 0 are refused.

    Args:
        model: the network; it is changed.
        thresholds, statistic, reduction, norm: of every `Shrinkage`.
        where: called with the name, the first of several, and the module of each block without a squeeze-and-excite
            module, and of each such module. Where it returns False nothing is changed.

    Returns:
        A `Conversion`, the list of what was put where.

    Raises:
        TypeError: a model that is no module, or a ``where`` that cannot be called.
        ValueError: a bad argument, a model without a place for a shrinkage, or one whose residual branches start at
            0 or are lazy modules that have not run yet. Whenever an error is raised the model is as it was.

    Sources: Zhao et al., DOI 10.1109/TII.2019.2943898, for the shrinkage; Hu et al., DOI 10.1109/CVPR.2018.00745, for
    squeeze-and-excite modules.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module")
    if where is not None and not callable(where):
        raise TypeError(
            f"where: got {type(where).__name__}, expected a function of a name and a module, or None"
        )
    places = _places(model, where or (lambda name, module: True))
    if not places:
        raise ValueError(
            f"model: got {type(model).__name__} with no place for a shrinkage, expected residual blocks (conv1, conv2, "
            "... or a residual_function, and a downsample or shortcut) or squeeze-and-excite modules, and `where` to "
            "return True for one"
        )
    options = {"thresholds": thresholds, "statistic": statistic, "reduction": reduction, "norm": norm}
    # all are made, or refused, before the first is put in
    shrinkages = {module: _make(module, place, options) for module, place in places.items()}
    report = Conversion(
        tuple(place.placement(module) for module, place in places.items()),
        added=_count(shrinkages.values()),
        removed=_count(module for module, place in places.items() if place.squeeze),
    )
    new: dict[nn.Module | None, nn.Module] = {
        module: shrinkage if places[module].squeeze else ShrunkLayer(module, shrinkage)
        for module, shrinkage in shrinkages.items()
    }
    # a module has as many names as it was registered under, and a forward may call it by any
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in new:
                parent._modules[name] = new[child]
    return report
