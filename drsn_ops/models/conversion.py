"""`convert`: puts a `Shrinkage` into each block of a ResNet, a pretrained one or one of another library."""

# Annotations are evaluated: torch.fx keeps those of a forward that it traces, and pickles no strings.

import copy
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from ..layers import apply
from ..modules import Shrinkage, Thresholds
from ..reference import Statistic
from ..variants.gates import Norm
from ..variants.shrinkage import Pooling, Rule, RuleFunction
from .places import SHORTCUTS, Place, find_places
from .rsnet import shrink_behind

# What to convert instead of these: a shrinkage inside one would not run, not train or not be seen by other processes.
SEALED = {
    "ScriptModule": "the module that it was made of",
    "GraphModule": "the module that it was made of",
    "DistributedDataParallel": "the module that it wraps, and to be wrapped afterwards",
    "FullyShardedDataParallel": "the module that it wraps, and to be wrapped afterwards",
    "FSDPModule": "the module before it is sharded",
}
# Names of layers that come numbered in a block.
NUMBERED = re.compile(r"(conv|bn|norm)?\d+")


class SqueezeShrinkage(Shrinkage):
    """A `Shrinkage` in the place of a squeeze-and-excite module, which is called without a residual.

    Raises:
        TypeError: another argument than x that is not None, a mask for example.
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

    A BatchNorm and the shrinkage are one operator, see `drsn_ops.batch_norm_shrink`. ``load_state_dict`` also takes a
    checkpoint from before the conversion, which has the layer's own names.
    """

    def __init__(self, layer: nn.Module, shrinkage: Shrinkage) -> None:
        super().__init__()
        self.layer = layer
        self.shrinkage = shrinkage
        # the layer may be frozen and keeps its own mode
        self.training = shrinkage.training
        self.register_load_state_dict_pre_hook(lower_names)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.layer, _BatchNorm):
            return shrink_behind(self.layer, self.shrinkage, x)
        y: Tensor = self.shrinkage(apply(self.layer, x))
        return y


def lower_names(module: ShrunkLayer, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
    """Renames the layer's numbers in a checkpoint from before the conversion: ``weight`` to ``layer.weight``."""
    own = module.layer.state_dict()
    layer = f"{prefix}layer."
    moved = {}
    for key in [key for key in state_dict if key.startswith(prefix)]:
        name = key[len(prefix) :]
        # the layer may have a child of its own that is called layer
        if not name.startswith(("layer.", "shrinkage.")) or (name in own and layer + name not in state_dict):
            moved[layer + name] = key
    # all are taken out first: a new name may be another one's old name
    state_dict.update({new: state_dict.pop(old) for new, old in moved.items()})


@dataclass(frozen=True)
class Placement:
    """One `Shrinkage` that `convert` put into a model.

    Attributes:
        name: of the `Shrinkage` in the model.
        channels: how many it has.
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
        added: the number of their parameters.
        removed: the number of parameters of the squeeze-and-excite modules that they replaced.
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


def _require_open(model: nn.Module, places: Iterable[Place]) -> None:
    """Raise ValueError where a place is inside a sealed module, or where there is no place and any sealed module."""
    names = [place.name for place in places]
    for at, module in model.named_modules():
        for base in type(module).__mro__:
            inside = [name for name in names if not at or name.startswith(f"{at}.")]
            if base.__name__ in SEALED and (inside or not names):
                where = f" at {at}" if at else ""
                raise ValueError(f"model: got a {base.__name__}{where}, expected {SEALED[base.__name__]}")


def _require_no_hooks(module: nn.Module, place: Place) -> None:
    """Raise ValueError where a squeeze-and-excite module has hooks, which would go with it."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if place.squeeze and any(getattr(one, kind) for one in module.modules() for kind in kinds):
        raise ValueError(
            f"model: got hooks on {place.name}, which is replaced, expected them to be removed before"
        )


def _require_one_role(model: nn.Module, module: nn.Module, place: Place) -> None:
    """Raise ValueError where the layer that ends a branch is also another layer of the block."""
    for parent in model.modules():
        roles = [
            name for name, child in parent._modules.items() if child is module and NUMBERED.fullmatch(name)
        ]
        if len(roles) > 1:
            raise ValueError(
                f"model: got one module as {' and '.join(roles)} of {type(parent).__name__}, expected another one for "
                f"each, as a shrinkage behind {place.name} would be behind all of them"
            )


def _returns_zeros(layer: nn.Module) -> bool:
    """Whether weight and bias are all 0, as the last layers of residual branches often start."""
    numbers = [one for one in (layer.weight, getattr(layer, "bias", None)) if isinstance(one, Tensor)]
    return not any(one.is_meta or one.any() for one in numbers)


def _require_signal(module: nn.Module, place: Place) -> None:
    """Raise ValueError where the layer in front of the shrinkage returns zeros: no gradient would ever pass."""
    children = list(place.parent.children())
    front = children[: children.index(module) + (not place.squeeze)]
    # of any class: there are many kinds of normalisation
    layers = [
        one for child in front for one in child.modules() if isinstance(getattr(one, "weight", 0), Tensor)
    ]
    if layers and _returns_zeros(layers[-1]):
        raise ValueError(
            f"model: got weights that are all 0 in front of {_placement(module, place).name}, where a "
            "shrinkage passes no gradient, expected others (zero_init_residual=False in torchvision, "
            "zero_init_last=False in timm)"
        )


def _placement(module: nn.Module, place: Place) -> Placement:
    """What the report says of the place of this module."""
    name, kind = (place.name, "in the place of") if place.squeeze else (f"{place.name}.shrinkage", "behind")
    return Placement(name, place.channels, kind, type(module).__name__)


def _make(module: nn.Module, place: Place, options: dict[str, Any]) -> Shrinkage:
    """A shrinkage for the place, with the dtype, device and mode of what is there."""
    there = module if place.squeeze else place.parent
    # the module's own first: a block may be spread over devices
    numbers = [*module.parameters(), *module.buffers(), *there.parameters(), *there.buffers()]
    if any(map(is_lazy, numbers)):
        raise ValueError(
            f"model: got lazy modules without their numbers at {place.name}, expected a model that has been called "
            "once on an input"
        )
    _require_signal(module, place)
    # a frozen block may have buffers alone, and counters are integers
    like = next(
        (one for one in numbers if one.is_floating_point()), torch.empty(0, dtype=torch.float32, device="cpu")
    )
    kind = SqueezeShrinkage if place.squeeze else Shrinkage
    return _draw(kind, place.channels, options).to(like.device, like.dtype).train(there.training)


def _draw(kind: type[Shrinkage], channels: int, options: dict[str, Any]) -> Shrinkage:
    """A shrinkage drawn in float32 on the CPU, so that PyTorch's default type and device do not change its weights."""
    rule = options["rule"]
    learns = isinstance(rule, nn.Module)
    with torch.device("meta"):
        shrinkage = kind(channels, **options | {"rule": copy.deepcopy(rule) if learns else rule})
    shrinkage.to(torch.float32).to_empty(device="cpu")
    shrinkage.reset_parameters()
    if learns:
        shrinkage.rule = copy.deepcopy(rule)  # with its own numbers
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
    rule: Rule | RuleFunction = "soft",
    pooling: Pooling = "avg",
    where: Callable[[str, nn.Module], bool] | None = None,
) -> Conversion:
    """Puts a `Shrinkage` into each residual block of a ResNet, in place, and reports where.

    ```python
    network = torchvision.models.resnet18(weights="DEFAULT")
    print(drsn_ops.convert(network, reduction=16))
    ```

    - A squeeze-and-excite module is replaced by the shrinkage, anywhere in the model. It is known by its class name
      (``SqueezeExcitation`` of torchvision; ``SEModule``, ``SqueezeExcite`` and ``EffectiveSEModule`` of timm;
      ``SELayer``, ``SEBlock1d`` and the like) and by its linear layers, or convolutions of width 1, which lead from C
      channels to C. It must return x scaled, ``x * weights(x)``. One that returns the weights alone looks the same, and
      ``y * se(y)`` would become ``y * shrink(y)``: exclude it by ``where``. The shrinkage takes x alone and raises a
      TypeError for a mask or another argument.
    - A residual block without one gets the shrinkage behind its last convolution and the normalisation there, before
      the sum. A block is a module with children ``conv1``, ``conv2`` and so on and a ``downsample``,
      ``identity_downsample``, ``i_downsample`` or ``shortcut``, which is a module, a method or None; and every module
      of the same class. ``BasicBlock`` and ``Bottleneck`` of torchvision and timm are blocks, and what is written like
      them, with one to three spatial axes, and `RSBU` without thresholds. The shrinkage comes behind the last ``convN``
      or its ``bnN`` or ``normN``, whichever was registered later: in a pre-activation block behind the convolution, as
      in the paper. A ``downsample`` that is a pooling alone, or convolves other channels than the block takes, is not a
      shortcut but the way out of an encoder.
    - A block with such a shortcut whose layers are its only Sequential of several convolutions, of any name, gets the
      shrinkage behind the last of them that has weights: `drsn_ops.models.rsnet18` without thresholds, for example.

    The layouts are those of torchvision 0.28 and timm 1.0. A block of another layout is passed over, and a model that
    has only such blocks raises a ValueError. A block that has a `Shrinkage` is left as it is; the report counts them. A
    module that is registered under several names, ``bn2`` and ``branch.4``, is replaced under each; a reference in a
    plain list is not seen.

    A ``bn2`` with a shrinkage behind it becomes ``bn2.layer`` and ``bn2.shrinkage``, also in the names of parameters. A
    checkpoint from before the conversion still loads with ``strict=False``. The new modules take the dtype, the device
    and the training mode of their surroundings, and their parameters require gradients: make the optimiser after the
    conversion. Thresholds start at about half of the mean magnitude, so a trained network needs more training. Soft
    thresholding passes no gradient where all is 0, so residual branches whose last weights are 0 are refused.

    Args:
        model: the network; it is changed.
        thresholds: of every `Shrinkage`.
        statistic: of every `Shrinkage`.
        reduction: of every `Shrinkage`.
        norm: of every `Shrinkage`.
        rule: of every `Shrinkage`; each gets a copy of its own of one that is a module.
        pooling: of every `Shrinkage`.
        where: called with the name, the first of several, and the module of each squeeze-and-excite module and of each
            block without one. Where it returns False nothing is changed.

    Returns:
        A `Conversion`, the list of what was put where.

    Raises:
        TypeError: ``model`` is not a module, or ``where`` cannot be called.
        ValueError: a bad argument; a model without a place for a shrinkage; residual branches that start at 0, are lazy
            modules that have not run yet, or end in a layer that they use twice; a model that is scripted, traced or
            wrapped for several processes already. The model is unchanged whenever an error is raised.

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
    places = find_places(model, where or (lambda name, module: True))
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
    options = {
        "thresholds": thresholds,
        "statistic": statistic,
        "reduction": reduction,
        "norm": norm,
        "rule": rule,
        "pooling": pooling,
    }
    # everything that can be refused is refused before the model changes
    shrinkages = {module: _make(module, place, options) for module, place in places.items()}
    for module, place in places.items():
        _require_no_hooks(module, place)
        _require_one_role(model, module, place)
    report = Conversion(
        tuple(_placement(module, place) for module, place in places.items()),
        added=_count(shrinkages.values()),
        removed=_count(module for module, place in places.items() if place.squeeze),
        kept=kept,
    )
    new: dict[nn.Module | None, nn.Module] = {
        module: shrinkage if places[module].squeeze else ShrunkLayer(module, shrinkage)
        for module, shrinkage in shrinkages.items()
    }
    # under every name that a module has: a forward may use any of them
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in new:
                parent._modules[name] = new[child]
    return report
