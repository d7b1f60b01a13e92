"""Modules over the operators: a learned threshold, the gated shrinkage, and the residual unit built on it.

The networks are those of M. Zhao, S. Zhong, X. Fu, B. Tang and M. Pecht, "Deep Residual Shrinkage Networks
for Fault Diagnosis", IEEE Transactions on Industrial Informatics, 2020, DOI 10.1109/TII.2019.2943898.
"""

# Annotations are evaluated: torch.fx keeps those of a forward that it traces, and pickles no strings.

import warnings
from typing import Any, Literal, TypeGuard, get_args

import torch
from torch import Tensor, nn

from . import functional, reference, rules
from .arguments import require_choice, require_positive
from .layers import (
    BATCH_NORMS,
    CONVOLUTIONS,
    Layers,  # noqa: F401  pickles of networks name it here
    activated_convolution,
    along_channels,
    apply,
    as_image,
    conv3,
    is_strided,
    is_unwatched,
    leaves_unseen,
    pre_activation,
    require_channels,
    require_input,
    returns_new,
)
from .ops import residual_unit
from .ops.plain_gate import is_plain, watched
from .ops.spatial import shortcut_of
from .reference import STATISTICS, Statistic
from .variants.gates import NORMS, Norm, PooledGate, make_gate
from .variants.shrinkage import (
    FIRST_SLOPE,
    POOLINGS,
    Pooling,
    Rule,
    RuleFunction,
    gates_of,
    require_rule,
    varied_shrink,
)

Thresholds = Literal["channel-wise", "channel-shared"]
THRESHOLDS: tuple[Thresholds, ...] = get_args(Thresholds)

for _name in ("along_channels", "require_channels", "require_input", "shortcut_of"):
    torch.fx.wrap(_name)  # see `layers`


class SoftThreshold(nn.Module):
    """Soft thresholding with a learned threshold: ``y = sign(x) * max(|x| - weight, 0)``.

    Args:
        num_parameters: 1 for a single threshold, or the number of channels for one threshold per channel.
        init: the thresholds' first value, a finite number of at least 0.

    ``weight`` has shape (num_parameters,). A negative entry acts as 0 and gets a zero gradient, so a threshold
    that an optimiser step has pushed below 0 stays there; the identity is what it then computes.

    Shape: with one parameter, x of any shape; with C parameters, x of shape (N, C, \\*spatial). y has x's shape
    and dtype, which may be any of float16, bfloat16, float32, float64, complex64 and complex128.

    Raises:
        ValueError: a bad ``num_parameters`` or ``init``, or an x whose axis 1 is not of length C.
    """

    def __init__(self, num_parameters: int = 1, init: float = 0.01) -> None:
        super().__init__()
        require_positive("num_parameters", num_parameters)
        if not 0 <= init < float("inf"):
            raise ValueError(f"init: got {init!r}, expected a finite number of at least 0")
        self.num_parameters = num_parameters
        self.init = init
        self.weight = nn.Parameter(torch.full((num_parameters,), float(init)))

    def reset_parameters(self) -> None:
        """Set every threshold back to ``init``."""
        nn.init.constant_(self.weight, self.init)

    def forward(self, x: Tensor) -> Tensor:
        if self.num_parameters == 1:
            return functional.soft_threshold(x, self.weight.reshape(()))
        require_channels(x, self.num_parameters, "(num_parameters)")
        return functional.soft_threshold(x, along_channels(self.weight, x))

    def extra_repr(self) -> str:
        return f"num_parameters={self.num_parameters}, init={self.init}"


@watched
@returns_new
class Shrinkage(nn.Module):
    """Soft thresholding by thresholds that a small gate derives from the input, plus an optional residual.

    With ``m`` the (N, C) matrix of channel-wise abs-means of x:

        alpha = gate(m)                     Linear(C, H) -> norm -> ReLU -> Linear(H, K) -> sigmoid
        tau   = alpha * abs_mean(x)         the abs-mean of each channel, or of each sample
        y     = sign(x) * max(|x| - tau, 0) + residual

    Since alpha lies between 0 and 1, a threshold is never negative and never above the mean magnitude, or, with
    ``pooling="max"``, the largest.

    Args:
        channels: C.
        thresholds: ``"channel-wise"`` (DRSN-CW: K = C) or ``"channel-shared"`` (DRSN-CS: K = 1).
        statistic: the scope of the abs-mean that alpha multiplies, ``"channel"`` or ``"sample"``. None follows
            the paper: ``"channel"`` for channel-wise thresholds, ``"sample"`` for a channel-shared one.
        reduction: H = max(C // reduction, 1). The paper has 1, its CIFAR-10 program 4.
        norm: the gate's normalisation: ``"batch"`` (the paper), ``"layer"``, ``"rms"`` or ``"none"``. All but
            ``"batch"`` train on a batch of one. ``"layer"`` leaves nothing of a gate with H = 1.
        inplace: write the result into x; of the soft rule and ``pooling="avg"`` alone.
        rule: what the thresholds do. ``"soft"`` is the paper's; ``"hard"``, ``"garrote"``, ``"firm"``, ``"smooth"``,
            ``"slope"`` and ``"nonnegative"`` are those of `drsn_ops.rules`. ``"learned-slope"`` learns the slope inside
            the band, one for each output of the gate, from 0.1 on, as ``self.slope``. ``"asymmetric"`` is the soft rule
            with another gate, ``self.fc_negative``, for the thresholds of the values below 0. Or any callable of x and
            a tau that broadcasts to x, such as ``functools.partial(drsn_ops.rules.firm, ratio=3)``; one that is a
            module is called ``self.rule`` and learns too.
        pooling: what the gate gets and alpha multiplies: ``"avg"``, the abs-means; ``"max"``, the largest magnitudes in
            their place, so that tau may be above most of x; or ``"avg+max"``, where one shared network sees both,
            ``alpha = sigmoid(f(means) + f(maxima))`` as in CBAM, and alpha multiplies the abs-mean.
        channel_dim: the axis of the channels: 1, or -1 for x of shape (N, C) or (N, \\*spatial, C), such as a
            transformer's (B, L, C), which is not copied.

    The gate is ``self.fc``, always five modules long, so that state_dict keys do not depend on ``norm``:
    ``fc.0`` and ``fc.3`` are the linear layers, ``fc.1`` the normalisation. One operator computes it together with
    the rest while nothing is attached to it; with a hook or a parametrization its modules are called, see
    `drsn_ops.gated_shrink`. With another rule or pooling its modules are called, between fused operators. The options
    are chosen when the module is made; changing ``rule``, ``pooling`` or ``channel_dim`` later is no use.

    Shape: x is (N, C) or (N, C, \\*spatial) with up to three spatial axes, or as ``channel_dim`` says; residual and y
    have x's shape and dtype: float16, bfloat16, float32 or float64. The gate computes in float32 or wider, also under
    ``torch.autocast``; where its modules are called, in its own parameters' dtype or in autocast's.

    Setting ``use_reference`` to True on an instance makes it compute with `drsn_ops.reference` instead of the
    compiled operators, never in place: for comparisons.

    Raises:
        TypeError: an x or residual of another type.
        ValueError: a bad argument, an x with another number of channels, a residual of another shape, or a batch
            of one while a gate with ``norm="batch"`` trains.

    Warns:
        UserWarning: ``rule="hard"``, which gives its thresholds no gradient, so that its gate does not learn.

    Sources: Zhao et al., DOI 10.1109/TII.2019.2943898, section III; those of the rules are in `drsn_ops.rules`; CBAM,
    Woo et al., arXiv 1807.06521.
    """

    use_reference = False
    rule: Rule | RuleFunction

    def __init__(
        self,
        channels: int,
        thresholds: Thresholds = "channel-wise",
        *,
        statistic: Statistic | None = None,
        reduction: int = 1,
        norm: Norm = "batch",
        inplace: bool = False,
        rule: Rule | RuleFunction = "soft",
        pooling: Pooling = "avg",
        channel_dim: Literal[1, -1] = 1,
    ) -> None:
        super().__init__()
        require_positive("channels", channels)
        require_choice("thresholds", thresholds, THRESHOLDS)
        require_choice("statistic", statistic, (*STATISTICS, None))
        require_positive("reduction", reduction)
        require_choice("norm", norm, tuple(NORMS))
        require_rule(rule)
        require_choice("pooling", pooling, POOLINGS)
        require_choice("channel_dim", channel_dim, (1, -1))
        if inplace and (rule not in ("soft", rules.soft) or pooling != "avg"):
            raise ValueError(
                "inplace: got True, expected False for another rule than 'soft' or pooling than 'avg'"
            )
        self.channels = channels
        self.thresholds = thresholds
        self.statistic: Statistic = statistic or ("channel" if thresholds == "channel-wise" else "sample")
        self.reduction = reduction
        self.norm = norm
        self.inplace = inplace
        self.rule = "soft" if rule is rules.soft else rule
        self.pooling = pooling
        self.channel_dim = channel_dim
        self.varied = (self.rule, pooling, channel_dim) != ("soft", "avg", 1)
        hidden, outputs = max(channels // reduction, 1), channels if thresholds == "channel-wise" else 1
        kind = PooledGate if pooling == "avg+max" else nn.Sequential
        self.fc = make_gate(channels, hidden, outputs, norm, kind=kind)
        if rule == "asymmetric":
            self.fc_negative = make_gate(channels, hidden, outputs, norm, kind=kind)
        elif rule == "learned-slope":
            self.slope = nn.Parameter(torch.full((outputs,), FIRST_SLOPE))
        elif rule in ("hard", rules.hard):
            warnings.warn(
                "rule: 'hard' passes no gradient to its thresholds: the gate will not learn", stacklevel=2
            )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes a pickle from before there were variants."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if "varied" not in state:
            self.rule, self.pooling, self.channel_dim, self.varied = "soft", "avg", 1, False

    def reset_parameters(self) -> None:
        """Draw the gates' weights anew, and set learned slopes back; a rule that is a module stays as it is."""
        for gate in gates_of(self):
            for layer in gate.children():
                reset: Any = getattr(layer, "reset_parameters", None)
                if reset is not None:
                    reset()
        if self.rule == "learned-slope":
            nn.init.constant_(self.slope, FIRST_SLOPE)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if self.varied:
            return varied_shrink(self, x, residual)
        require_channels(x, self.channels, "channels")
        if self.use_reference:
            return reference.gated_shrink(x, self.fc, statistic=self.statistic, residual=residual)
        return functional.gated_shrink(
            x, self.fc, statistic=self.statistic, residual=residual, inplace=self.inplace
        )

    def extra_repr(self) -> str:
        rule = self.rule if isinstance(self.rule, str) else getattr(self.rule, "__name__", "")
        return (
            f"{self.channels}, {self.thresholds!r}, statistic={self.statistic!r}, reduction={self.reduction}, "
            f"norm={self.norm!r}, inplace={self.inplace}"
            + (f", rule={rule!r}" if rule and self.rule != "soft" else "")
            + (f", pooling={self.pooling!r}" if self.pooling != "avg" else "")
            + (f", channel_dim={self.channel_dim}" if self.channel_dim != 1 else "")
        )


def is_bare(shrinkage: nn.Module) -> TypeGuard[Shrinkage]:
    """True for the paper's `Shrinkage` with nothing attached, which one operator may compute together with more."""
    bare = type(shrinkage) is Shrinkage and not (shrinkage.use_reference or shrinkage.varied)
    return bare and is_plain(shrinkage)


class RSBU(nn.Module):
    """The residual shrinkage building unit: ``y = shrink(h) + shortcut(x)``, with nothing after the sum.

    ``h`` is x after BatchNorm, ReLU, convolution of width 3 (with the stride), BatchNorm, ReLU, convolution of
    width 3. The shortcut has no weights: it keeps every stride-th position, ``x[..., ::stride]``, and puts d more
    channels of zeros around x's, d // 2 before and d - d // 2 after.

    The convolutions have biases, and pad as TensorFlow's "same" does, in which the paper's programs are written:
    with stride 2 an axis of even length is padded at its end only (see `pad_same`).

    Args:
        in_channels: channels of x.
        out_channels: channels of y, at least ``in_channels``.
        stride: of the first convolution and the shortcut, on every spatial axis.
        dim: the number of spatial axes: 1, 2 or 3.
        thresholds: ``"channel-wise"``, ``"channel-shared"``, or None for the plain residual unit, which adds h.
        reduction: of the gate, see `Shrinkage`.
        norm: of the gate, see `Shrinkage`. The unit's own normalisations are always BatchNorm.
        rule: of the shrinkage, see `Shrinkage`; ``"soft"`` alone without thresholds.
        pooling: of the shrinkage, see `Shrinkage`; ``"avg"`` alone without thresholds.

    Shape: x is (N, in_channels, \\*spatial) with ``dim`` spatial axes; y has ``out_channels`` channels and
    ceil(n / stride) of the n positions of each axis.

    Raises:
        ValueError: a bad argument, or an x of another rank or number of channels.

    Source: Zhao et al., DOI 10.1109/TII.2019.2943898, figure 4.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        dim: int = 1,
        thresholds: Thresholds | None = "channel-wise",
        reduction: int = 1,
        norm: Norm = "batch",
        rule: Rule | RuleFunction = "soft",
        pooling: Pooling = "avg",
    ) -> None:
        super().__init__()
        require_positive("in_channels", in_channels)
        require_positive("out_channels", out_channels)
        require_positive("stride", stride)
        require_choice("dim", dim, tuple(CONVOLUTIONS))
        require_choice("thresholds", thresholds, (*THRESHOLDS, None))
        if out_channels < in_channels:
            raise ValueError(
                f"out_channels: got {out_channels}, expected at least in_channels, {in_channels}"
            )
        for name, value, usual in (("rule", rule, ("soft", rules.soft)), ("pooling", pooling, ("avg",))):
            if thresholds is None and value not in usual:
                raise ValueError(f"{name}: got {value!r}, expected {usual[0]!r} with thresholds=None")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = stride
        self.dim = dim
        self.bn1 = BATCH_NORMS[dim](in_channels)
        self.conv1 = conv3(dim, in_channels, out_channels, stride)
        self.bn2 = BATCH_NORMS[dim](out_channels)
        self.conv2 = conv3(dim, out_channels, out_channels)
        self.shrink = (
            None
            if thresholds is None
            else Shrinkage(
                out_channels, thresholds, reduction=reduction, norm=norm, rule=rule, pooling=pooling
            )
        )

    def shortcut(self, x: Tensor) -> Tensor:
        """Every stride-th position of x, with channels of zeros around it up to ``out_channels``."""
        return shortcut_of(x, self.stride, self.out_channels)

    def branch(self, x: Tensor) -> Tensor:
        """``h``, of the shape of y: what the shrinkage takes."""
        require_input(x, self.in_channels, self.dim)
        y, _ = self._first_half(x, None)
        return activated_convolution(self.bn2, self.conv2, y)[0]

    def _first_half(self, x: Tensor, shortcut_channels: int | None) -> tuple[Tensor, Tensor | None]:
        """x after the first convolution, and the shortcut if the operator is to make and has made it too."""
        return activated_convolution(self.bn1, self.conv1, x, self.stride, shortcut_channels)

    def _evaluate(self, x: Tensor) -> Tensor | None:
        """y, if one operator can make it."""
        part: Any = self._modules.get  # five calls of nn.Module.__getattr__ cost three microseconds
        shrink = part("shrink")
        if shrink is None or not is_strided(x) or not is_bare(shrink):
            return None
        norms, convs = (part("bn1"), part("bn2")), (part("conv1"), part("conv2"))
        return residual_unit.evaluated_unit(
            x, norms, convs, self.stride, self.out_channels, shrink.fc, shrink.statistic == "sample"
        )

    def forward(self, x: Tensor) -> Tensor:
        own = vars(self)  # asked by `in` alone, which torch.compile of PyTorch 2.11 follows
        if (type(self).branch, type(self).shortcut) != _PARTS or "branch" in own or "shortcut" in own:
            return self._add(self.branch(x), self.shortcut(x))
        require_input(x, self.in_channels, self.dim)
        y = None if self.training else self._evaluate(x)
        if y is not None:
            return y
        y, shortcut = self._first_half(x, self.out_channels)
        if shortcut is None:
            shortcut = self.shortcut(x)
        shrink = self.shrink
        bare = shrink is None or is_bare(shrink)
        made = residual_unit.activated_convolution(y, self.bn2, self.conv2) if is_strided(y) else None
        if made is not None:
            return self._add(made[0], shortcut, inplace=bare and is_unwatched())
        y, _ = pre_activation(self.bn2, y)
        if not bare or not leaves_unseen(self.conv2, y, shortcut):
            return self._add(apply(self.conv2, y), shortcut)
        # The sum overwrites the convolution's result, which may be no view: autograd would copy it.
        strided = is_strided(y)
        h = as_image(self.conv2, y) if strided else self.conv2(y)
        shortcut = shortcut.unsqueeze(2) if strided else shortcut
        h = self._add(h, shortcut, inplace=True)
        return h.squeeze(2) if strided else h

    def _add(self, h: Tensor, shortcut: Tensor, inplace: bool = False) -> Tensor:
        """The sum of h, which is shrunk, and the shortcut."""
        # Under autocast the convolution's result is narrower than x.
        shortcut, shrink = shortcut.to(h.dtype), self.shrink
        if shrink is None:
            return h.add_(shortcut) if inplace else h + shortcut
        if inplace:
            return functional.gated_shrink(
                h, shrink.fc, statistic=shrink.statistic, residual=shortcut, inplace=True
            )
        y: Tensor = shrink(h, shortcut)
        return y

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, stride={self.stride}, dim={self.dim}"


_PARTS = RSBU.branch, RSBU.shortcut
