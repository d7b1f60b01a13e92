"""Tells from a block's values whether it computes the definition, or which known mistake it makes.

The order of the steps matters: before a later one, an earlier one has ruled out the mistakes that would look alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from .mistakes import (
    GARROTE,
    HARD,
    MAGNITUDE_WITHOUT_SIGN,
    MEAN_DROPPED,
    MEAN_WITHOUT_ABS,
    RESHAPE,
    SHORTCUT,
    UNBOUNDED,
    UNKNOWN,
    VANISHED,
    Wrong,
)
from .probes import (
    SAMPLES,
    SCALES,
    Block,
    Rows,
    apart,
    deviation,
    gathered,
    layouts,
    measure,
    put_rows,
    share,
    take_rows,
)

# The mistakes in which y is another function of x and tau.
FORMS = {
    HARD: "x where |x| > tau and else 0",
    GARROTE: "x - tau^2 / x where |x| > tau and else 0",
    MAGNITUDE_WITHOUT_SIGN: "x * max(|x| - tau, 0)",
}
# The abs-mean of a quiet channel. A guard is far smaller than a threshold that zeroes it.
QUIET = 1e-5


def check_values(block: Block, rows: Rows) -> tuple[float, float]:
    """The smallest and the largest alpha. Raises `Wrong` unless y is soft thresholding by alpha times an abs-mean."""
    places = layouts(*rows.shape[1:], rows.device)
    found = _find_form(block, rows, places)
    _check_signs(block, rows, places, found)
    _check_layout(block, rows, places, found)
    return _check_mean(block, rows)


def _find_form(block: Block, rows: Rows, places: dict[str, Tensor]) -> str:
    """The layout whose rows have one threshold each. Raises `Wrong` where y is one of `FORMS` or none of them."""
    x = rows.base
    y = block(x)
    if apart(block(x), y) > block.tolerance:
        raise Wrong("gives another result for the same x: it draws random numbers or keeps a state")
    if not y.any():
        raise Wrong(UNKNOWN, "y is 0 everywhere: the thresholds are above the largest |x|, twice the mean")
    for form in (None, *FORMS):
        for (layout, order), (other, back) in itertools.product(places.items(), repeat=2):
            measured = measure(x, y, order, back, form)
            error = measured.error
            if not error <= block.tolerance:
                continue
            if other != layout:
                raise Wrong(
                    RESHAPE,
                    f"the {other} of y are the {layout} of x, shrunk by a threshold each, up to {error:.1g} of mean|x|",
                    deviation(measure(x, y, places["channels"]).error),
                )
            if form is not None:
                before, after = take_rows(x, order).flatten(), take_rows(y, order).flatten()
                at = before.argmax()
                soft = before[at] - measured.tau.flatten()[at // x.shape[-1]]
                raise Wrong(
                    form,
                    f"y is {FORMS[form]}, up to {error:.1g}: x = {before[at]:.3g} becomes {after[at]:.3g}, "
                    f"sign(x) * max(|x| - tau, 0) is {soft:.3g}",
                )
            # the block computes in float64: smaller differences count
            block.tolerance = 1e-6 if error < 1e-10 else block.tolerance
            block.error = error
            return layout
    if any(measure(x, y - x, order).error <= block.tolerance for order in places.values()):
        raise Wrong(SHORTCUT, "y - x is soft thresholding of x")
    raise Wrong(UNKNOWN, deviation(measure(x, y, places["channels"]).error))


def _check_signs(block: Block, rows: Rows, places: dict[str, Tensor], found: str) -> None:
    """Raises `Wrong` where other signs of the same magnitudes change more than the signs of y."""
    x, order = rows.base, places[found]
    y = block(x)
    quarter = 1 - 2 * (rows.ranks() < x.shape[-1] // 4).double()
    mean = x.mean(-1)
    for signs, alike in ((quarter, rows.signed), (-torch.ones_like(x), torch.neg)):
        turned = block(x * signs)
        if apart(turned.abs(), y.abs()) > block.tolerance:
            before, after = measure(x, y, order), measure(x * signs, turned, order)
            if after.error > block.tolerance:
                raise Wrong(
                    UNKNOWN,
                    f"with other signs of the same |x|, y deviates by up to {after.error:.2g} of the mean from soft "
                    "thresholding; with positive x it does not",
                )
            signed = (x * signs).mean(-1) / mean
            evidence = (
                f"the same |x| with {(signs < 0).double().mean():.0%} of the signs turned: mean|x| stays, mean(x) is "
                f"{_median(signed)} of it,",
                f"and tau goes from {_median(before.tau / mean)} to {_median(after.tau / mean)} times mean|x| "
                f"(median; from {(after.tau / mean).min().item():.3g} to {(after.tau / mean).max().item():.3g})",
            )
            beyond = _beyond_means(block, rows, order, places, alike)
            if beyond > block.tolerance:
                words = f"not through mean(x): with mean(x) and mean|x| fixed, tau still moves by up to {beyond:.2g}"
                raise Wrong(UNKNOWN, *evidence, words)
            raise Wrong(MEAN_WITHOUT_ABS, *evidence)
        other = ((turned * signs < 0).sum() / (turned != 0).sum()).item()
        if other == 0:
            continue
        if (turned >= 0).all():
            raise Wrong(
                MAGNITUDE_WITHOUT_SIGN,
                f"y is never negative, while {(signs < 0).double().mean():.0%} of x is; |y| is right",
            )
        raise Wrong(UNKNOWN, f"{other:.1%} of what is let through has another sign than x")


def _beyond_means(
    block: Block,
    rows: Rows,
    order: Tensor,
    places: dict[str, Tensor],
    turned: Callable[[Tensor], Tensor],
) -> float:
    """The largest difference between thresholds of rows with equal mean(x) and mean|x|, in the best layout."""
    differences = []
    for place in places.values():
        both = [put_rows(turned(values), place) for values in (rows.base, rows.peaked() * rows.scales)]
        even, peaked = (measure(x, block(x), order).tau for x in both)
        differences.append(apart(even, peaked))
    return min(differences)


def _check_layout(block: Block, rows: Rows, places: dict[str, Tensor], found: str) -> None:
    """Raises `Wrong` unless a channel has one threshold, which does not depend on where its values stand."""
    x, channels = rows.base, places["channels"]
    if found != "channels":
        measured = measure(x, block(x), channels)
        raise Wrong(
            RESHAPE,
            f"the thresholds are constant over {found}, not over channels",
            deviation(measured.error),
        )
    tau = block.measure(x).tau
    moved = max(apart(block.measure(gathered(x, order)).tau, tau) for order in places.values())
    if moved <= block.tolerance:
        return
    words = f"tau changes by up to {moved:.2g} (mean|x| is 1 to 1.5) when values move within their channel"
    for layout, order in list(places.items())[1:]:
        other = put_rows(take_rows(x, order).gather(-1, rows.ranks()), order)
        if apart(measure(other, block(other), channels).tau, tau) <= block.tolerance:
            raise Wrong(RESHAPE, words, f"and not at all when they move within {layout}")
    raise Wrong(UNKNOWN, words)


def _check_mean(block: Block, rows: Rows) -> tuple[float, float]:
    """The smallest and the largest tau / mean|x|. Raises `Wrong` unless tau follows the mean and stays below it."""
    even, peaked = (block.measure(x) for x in (rows.base, rows.peaked() * rows.scales))
    moved = (even.tau - peaked.tau) * (even.visible & peaked.visible)
    if moved.abs().max() > block.tolerance:
        evenly, in_few = (_median(measured.tau / rows.scales[..., 0]) for measured in (even, peaked))
        raise Wrong(
            UNKNOWN,
            f"rows of the same mean|x| have other thresholds: tau is {evenly} times mean|x| in rows of evenly spread "
            f"|x|, {in_few} times in rows with half of it in few values (median)",
        )
    seen, ratios, visible = [], [], []
    for scale in SCALES:
        x = rows.peaked() * scale
        measured = block.measure(x)
        ratios.append(share(measured.tau, x.mean(-1)).flatten())
        visible.append(measured.visible.flatten())
        if measured.visible.any():
            seen.append((scale, measured.tau[measured.visible]))
    low, high = min(r.min().item() for r in ratios), max(r.max().item() for r in ratios)
    words = tuple(f"at mean|x| = {scale:g}, tau is {_median(t)} (median)" for scale, t in seen)
    if low < -block.tolerance:
        raise Wrong(UNBOUNDED, f"alpha = tau / mean|x| is down to {low:.3g}", *words)
    if high > 1 + block.tolerance:
        # a multiple of the mean is the same share at every scale; a tau that ignores the mean is most at the faintest
        first, second = (ratio.max().item() for ratio in ratios[:2])
        if first > 1 + block.tolerance and (first > 10 * second or not visible[0][ratios[0].argmax()]):
            raise Wrong(MEAN_DROPPED, *words, "tau does not follow the mean: it is the gate's output alone")
        raise Wrong(UNBOUNDED, f"alpha = tau / mean|x| is up to {high:.3g}", *words)
    if max(abs(low), high) <= block.tolerance:
        raise Wrong(VANISHED, f"tau is at most {max(abs(low), high):.1g} times mean|x|: nothing is shrunk")
    return low, high


def find_kind(block: Block, rows: Rows) -> tuple[str | None, str | None, tuple[str, ...]]:
    """``thresholds`` and ``statistic`` of `Shrinkage`, None where they do not show, and the evidence."""
    if rows.shape[1] == 1:
        return None, None, ()
    statistic, bound = _find_statistic(block, rows)
    if statistic is None:
        return None, None, (bound,)
    x = rows.uneven()
    mean = x.mean(-1) if statistic == "channel" else x.mean((1, 2))[:, None]
    # only scales of at least 1, where a guard is too small to pass for a gate's output
    alpha = torch.cat([block.measure(x * scale).tau / (mean * scale) for scale in SCALES[2:]])
    between = (alpha.amax(1) - alpha.amin(1)).max().item()
    overall = (alpha.max() - alpha.min()).item()
    # outputs near 0 differ little from each other and are still not one
    shared = between <= min(block.tolerance, overall / 10)
    constant = overall <= block.tolerance
    thresholds = None if constant else "channel-shared" if shared else "channel-wise"
    of = "its channel" if statistic == "channel" else "its sample"
    spread = f"alpha = tau / mean|x| of {of} differs by up to {between:.2g} between the channels of a sample"
    return thresholds, statistic, (bound, spread)


def _find_statistic(block: Block, rows: Rows) -> tuple[str | None, str]:
    """The mean that bounds a channel's threshold, ``"channel"`` or ``"sample"``, and the evidence.

    None where the gate is closed, so that there is no threshold to compare.
    """
    quiet = torch.ones(SAMPLES, 1, 1, dtype=torch.float64, device=rows.device)
    quiet[::2] = 1e-3
    x = rows.base * quiet
    above = share(block.measure(x).tau, x.mean((1, 2))[:, None]).max().item()
    if above > 1 + block.tolerance:
        raise Wrong(
            UNKNOWN, f"in a quiet sample tau is {above:.3g} times mean|x|: it depends on other samples"
        )
    own, whole, shown = [], [], False
    # a gate that is closed at one magnitude may be open at another
    for first, loud in itertools.product((0, 1), SCALES[1:]):
        x = rows.base * loud
        x[:, first::2] *= QUIET / loud
        measured = block.measure(x)
        seen = measured.tau * measured.visible
        own.append(share(measured.tau, x.mean(-1)).max().item())
        whole.append(share(seen, x.mean((1, 2))[:, None]).max().item())
        # the quiet channels would be zeroed if this threshold were the sample's
        shown |= whole[-1] > block.tolerance and seen.max().item() > x[:, first::2].max().item()
    words = f"in a quiet channel, tau is up to {max(own):.3g} times the channel's mean|x|"
    if max(own) <= 1 + block.tolerance:
        return "channel" if shown else None, words
    if max(whole) > 1 + block.tolerance:
        raise Wrong(
            UNKNOWN,
            f"tau is up to {max(whole):.3g} times the mean|x| of its sample, {max(own):.3g} of its channel",
        )
    return "sample", words


def _median(ratio: Tensor) -> str:
    return f"{ratio.median().item():.3g}"
