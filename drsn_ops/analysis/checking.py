"""Whether somebody's own shrinkage block computes what the definition says, and which known mistake it makes if not.

The block is a black box: it is judged by what it makes of inputs of known magnitudes. An input is laid out as
(N, C, L) rows; a row's threshold is what its largest magnitude loses.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..arguments import require_choice, require_positive
from ..modules import THRESHOLDS, Thresholds
from ..reference import STATISTICS, Statistic

MEAN_WITHOUT_ABS = "mean without abs"
MAGNITUDE_WITHOUT_SIGN = "magnitude without sign"
MEAN_DROPPED = "mean dropped"
CONFUSED = "CS and CW confused"
RESHAPE = "reshape for transpose"
HARD = "hard threshold"
GARROTE = "garrote"
UNBOUNDED = "alpha not between 0 and 1"
CUT = "cut off from the gradient"
SHORTCUT = "x added to the result"

REMEDIES = {
    MEAN_WITHOUT_ABS: "take the mean of x.abs(), both for the gate's input and for what alpha multiplies",
    MAGNITUDE_WITHOUT_SIGN: "multiply max(|x| - tau, 0) by x.sign(), not by x, and not by nothing",
    MEAN_DROPPED: "multiply the gate's output by the abs-mean: tau = alpha * x.abs().mean(...)",
    CONFUSED: "CW: C gate outputs times the means of the channels; CS: one gate output times the mean of the sample; "
    "where another pair is meant, name its mean: statistic='channel' or statistic='sample'",
    RESHAPE: "bring the channels to axis 1 with transpose or permute; reshape and view move no axis",
    HARD: "take tau off what is let through too, x.sign() * (x.abs() - tau).relu(); a comparison gives tau no gradient",
    GARROTE: "take off tau, not tau ** 2 / x: x.sign() * (x.abs() - tau).relu()",
    UNBOUNDED: "end the gate in a sigmoid; what a softplus, a ReLU, a tanh or a bare linear layer returns is no share",
    CUT: "leave out the detach(), .data, .item() or torch.no_grad() around it",
    SHORTCUT: "give the shrinkage alone, without the shortcut that is added to it",
}
# What y is where it is not soft thresholding.
_FORMS = {
    HARD: "x where |x| > tau and else 0",
    GARROTE: "x - tau^2 / x where |x| > tau and else 0",
    MAGNITUDE_WITHOUT_SIGN: "x * max(|x| - tau, 0)",
}
UNKNOWN = "differs from the definition, none of the known mistakes"
VANISHED = "cannot be judged: the thresholds are 0 or next to it"
OTHER_GRADIENT = "has other gradients than what it computes"

_SAMPLES = 6
# What is made for a check, whatever PyTorch's default type and device are.
_MADE: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
_SPATIAL = {1: (251,), 2: (15, 17), 3: (5, 7, 8)}
_SCALES = (1e-4, 1e-2, 1.0, 1e2)
# What is added against a division by 0 may move y and tau by as much.
_GUARD = 1e-6
# The abs-mean of a quiet channel: what zeroes it is well above a guard.
_QUIET = 1e-5
# The statistic that the paper's two kinds of thresholds go with, and what each pair is called.
_STATISTIC = {"channel-wise": "channel", "channel-shared": "sample"}
_KINDS = {
    ("channel-wise", "channel"): "tau_c = alpha_c * mean|x_c|, DRSN-CW",
    ("channel-shared", "sample"): "tau = alpha * mean|x|, DRSN-CS",
    ("channel-wise", "sample"): "tau_c = alpha_c * mean|x|, the sample's mean with a channel-wide gate",
    ("channel-shared", "channel"): "tau_c = alpha * mean|x_c|, the channels' means with a gate of one output",
    (None, "channel"): "tau_c = alpha * mean|x_c| with one constant alpha, so the gate's width does not show",
    (None, "sample"): "tau = alpha * mean|x| with one constant alpha, so the gate's width does not show",
    (None, None): "tau = alpha * mean|x|; CW and CS are the same with one channel, or do not show",
}


@dataclass(frozen=True)
class Check:
    """What `check_shrinkage` found; true where the block is right, and printable.

    ``statement`` is the finding in a line. ``mistake`` is the known mistake's name, None where the block is right or
    wrong in another way. ``evidence`` is what was measured, a line each, and ``remedy`` how to mend a known mistake.
    ``thresholds`` and ``statistic`` are those of `Shrinkage`, None where they were not found or do not show.
    """

    right: bool
    statement: str
    mistake: str | None = None
    evidence: tuple[str, ...] = ()
    remedy: str | None = None
    thresholds: str | None = None
    statistic: str | None = None

    def __bool__(self) -> bool:
        return self.right

    def __str__(self) -> str:
        lines = [
            f"{'right' if self.right else 'wrong'}: {self.statement}",
            *(f"  {e}" for e in self.evidence),
        ]
        return "\n".join(lines + ([f"  to mend it: {self.remedy}"] if self.remedy else []))


class _Wrong(Exception):
    """Ends the examination: a known mistake's name, or a statement, and the evidence."""

    def __init__(self, finding: str, *evidence: str) -> None:
        super().__init__(finding)
        self.check = Check(
            right=False,
            statement=finding,
            mistake=finding if finding in REMEDIES else None,
            evidence=evidence,
            remedy=REMEDIES.get(finding),
        )


class _Measured(NamedTuple):
    """What a block did to (N, C, L) rows, in units of x and, the error, of a row's abs-mean."""

    tau: Tensor  # (N, C); of a row that was zeroed, its largest magnitude, which tau is at least
    visible: Tensor  # (N, C), whether anything of the row was let through
    error: float  # the largest deviation from soft thresholding by tau


def _softened(form: str | None, magnitude: Tensor, kept: Tensor) -> Tensor:
    """What soft thresholding by the same tau would have made of the magnitudes that became ``kept``."""
    if form == MAGNITUDE_WITHOUT_SIGN:
        return kept / magnitude
    if form == HARD:
        return (kept - (magnitude * (kept == 0)).amax(-1, keepdim=True)) * (kept > 0)
    if form == GARROTE:
        taken = (magnitude - kept) * magnitude
        taken = torch.where(taken < -1e-6 * magnitude**2, torch.nan, taken.clamp(min=0))  # no tau adds to x
        return (magnitude - taken.sqrt()) * (kept > 0)
    return kept


def _measure(
    x: Tensor,
    y: Tensor,
    order: Tensor,
    back: Tensor | None = None,
    form: str | None = None,
    slack: float = 0.0,
) -> _Measured:
    """The thresholds of the rows that ``order`` makes of a sample's elements, in y ``back`` where that is another.

    ``form`` is a key of `_FORMS`, or None for soft thresholding. A deviation of up to ``slack`` is no error.
    """
    orders = (order, order if back is None else back)
    magnitude, kept = (t.flatten(1)[:, o].reshape(x.shape).abs() for t, o in zip((x, y), orders, strict=True))
    kept = _softened(form, magnitude, kept)
    largest = magnitude.argmax(-1, keepdim=True)
    tau = (magnitude - kept).gather(-1, largest)
    deviation = (kept - (magnitude - tau).clamp(min=0)).abs()
    error = (deviation - slack).clamp(min=0) / magnitude.mean(-1, keepdim=True)
    return _Measured(tau.squeeze(-1), kept.gather(-1, largest).squeeze(-1) > 0, error.max().item())


class _Block:
    """A block as a function of (N, C, L) float64 rows, which it sees with their spatial axes."""

    def __init__(self, call: Callable[[Tensor], object], spatial: tuple[int, ...], like: Tensor) -> None:
        self.call = call
        self.spatial = spatial
        self.like = like
        self.tolerance = 1e-4  # of float32 in a row whose largest value is 100 times its mean
        self.error = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        """The block's result; x stays as it is."""
        given = x.to(self.like, copy=True).reshape(*x.shape[:2], *self.spatial)
        shape = tuple(given.shape)
        y = self.call(given)
        if not isinstance(y, Tensor):
            raise _Wrong(f"returns {type(y).__name__}, expected a tensor")
        if tuple(y.shape) != shape:
            raise _Wrong(f"returns shape {tuple(y.shape)} for an x of {shape}, expected the same shape")
        if not y.is_floating_point():
            raise _Wrong(
                f"returns {y.dtype} for an x of {self.like.dtype}, expected a real floating-point type"
            )
        y = y.to(x).reshape(x.shape)
        if not y.isfinite().all():
            word = "NaN" if y.isnan().any() else "infinite values"
            raise _Wrong(
                f"returns {word} for a finite x", f"{(~y.isfinite()).double().mean():.1%} of the values"
            )
        return y

    def measure(self, x: Tensor) -> _Measured:
        """The rows' thresholds, where the block is soft thresholding by them."""
        y = self(x)
        measured = _measure(x, y, torch.arange(x[0].numel(), device=x.device), slack=_GUARD)
        if measured.error > self.tolerance:
            raise _Wrong(UNKNOWN, _deviation(measured.error))
        return measured


def _deviation(error: float) -> str:
    return f"y deviates by up to {error:.2g} of mean|x| from soft thresholding with one threshold a channel"


def _share(tau: Tensor, mean: Tensor) -> Tensor:
    """tau / mean, which a guard alone does not bring below 0 or above 1."""
    within = tau.clamp(min=0).minimum(mean)
    return (within + F.softshrink(tau - within, _GUARD)) / mean


def _times(ratio: Tensor) -> str:
    return f"{ratio.median().item():.3g}"


class _Rows:
    """Positive rows of (N, C, L) whose magnitudes are spread evenly between nearly 0 and twice their mean."""

    def __init__(self, channels: int, length: int, device: torch.device) -> None:
        self.shape = (_SAMPLES, channels, length)
        self.generator = torch.Generator().manual_seed(0)
        self.device = device
        self.scales = torch.linspace(1, 1.5, _SAMPLES, **_MADE).to(device)[:, None, None]
        self.base = self.shuffled(self.spread()) * self.scales

    def spread(self) -> Tensor:
        return torch.linspace(0.05, 1.95, self.shape[-1], **_MADE)

    def ranks(self) -> Tensor:
        """A random order of each row's positions."""
        ranks = torch.rand(self.shape, generator=self.generator, dtype=torch.float32, device="cpu")
        return ranks.argsort(-1).to(self.device)

    def shuffled(self, values: Tensor) -> Tensor:
        """Rows that hold ``values`` in random orders."""
        return values.to(self.device)[self.ranks()]

    def peaked(self) -> Tensor:
        """Rows of mean 1 with half of it in few positions: a threshold far above the mean still shows there."""
        values = self.spread()
        # as many as keep the largest value so small that float32 tells what it loses
        few = 1 + len(values) // 300
        values[-few:] = values[:-few].sum() / few
        return self.shuffled(values / values.mean())

    def signed(self, magnitude: Tensor) -> Tensor:
        """Rows of the same mean|x| with a random quarter turned, and so scaled that mean(x) is half of mean|x|."""
        turned = (self.ranks() < self.shape[-1] // 4).double()
        parts = ((0.75, 1 - turned), (-0.25, turned))
        total = magnitude.sum(-1, keepdim=True)
        rows = [s * magnitude * p * total / (magnitude * p).sum(-1, keepdim=True) for s, p in parts]
        return rows[0] + rows[1]

    def uneven(self) -> Tensor:
        """The base with each row scaled so little that no threshold below the sample's mean can zero it."""
        factors = 0.75 + 0.5 * torch.rand(self.shape[:2], generator=self.generator, **_MADE)
        return self.base * factors.to(self.device)[..., None]


def _layouts(channels: int, length: int, device: torch.device) -> dict[str, Tensor]:
    """For each way to take C rows out of a sample's memory, the order of its elements; the first is the right one."""
    index = torch.arange(channels * length, device=device)
    return {
        "channels": index,
        "rows of (C, L) memory read as (L, C)": index.reshape(length, channels).T.flatten(),
        "rows of (L, C) memory read as (C, L)": index.reshape(channels, length).T.flatten(),
    }


def _placed(rows: Tensor, order: Tensor) -> Tensor:
    """The x from which ``order`` takes these rows."""
    x = torch.empty_like(rows).flatten(1)
    return x.scatter(1, order.expand(len(x), -1), rows.flatten(1)).reshape(rows.shape)


def _gathered(x: Tensor, order: Tensor) -> Tensor:
    """x with each channel's values sorted by the row of ``order`` that their positions belong to."""
    channels, length = x.shape[1:]
    row = torch.empty_like(order).scatter(0, order, torch.arange(len(order), device=x.device) // length)
    positions = row.reshape(channels, length).argsort(stable=True, dim=-1)
    return torch.empty_like(x).scatter(-1, positions.expand_as(x), x.sort(-1).values)


def _shuffled_within(x: Tensor, order: Tensor, ranks: Tensor) -> Tensor:
    """x with the values within each row of ``order`` exchanged."""
    return _placed(x.flatten(1)[:, order].reshape(x.shape).gather(-1, ranks), order)


def _find_form(block: _Block, rows: _Rows, layouts: dict[str, Tensor]) -> str:
    """The layout whose rows have one threshold each, where y is soft thresholding or one of `_FORMS`."""
    x = rows.base
    y = block(x)
    if _apart(block(x), y) > block.tolerance:
        raise _Wrong("gives another result for the same x: it draws random numbers or keeps a state")
    if not y.any():
        raise _Wrong(UNKNOWN, "y is 0 everywhere: the thresholds are above the largest |x|, twice the mean")
    for form in (None, *_FORMS):
        for (layout, order), (other, back) in itertools.product(layouts.items(), repeat=2):
            measured = _measure(x, y, order, back, form)
            error = measured.error
            if not error <= block.tolerance:
                continue
            if other != layout:
                raise _Wrong(
                    RESHAPE,
                    f"the {other} of y are the {layout} of x, shrunk by a threshold each, up to {error:.1g} of mean|x|",
                    _deviation(_measure(x, y, layouts["channels"]).error),
                )
            if form is not None:
                before, after = (t.flatten(1)[:, order].flatten() for t in (x, y))
                at = before.argmax()
                soft = before[at] - measured.tau.flatten()[at // x.shape[-1]]
                raise _Wrong(
                    form,
                    f"y is {_FORMS[form]}, up to {error:.1g}: x = {before[at]:.3g} becomes {after[at]:.3g}, "
                    f"sign(x) * max(|x| - tau, 0) is {soft:.3g}",
                )
            # where nothing but rounding is left, more can be told from rounding
            block.tolerance = 1e-6 if error < 1e-10 else block.tolerance
            block.error = error
            return layout
    if any(_measure(x, y - x, order).error <= block.tolerance for order in layouts.values()):
        raise _Wrong(SHORTCUT, "y - x is soft thresholding of x")
    raise _Wrong(UNKNOWN, _deviation(_measure(x, y, layouts["channels"]).error))


def _apart(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


def _beyond_means(
    block: _Block,
    rows: _Rows,
    order: Tensor,
    layouts: dict[str, Tensor],
    turned: Callable[[Tensor], Tensor],
) -> float:
    """By how much thresholds differ between rows, of the layout where they do least, with equal mean(x) and mean|x|."""
    apart = []
    for place in layouts.values():
        both = [_placed(turned(values), place) for values in (rows.base, rows.peaked() * rows.scales)]
        even, peaked = (_measure(x, block(x), order).tau for x in both)
        apart.append(_apart(even, peaked))
    return min(apart)


def _check_signs(block: _Block, rows: _Rows, layouts: dict[str, Tensor], found: str) -> None:
    """Other signs of the same magnitudes change the signs of y and nothing else."""
    x, order = rows.base, layouts[found]
    y = block(x)
    quarter = 1 - 2 * (rows.ranks() < x.shape[-1] // 4).double()
    mean = x.mean(-1)
    for signs, alike in ((quarter, rows.signed), (-torch.ones_like(x), torch.neg)):
        turned = block(x * signs)
        if _apart(turned.abs(), y.abs()) > block.tolerance:
            before, after = _measure(x, y, order), _measure(x * signs, turned, order)
            if after.error > block.tolerance:
                raise _Wrong(
                    UNKNOWN,
                    f"with other signs of the same |x|, y deviates by up to {after.error:.2g} of the mean from soft "
                    "thresholding; with positive x it does not",
                )
            signed = (x * signs).mean(-1) / mean
            evidence = (
                f"the same |x| with {(signs < 0).double().mean():.0%} of the signs turned: mean|x| stays, mean(x) is "
                f"{_times(signed)} of it,",
                f"and tau goes from {_times(before.tau / mean)} to {_times(after.tau / mean)} times mean|x| "
                f"(median; from {(after.tau / mean).min().item():.3g} to {(after.tau / mean).max().item():.3g})",
            )
            beyond = _beyond_means(block, rows, order, layouts, alike)
            if beyond > block.tolerance:
                words = f"not through mean(x): with mean(x) and mean|x| fixed, tau still moves by up to {beyond:.2g}"
                raise _Wrong(UNKNOWN, *evidence, words)
            raise _Wrong(MEAN_WITHOUT_ABS, *evidence)
        other = ((turned * signs < 0).sum() / (turned != 0).sum()).item()
        if other == 0:
            continue
        if (turned >= 0).all():
            raise _Wrong(
                MAGNITUDE_WITHOUT_SIGN,
                f"y is never negative, while {(signs < 0).double().mean():.0%} of x is; |y| is right",
            )
        raise _Wrong(UNKNOWN, f"{other:.1%} of what is let through has another sign than x")


def _check_layout(block: _Block, rows: _Rows, layouts: dict[str, Tensor], found: str) -> None:
    """A threshold is one number a channel and depends on no value's position in its channel."""
    x, channels = rows.base, layouts["channels"]
    if found != "channels":
        measured = _measure(x, block(x), channels)
        raise _Wrong(
            RESHAPE,
            f"the thresholds are constant over {found}, not over channels",
            _deviation(measured.error),
        )
    tau = block.measure(x).tau
    moved = max(_apart(block.measure(_gathered(x, order)).tau, tau) for order in layouts.values())
    if moved <= block.tolerance:
        return
    words = f"tau changes by up to {moved:.2g} (mean|x| is 1 to 1.5) when values move within their channel"
    for layout, order in list(layouts.items())[1:]:
        other = _shuffled_within(x, order, rows.ranks())
        if _apart(_measure(other, block(other), channels).tau, tau) <= block.tolerance:
            raise _Wrong(RESHAPE, words, f"and not at all when they move within {layout}")
    raise _Wrong(UNKNOWN, words)


def _check_mean(block: _Block, rows: _Rows) -> tuple[float, float]:
    """Thresholds come from the mean and stay below it. Returns the smallest and the largest tau / mean|x|."""
    even, peaked = (block.measure(x) for x in (rows.base, rows.peaked() * rows.scales))
    moved = (even.tau - peaked.tau) * (even.visible & peaked.visible)
    if moved.abs().max() > block.tolerance:
        raise _Wrong(
            UNKNOWN,
            f"rows of the same mean|x| have other thresholds: tau is {_times(even.tau / rows.scales[..., 0])} times "
            f"mean|x| in rows of evenly spread |x|, {_times(peaked.tau / rows.scales[..., 0])} times in rows with half "
            "of it in few values (median)",
        )
    seen, ratios, visible = [], [], []
    for scale in _SCALES:
        x = rows.peaked() * scale
        measured = block.measure(x)
        ratios.append(_share(measured.tau, x.mean(-1)).flatten())
        visible.append(measured.visible.flatten())
        if measured.visible.any():
            seen.append((scale, measured.tau[measured.visible]))
    low, high = min(r.min().item() for r in ratios), max(r.max().item() for r in ratios)
    words = tuple(f"at mean|x| = {scale:g}, tau is {_times(t)} (median)" for scale, t in seen)
    if low < -block.tolerance:
        raise _Wrong(UNBOUNDED, f"alpha = tau / mean|x| is down to {low:.3g}", *words)
    if high > 1 + block.tolerance:
        # of what is a hundredth, a mean's multiple is a hundredth too; what zeroes the faintest x does not follow it
        first, second = (ratio.max().item() for ratio in ratios[:2])
        if first > 1 + block.tolerance and (first > 10 * second or not visible[0][ratios[0].argmax()]):
            raise _Wrong(MEAN_DROPPED, *words, "tau does not follow the mean: it is the gate's output alone")
        raise _Wrong(UNBOUNDED, f"alpha = tau / mean|x| is up to {high:.3g}", *words)
    if max(abs(low), high) <= block.tolerance:
        raise _Wrong(VANISHED, f"tau is at most {max(abs(low), high):.1g} times mean|x|: nothing is shrunk")
    return low, high


def _find_statistic(block: _Block, rows: _Rows) -> tuple[str | None, str]:
    """Whether a channel's threshold is bounded by its own mean or only by its sample's, and what says so.

    None where a gate at its limit leaves no threshold to compare.
    """
    quiet = torch.ones(_SAMPLES, 1, 1, dtype=torch.float64, device=rows.device)
    quiet[::2] = 1e-3
    x = rows.base * quiet
    above = _share(block.measure(x).tau, x.mean((1, 2))[:, None]).max().item()
    if above > 1 + block.tolerance:
        raise _Wrong(
            UNKNOWN, f"in a quiet sample tau is {above:.3g} times mean|x|: it depends on other samples"
        )
    own, whole, shown = [], [], False
    # a gate that is shut at one magnitude may be open at another
    for first, loud in itertools.product((0, 1), _SCALES[1:]):
        x = rows.base * loud
        x[:, first::2] *= _QUIET / loud
        measured = block.measure(x)
        seen = measured.tau * measured.visible
        own.append(_share(measured.tau, x.mean(-1)).max().item())
        whole.append(_share(seen, x.mean((1, 2))[:, None]).max().item())
        # as the sample's, this threshold would have zeroed the quiet channels
        shown |= whole[-1] > block.tolerance and seen.max().item() > x[:, first::2].max().item()
    words = f"in a quiet channel, tau is up to {max(own):.3g} times the channel's mean|x|"
    if max(own) <= 1 + block.tolerance:
        return "channel" if shown else None, words
    if max(whole) > 1 + block.tolerance:
        raise _Wrong(
            UNKNOWN,
            f"tau is up to {max(whole):.3g} times the mean|x| of its sample, {max(own):.3g} of its channel",
        )
    return "sample", words


def _find_kind(block: _Block, rows: _Rows) -> tuple[str | None, str | None, tuple[str, ...]]:
    """``thresholds`` and ``statistic`` of `Shrinkage`, as far as they show, and what says so."""
    if rows.shape[1] == 1:
        return None, None, ()
    statistic, bound = _find_statistic(block, rows)
    if statistic is None:
        return None, None, (bound,)
    x = rows.uneven()
    mean = x.mean(-1) if statistic == "channel" else x.mean((1, 2))[:, None]
    # not below 1, where a guard could be taken for a gate's output
    alpha = torch.cat([block.measure(x * scale).tau / (mean * scale) for scale in _SCALES[2:]])
    between = (alpha.amax(1) - alpha.amin(1)).max().item()
    overall = (alpha.max() - alpha.min()).item()
    # outputs next to 0 are near each other, and still not one
    shared = between <= min(block.tolerance, overall / 10)
    constant = overall <= block.tolerance
    thresholds = None if constant else "channel-shared" if shared else "channel-wise"
    of = "its channel" if statistic == "channel" else "its sample"
    spread = f"alpha = tau / mean|x| of {of} differs by up to {between:.2g} between the channels of a sample"
    return thresholds, statistic, (bound, spread)


class _Probe(NamedTuple):
    """How a number moves with a direction of x: as the gradient has it, in a step, and in a long one."""

    gradient: float
    moved: float
    error: float
    far: float

    def __sub__(self, other: _Probe) -> _Probe:
        return _Probe(
            self.gradient - other.gradient,
            self.moved - other.moved,
            self.error + other.error,
            self.far - other.far,
        )

    @property
    def agrees(self) -> bool:
        apart = min(abs(self.moved - self.gradient) - self.error, abs(self.far - self.gradient) - 1e-4)
        return apart <= 0

    @property
    def differs(self) -> bool:
        """Whether it is by more than a gate in bfloat16 may be off."""
        return abs(self.far - self.gradient) > 0.1 * (abs(self.far) + abs(self.gradient)) + 0.05


def _probe(value: Callable[[Tensor], Tensor], x: Tensor, gradient: Tensor, direction: Tensor) -> _Probe:
    unit, along = x.mean().item(), (gradient * direction).sum().item()
    middle = value(x).item()

    def step(size: float) -> tuple[float, bool]:
        """The slope from a step back to one ahead, and whether it is of a straight line but for a curve's part."""
        ahead, back = (value(x + sign * size * unit * direction).item() for sign in (1, -1))
        bend = abs(ahead + back - 2 * middle) / unit
        return (ahead - back) / (2 * size * unit), bend <= 1e-11 + 10 * size**2

    moved, straight = step(1e-6)
    probe = _Probe(along, moved, 1e-5 * (abs(moved) + abs(along)) + 1e-7, moved)
    if probe.agrees:
        return probe
    # float32 in any part of the block drowns short steps; long ones may meet a kink of the gate
    slopes, lines = zip(*map(step, (1e-5, 1e-4, 1e-2)), strict=True)
    far = min(slopes[1:], key=lambda slope: abs(slope - along))
    if straight and lines[0]:
        return probe._replace(far=far)
    return _Probe(along, far, 1e-2 * (abs(far) + abs(along)) + 1e-4, far)


def _cut_from_x(block: _Block, x: Tensor, weights: Tensor) -> tuple[list[str], list[str]]:
    """What of y no gradient takes back to x, and where it takes another one.

    The small values of x move y at the large ones through the threshold alone: by alpha through the mean that alpha
    multiplies, and by the rest through the gate.
    """
    length, mean = x.shape[-1], x.mean(-1, keepdim=True)
    large = (x > 1.2 * mean).double()
    # another one in every other sample, as a BatchNorm of the gate takes out a common one; the same in all channels
    rise = 1 - 0.5 * (torch.arange(len(x), device=x.device) % 2).double()[:, None, None]
    by_small, by_large = (rise * length * part / part.sum(-1, keepdim=True) for part in (1 - large, large))
    weights = weights / (weights * rise).sum()

    def value(x: Tensor) -> Tensor:
        return -(weights * (block(x) * large).sum(-1, keepdim=True) / large.sum(-1, keepdim=True)).sum()

    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(value(leaf), leaf, allow_unused=True, materialize_grads=True)
    through = _probe(value, x, gradient, by_small)
    beside = _probe(value, x, gradient, by_large) - through
    cut: list[str] = []
    other: list[str] = []
    if not through.agrees:
        multiplied = (weights * rise * block.measure(x).tau[..., None] / mean).sum().item()
        left = {
            "the threshold": 0.0 if through.gradient == 0 else math.inf,
            "the mean that alpha multiplies": through.moved - multiplied,
            "the gate's input": multiplied,
        }
        part = min(left, key=lambda name: abs(through.gradient - left[name]))
        words = f"tau moves by {through.far:.3g} with mean|x|, and by {through.gradient:.3g} as the gradient has it"
        if abs(through.gradient - left[part]) <= through.error:
            cut.append(f"{words}: {part} is cut off from x")
        elif through.differs:
            other.append(words)
    if not beside.agrees:
        words = (
            f"with tau as it is, the gradient has y move by {beside.gradient / beside.far:.3g} of what x does"
        )
        if abs(beside.gradient) <= beside.error:
            cut.append(f"{words}: x is cut off beside the threshold")
        elif beside.differs:
            other.append(words)
    return cut, other


def _cut_parameters(block: _Block, rows: _Rows, y: Tensor) -> list[str]:
    """The names of the parameters that y, which has a graph, moves with and gives no gradient."""
    if not isinstance(block.call, nn.Module):
        return []
    named = {name: p for name, p in block.call.named_parameters() if p.requires_grad}
    inputs = [*named.values()]
    gradients = torch.autograd.grad(y, inputs, torch.ones_like(y), allow_unused=True) if named else ()
    cut: list[str] = []
    for (name, parameter), gradient in zip(named.items(), gradients, strict=True):
        if gradient is None:
            before = parameter.clone()
            parameter.add_(torch.randn(parameter.shape, generator=rows.generator, **_MADE).to(parameter))
            if _apart(block(rows.base), y) > block.tolerance:
                cut.append(name)
            parameter.copy_(before)
    return cut


def _check_gradients(block: _Block, rows: _Rows) -> tuple[str, ...]:
    """Thresholds and gates learn. Returns what is to be said of a function that computes without a graph."""
    is_module = isinstance(block.call, nn.Module)
    with torch.enable_grad():
        try:
            y = block(rows.base.clone().requires_grad_())
        # as numpy() of what requires gradients does
        except Exception as error:
            if is_module:
                raise
            return (
                f"raises {type(error).__name__} where x requires gradients: whether it learns does not show",
            )
    if not y.requires_grad:
        if is_module:
            raise _Wrong(CUT, "y has no gradient at all")
        return ("y has no gradient at all: whether it learns does not show",)
    names = _cut_parameters(block, rows, y)
    evidence = [f"y moves with {', '.join(names)}, which no gradient reaches"] if names else []
    weights = 0.5 + torch.rand((*rows.shape[:2], 1), generator=rows.generator, **_MADE).to(rows.device)
    differing = []
    for scale in _SCALES[1:]:
        cut, other = _cut_from_x(block, rows.base * scale, weights)
        if cut:
            evidence += cut
            break
        differing += other[:1]
    if evidence:
        raise _Wrong(CUT, *evidence)
    # a gate in bfloat16 may look so at one of them
    if len(differing) > 1:
        raise _Wrong(OTHER_GRADIENT, *differing)
    return ()


def _examine(block: _Block, rows: _Rows, expected: Thresholds | None, meant: Statistic | None) -> Check:
    """Every step in the order in which one mistake would look like another."""
    layouts = _layouts(*rows.shape[1:], rows.device)
    found = _find_form(block, rows, layouts)
    _check_signs(block, rows, layouts, found)
    _check_layout(block, rows, layouts, found)
    low, high = _check_mean(block, rows)
    thresholds, statistic, evidence = _find_kind(block, rows)
    kind = _KINDS[thresholds, statistic]
    if statistic is not None:
        width = expected or thresholds
        # a gate whose width does not show goes with either mean
        scope = meant or (statistic if width is None else _STATISTIC[width])
        if statistic != scope or thresholds not in (None, width):
            wanted = _KINDS[width, scope] if expected or meant else "DRSN-CW or DRSN-CS"
            raise _Wrong(CONFUSED, f"expected {wanted}", f"found {kind}", *evidence)
    learning = _check_gradients(block, rows)
    exact = (
        f"y is soft thresholding up to {block.error:.1g} of mean|x|; alpha is {max(low, 0):.3g} to {high:.3g}"
    )
    return Check(True, kind, None, (exact, *evidence, *learning), None, thresholds, statistic)


def _prepared(
    module: Callable[[Tensor], object], dtype: torch.dtype, training: bool
) -> tuple[Callable[[Tensor], object], Tensor]:
    """A copy of the module in ``dtype``, and a tensor of the type and device that it takes."""
    if not isinstance(module, nn.Module):
        return module, torch.empty(0, dtype=dtype, device="cpu")
    try:
        own = copy.deepcopy(module)
    except Exception as error:
        raise ValueError(
            f"module: got one that cannot be copied ({error}), expected one that can, or a function that calls it"
        ) from error
    own = own.to(dtype).train(training)
    device = next((t.device for t in (*own.parameters(), *own.buffers())), torch.device("cpu"))
    return own, torch.empty(0, dtype=dtype, device=device)


def check_shrinkage(
    module: Callable[[Tensor], object],
    channels: int,
    *,
    dim: int = 1,
    spatial: Sequence[int] | None = None,
    expected: Thresholds | None = None,
    statistic: Statistic | None = None,
    training: bool = False,
) -> Check:
    r"""Whether a shrinkage block is ``sign(x) * max(|x| - alpha * mean|x|, 0)``, and what is wrong with it if not.

    Only what the block makes of chosen inputs is looked at, so any gate will do that makes numbers between 0 and 1 of
    the channels' means. The mistakes that are told apart, all of them met in public code:

    - ``"mean without abs"``: the mean of x, not of ``|x|``, goes into the gate or the threshold;
    - ``"magnitude without sign"``: ``max(|x| - tau, 0)`` is returned as it is, or multiplied by x;
    - ``"mean dropped"``: the gate's output alone is the threshold;
    - ``"CS and CW confused"``: the mean of the sample with a channel-wide gate, or the channels' means with a gate of
      one output, unless ``statistic`` asks for it; or thresholds of another kind than ``expected``;
    - ``"reshape for transpose"``: rows of memory are taken for channels after axes were renamed, not moved;
    - ``"hard threshold"`` and ``"garrote"``: x, or ``x - tau^2 / x``, is let through where ``|x| > tau``;
    - ``"alpha not between 0 and 1"``: a softplus, a ReLU or a linear layer ends the gate, so that tau exceeds the mean
      or is negative;
    - ``"cut off from the gradient"``: a ``detach``, ``.data``, ``.item()`` or ``no_grad`` keeps x, the mean that alpha
      multiplies, the gate's input or the gate's parameters from learning. Frozen parameters are no mistake.

    A block with several mistakes is told one; mend it and ask again. The statistic and the gate's width show only as
    far as the gate's outputs do: an alpha below 1e-7 in a quiet channel passes for the channel's own mean, and C
    outputs that are always equal for one. A guard of up to 1e-6 against a division by 0 is no mistake. Gradients are
    compared with what y does when x moves a little; a cut that takes less than a thousandth of them does not show, in
    float32 less than a fiftieth.

    Args:
        module: maps (N, C, \*spatial) to the same shape; the shrinkage alone, without convolutions or the shortcut.
            A module is copied, to float64 where it can compute in it, and is itself neither called nor changed. Any
            other callable is called as it is, with float64 tensors on the CPU, float32 where that fails; it may
            compute without gradients, in NumPy for example.
        channels: C.
        dim: the number of spatial axes: 1, 2 or 3.
        spatial: their sizes, where the block takes no others; at least 16 positions in all.
        expected: ``"channel-wise"`` (DRSN-CW), ``"channel-shared"`` (DRSN-CS), or None, which accepts both and says
            which it is.
        statistic: the mean that alpha is meant to multiply, as in `Shrinkage`: ``"channel"`` or ``"sample"``, with
            either gate. None follows the paper: ``"channel"`` for a channel-wide gate, ``"sample"`` for one output.
        training: examine the block in training mode, where its gate's BatchNorm uses the batch.

    Returns:
        A `Check`: true or false, and to be printed. A block that raises, or returns another shape, type or NaN, is
        wrong, with a statement that says so.

    Raises:
        TypeError: a module that cannot be called.
        ValueError: a bad argument, or a module that cannot be copied.

    Source of the definition: Zhao et al., DOI 10.1109/TII.2019.2943898, section III.

    >>> check = drsn_ops.check_shrinkage(lambda x: x.sign() * (x.abs() - 0.5 * x.mean(-1, True)).relu(), channels=4)
    >>> bool(check), check.mistake
    (False, 'mean without abs')
    """
    if not callable(module):
        raise TypeError(f"module: got {type(module).__name__}, expected a module or another callable")
    require_positive("channels", channels)
    require_choice("dim", dim, tuple(_SPATIAL))
    require_choice("expected", expected, (*THRESHOLDS, None))
    require_choice("statistic", statistic, (*STATISTICS, None))
    sizes = _SPATIAL[dim] if spatial is None else tuple(spatial)
    if len(sizes) != dim or math.prod(sizes) < 16:
        raise ValueError(
            f"spatial: got {sizes}, expected {dim} sizes (dim) with at least 16 positions in all"
        )
    # the last dtype's failure is the block's
    for dtype in (torch.float64, torch.float32):
        # what is made in inference mode would have no gradients
        with torch.inference_mode(False):
            call, like = _prepared(module, dtype, training)
        block = _Block(call, sizes, like)
        devices = [like.device] if like.is_cuda else []
        try:
            with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices):
                rows = _Rows(channels, math.prod(sizes), like.device)
                return _examine(block, rows, expected, statistic)
        except _Wrong as wrong:
            return wrong.check
        except Exception as error:
            message = str(error).partition("\n")[0]
            called = f"it was called with x of shape {(_SAMPLES, channels, *sizes)}; dim says how many axes are spatial"
            failure = Check(False, f"raises {type(error).__name__}", None, (message, called))
    return failure
