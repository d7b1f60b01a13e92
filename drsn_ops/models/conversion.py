"""Puts `Shrinkage` into a ResNet that is already there, a pretrained one or one of another library."""

# Annotations are evaluated: torch.fx keeps those of a forward that it traces, and pickles no strings.

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy

from ..modules import Norm, Shrinkage, Thresholds
from ..reference import Statistic
from .rsnet import shrink_behind

# What a block calls its shortcut; None there is x itself.
SHORTCUTS = ("downsample", "identity_downsample", "i_downsample", "shortcut")
# The classes of which a shrinkage inside is not run, not trained or not seen by the other processes.
SEALED = {
    "ScriptModule": "the module that it was made of",
    "GraphModule": "the module that it was made of",
    "DistributedDataParallel": "the module that it wraps, and to be wrapped afterwards",
    "FullyShardedDataParallel": "the module that it wraps, and to be wrapped afterwards",
    "FSDPModule": "the module before it is sharded",
}
# Names that say which of several layers one is.
NUMBERED = re.compile(r"(conv|bn|norm)?\d+")

# The class names, in lower case and without underscores, of squeeze-and-excite modules.
SQUEEZE = re.compile(
    r"(effective|channel)?(se|squeeze(and)?excit(e|ation))(module|layer|block|unit|attention)?([123]d)?"
)


class SqueezeShrinkage(Shrinkage):
    """A `Shrinkage` in the place of a squeeze-and-excite module, whose second argument would be no residual.

    Raises:
        TypeError: another argument than x, None apart: a mask, for example.
    """

    def forward(self, x: Tensor, residual: object = None, *others: object, **named: object) -> Tensor:
        if any(one is not None for one in (residual, *others, *named.values())):
            raise TypeError(
                f"got another argument than x, expected x alone: this shrinkage of {self.channels} channels took the "
                "place of a squeeze-and-excite module; `where` of drsn_ops.convert can leave that as it is"
            )
        return super().forward(x)


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
        kept: the names of every `Shrinkage` that was there before.
    """

    placements: tuple[Placement, ...]
    added: int
    removed: int
    kept: tuple[str, ...] = ()

    def __str__(self) -> str:
        width = max(len(one.name) for one in self.placements)
        rows = [
            f"{one.name:<{width}}  {one.channels:>5} channels  {one.kind} {one.other}"
            for one in self.placements
        ]
        total = f"{len(rows)} in all: {self.added} parameters added, {self.removed} removed"
        kept = [f"{len(self.kept)} were there before, {self.kept[0]} the first"] if self.kept else []
        return "\n".join([*rows, total, *kept])


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


@dataclass(frozen=True)
class _Branch:
    """The convolutions of a residual branch, two at least, and the name of the layer that ends it."""

    convolutions: list[_ConvNd]
    end: str


def _children(module: nn.Module) -> dict[str, nn.Module]:
    """The children by name, one of several names under each."""
    return {name: child for name, child in module._modules.items() if child is not None}


def _branch(block: nn.Module) -> _Branch | None:
    """The block's branch: ``conv1``, ``conv2`` and so on, or else its only Sequential of several convolutions."""
    children = _children(block)
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
        _Branch(
            _convolutions(child),
            # a ReLU at the end may be the block's only one, called after the sum too
            [f"{name}.{inner}" for inner, layer in _children(child).items() if layer.state_dict()][-1],
        )
        for name, child in children.items()
        if name not in SHORTCUTS and isinstance(child, nn.Sequential) and _is_sequence_of_layers(child)
    ]
    return branches[0] if len(branches) == 1 else None


def _is_sequence_of_layers(module: nn.Sequential) -> bool:
    """Whether several of its modules are a convolution or hold one, and none is a block of its own."""
    layers = [layer for layer in module if _convolutions(layer)]
    return len(layers) > 1 and all(
        len(_convolutions(layer)) == 1 and not any(isinstance(one, nn.Linear) for one in layer.modules())
        for layer in layers
    )


def _pools(module: nn.Module) -> bool:
    """Whether the module is a pooling, or a Sequential of such and of dropouts."""
    if isinstance(module, nn.Sequential):
        layers = [one for one in module if not isinstance(one, _DropoutNd)]
        return bool(layers) and all(map(_pools, layers))
    return "pool" in type(module).__name__.lower() and not _convolutions(module)


def _stride(layers: Iterable[nn.Module]) -> int:
    """By how much they shorten the first axis together."""
    strides = [getattr(layer, "stride", 1) for layer in layers if not list(layer.children())]
    return math.prod(one[0] if isinstance(one, tuple) else one for one in strides)


def _is_shortcut(shortcut: object, branch: _Branch) -> bool:
    """Whether what a block calls ``downsample`` leads past the branch; that of an encoder comes after it."""
    if not isinstance(shortcut, nn.Module):
        return True
    convolutions = _convolutions(shortcut)
    if not convolutions:
        return not _pools(shortcut)
    first, last = branch.convolutions[0], branch.convolutions[-1]
    taken = {first.in_channels, convolutions[0].in_channels} - {0}  # of a lazy layer
    if len(taken) > 1 or convolutions[-1].out_channels != last.out_channels:
        return False
    narrow = all(set(one.kernel_size) == {1} for one in convolutions)
    return narrow or _stride(shortcut.modules()) == _stride(branch.convolutions)


def _adds_shortcut(block: nn.Module, branch: _Branch) -> bool | None:
    """Whether the block has a shortcut, even one of None; None where it has no attribute of such a name."""
    named = {name: getattr(block, name, False) for name in SHORTCUTS}
    found = {name: one for name, one in named.items() if one is None or callable(one)}
    # nothing but a shortcut is called so
    return any("shortcut" in name or _is_shortcut(found[name], branch) for name in found) if found else None


def _holds(block: nn.Module) -> bool:
    """Whether the block has a shrinkage or a squeeze-and-excite module."""
    return any(isinstance(one, Shrinkage) or _squeeze_channels(one) for one in block.modules())


def _require_open(model: nn.Module, places: Iterable[_Place]) -> None:
    """Raise ValueError where what is put into a module would not be seen; where there is no place, any such module."""
    names = [place.name for place in places]
    for at, module in model.named_modules():
        for base in type(module).__mro__:
            inside = [name for name in names if not at or name.startswith(f"{at}.")]
            if base.__name__ in SEALED and (inside or not names):
                where = f" at {at}" if at else ""
                raise ValueError(f"model: got a {base.__name__}{where}, expected {SEALED[base.__name__]}")


def _require_no_hooks(module: nn.Module, place: _Place) -> None:
    """Raise ValueError where hooks would go with the squeeze-and-excite module that they are on."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if place.squeeze and any(getattr(one, kind) for one in module.modules() for kind in kinds):
        raise ValueError(
            f"model: got hooks on {place.name}, which is replaced, expected them to be removed before"
        )


def _require_one_role(model: nn.Module, module: nn.Module, place: _Place) -> None:
    """Raise ValueError where the layer that ends a branch is another one of its layers too."""
    for parent in model.modules():
        roles = [
            name for name, child in parent._modules.items() if child is module and NUMBERED.fullmatch(name)
        ]
        if len(roles) > 1:
            raise ValueError(
                f"model: got one module as {' and '.join(roles)} of {type(parent).__name__}, expected another one for "
                f"each, as a shrinkage behind {place.name} would be behind all of them"
            )


def _places(model: nn.Module, where: Callable[[str, nn.Module], bool]) -> dict[nn.Module, _Place]:
    """Every module that gets a shrinkage behind it or in its place, and where that is."""
    # only the first block of a stage may have the attribute
    verdicts = [
        (type(one), _adds_shortcut(one, branch)) for one in model.modules() if (branch := _branch(one))
    ]
    classes = {kind for kind, verdict in verdicts if verdict} - {
        kind for kind, verdict in verdicts if verdict is False
    }
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
        elif type(module) in classes and (branch := _branch(module)) and not _holds(module):
            if where(name, module):
                at = f"{name}.{branch.end}" if name else branch.end
                parent = model.get_submodule(at.rpartition(".")[0])
                channels = branch.convolutions[-1].out_channels
                # blocks may share the layer
                places.setdefault(model.get_submodule(at), _Place(parent, at, channels, False))
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
    # those of the module itself first: a block may be spread over devices
    numbers = [*module.parameters(), *module.buffers(), *there.parameters(), *there.buffers()]
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
    kind = SqueezeShrinkage if place.squeeze else Shrinkage
    return _draw(kind, place.channels, options).to(like.device, like.dtype).train(there.training)


def _draw(kind: type[Shrinkage], channels: int, options: dict[str, Any]) -> Shrinkage:
    """A shrinkage in float32 on the CPU, whose first weights do not depend on PyTorch's default type and device."""
    with torch.device("meta"):
        shrinkage = kind(channels, **options)
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
    thresholds: Thresholds = "channel-wise",
    statistic: Statistic | None = None,
    reduction: int = 1,
    norm: Norm = "batch",
    where: Callable[[str, nn.Module], bool] | None = None,
) -> Conversion:
    """Puts a `Shrinkage` into each residual block of a ResNet, in place, and reports where::

        network = torchvision.models.resnet18(weights="DEFAULT")
        print(drsn_ops.convert(network, reduction=16))

    - A squeeze-and-excite module gives its place to the shrinkage, anywhere in the model: a module with such a class
      name (``SqueezeExcitation`` of torchvision; ``SEModule``, ``SqueezeExcite`` and ``EffectiveSEModule`` of timm;
      ``SELayer``, ``SEBlock1d`` and the like) whose linear layers, or convolutions of width 1, lead from C channels
      to C. It must return x scaled, ``x * weights(x)``. One that returns the weights alone looks the same from
      outside, and ``y * se(y)`` would become ``y * shrink(y)``: exclude it by ``where``. The shrinkage takes x alone:
      called with a mask, or anything else besides, it raises a TypeError.
    - A residual block without one gets the shrinkage behind its last convolution and the normalisation there, before
      the sum. A block is a module with children ``conv1``, ``conv2`` and so on and a ``downsample``,
      ``identity_downsample``, ``i_downsample`` or ``shortcut``, a module, a method or None, and every module of the
      same class: ``BasicBlock`` and ``Bottleneck`` of torchvision, of timm and of what is written like them, with one
      to three spatial axes, and `RSBU` without thresholds. A ``downsample`` that is a pooling alone, or convolves other
      channels than the block takes, is no shortcut but the way out of an encoder. The shrinkage comes behind the last
      ``convN`` or its ``bnN`` or ``normN``, whichever was registered later: behind the convolution in a pre-activation
      block, as in the paper.
    - A block with such a shortcut whose layers are its only Sequential of several convolutions, whatever its name,
      ``residual_function`` in `drsn_ops.models.rsnet18` without thresholds and the port that it follows or ``layers``,
      gets the shrinkage behind the last of them that has weights.

    The layouts are those of torchvision 0.28 and timm 1.0. A block that holds a `Shrinkage` is left alone, and the
    report says how many there were. A block of any other layout is passed over; a model that has only such raises a
    ValueError. A module that is registered under
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
            0, are lazy modules that have not run yet, end in a layer that they have twice, or are scripted, traced or
            wrapped for several processes already. Whenever an error is raised the model is as it was.

    Sources: Zhao et al., DOI 10.1109/TII.2019.2943898, for the shrinkage; Hu et al., DOI 10.1109/CVPR.2018.00745, for
    squeeze-and-excite modules.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module")
    if where is not None and not callable(where):
        raise TypeError(
            f"where: got {type(where).__name__}, expected a function of a name and a module, or None"
        )
    kept = tuple(name for name, module in model.named_modules() if isinstance(module, Shrinkage))
    places = _places(model, where or (lambda name, module: True))
    _require_open(model, places.values())
    if not places:
        if kept:
            raise ValueError(
                f"model: got {type(model).__name__} that has {len(kept)} shrinkages already, {kept[0]} the first, "
                "expected one with a place for another"
            )
        raise ValueError(
            f"model: got {type(model).__name__} with no place for a shrinkage, expected residual blocks (conv1, "
            f"conv2, ... or one Sequential of layers, and a {', '.join(SHORTCUTS[:-1])} or {SHORTCUTS[-1]} that is no "
            "pooling alone) or squeeze-and-excite modules, and `where` to return True for one"
        )
    options = {"thresholds": thresholds, "statistic": statistic, "reduction": reduction, "norm": norm}
    # all are made, or refused, before the first is put in
    shrinkages = {module: _make(module, place, options) for module, place in places.items()}
    for module, place in places.items():
        _require_no_hooks(module, place)
        _require_one_role(model, module, place)
    report = Conversion(
        tuple(place.placement(module) for module, place in places.items()),
        added=_count(shrinkages.values()),
        removed=_count(module for module, place in places.items() if place.squeeze),
        kept=kept,
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
