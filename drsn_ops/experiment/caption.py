"""The words of an experiment's report: what was averaged, what was done to the signals, and what the figures show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from ..arguments import as_flag, counted, flagged
from ..training.networks import GATE_FLAGS
from .averages import gaining, of, over_seeds
from .settings import FULL, PLAIN, STAGES, Result, Settings

NORMALISED = {
    "standard": "Before the noise, each {signal} is standardised in each channel: it is taken less its mean and "
    "divided by its standard deviation. Noise at a ratio grows with the signal, so that otherwise the level alone, of "
    "signal and noise together, may tell the class.",
    "mean": "Before the noise, each {signal} is taken less its mean in each channel, and keeps its power. Noise at a "
    "ratio grows with the signal: the level alone, of signal and noise together, may tell the class.",
    "none": "Each {signal} keeps its mean and its power. Noise at a ratio grows with both: the level alone, of signal "
    "and noise together, may tell the class.",
}
CHOSEN = (*STAGES[1:], *GATE_FLAGS, "fresh_noise", "adapt_batch_norm")
# how recordings are split where the seed has no part in it
FIXED = {
    "time": "all test on the last part of each recording",
    "given": "the split of all is the one given",
}


def like_the_papers(settings: Settings) -> bool:
    """Whether the paper's accuracies can stand beside these: its kind of signals, and the noises that it averages over.

    That is the simulated machine in all of its kinds of noise, at ratios from its lowest to its highest.
    """
    kinds = {*settings.noise_kind} == {*FULL.noise_kind}
    ratios = all(end(settings.snr) == end(FULL.snr) for end in (min, max))
    return settings.simulated and kinds and ratios


def caption(settings: Settings, results: Sequence[Result]) -> str:
    """The text between the tables: what is averaged, what was done to the signals, what differs from the paper."""
    paragraphs = [
        f"{averaged(settings)} {own_of_a_seed(settings)} {resolution(settings, results)}",
        NORMALISED[settings.normalise].format(signal=noun_of(settings)),
        *chosen(settings),
        beside_the_paper(settings) if like_the_papers(settings) else alone(settings),
        f"Computed on: {'; '.join(dict.fromkeys(result.origin for result in results))}.",
    ]
    return "\n\n".join(paragraphs) + "\n"


def other_flags(settings: Settings) -> list[str]:
    """The choices that are not the paper's, as the command line takes them."""
    values = ((name, getattr(settings, name)) for name in CHOSEN)
    return [flagged(name, value) for name, value in values if value != getattr(FULL, name)]


def chosen(settings: Settings) -> list[str]:
    """The choices that are not the paper's, as flags, and what they mean where the flag does not say it; or nothing."""
    flags = other_flags(settings)
    if not flags:
        return []
    text = f"Not as in the paper: {', '.join(f'`{flag}`' for flag in flags)}."
    if settings.fresh_noise:
        text += " The noise of the training signals is drawn anew in every epoch; that of the test signals is not."
    if settings.adapt_batch_norm:
        text += (
            " Before the test, the statistics of every BatchNorm are those of the test signals, all together and "
            "without their labels (AdaBN); accuracies in training are from before."
        )
    return [text]


def noun_of(settings: Settings) -> str:
    """What one of the signals is called."""
    return "signal" if settings.simulated else "window"


def averaged(settings: Settings) -> str:
    """What the figures are means of."""
    ratios = ", ".join(map(as_flag, sorted(settings.snr)))
    noises = f"in {', '.join(settings.noise_kind)} noise at {ratios} dB"
    text = f"Accuracy and macro-F1, the mean of the classes' F1, in percent, {noises}."
    if len(settings.noise_kind) * len(settings.snr) > 1:
        text += " A seed's figure is the mean over these noises."
    if settings.seeds == 1:
        return f"{text} They are of 1 seed: how much they depend on it is not known."
    return f"{text} Given are means over {settings.seeds} seeds ± their standard deviation (n - 1)."


def own_of_a_seed(settings: Settings) -> str:
    """What a seed changes, and what it does not."""
    if settings.seeds == 1:
        return "Noise and split are the same for every network. Seconds are of the training alone."
    own = "its own noise and split"
    if settings.split in FIXED:
        own = f"its own noise; {FIXED[settings.split]}"
    text = (
        f"Each seed has its own first parameters, and {own}. Noise and split are the same for every network."
    )
    if gaining(settings.networks):
        text += (
            f" What a network is above {PLAIN} is taken seed by seed; given are the mean and, in brackets, its "
            "interval of 95 % by Student's t."
        )
    text += " Seeds have signals in common, so that they are not independent: spreads and intervals are too narrow."
    return f"{text} Seconds are of the training alone."


def resolution(settings: Settings, results: Sequence[Result]) -> str:
    """What one test signal weighs, and which networks are no better than a constant answer."""
    least = min(result.test_windows for result in results)
    text = f"One test {noun_of(settings)} is {100 / least:.2f} points of a cell's accuracy."
    share = fmean(result.test_majority for result in results)
    bound = share + 2 * math.sqrt(share * (1 - share) / least)
    means = {name: fmean(over_seeds(of(name, results), "test_accuracy")) for name in settings.networks}
    vain = [name for name, mean in means.items() if mean <= bound]
    if not vain:
        return text
    return (
        f"{text} **Not above a constant answer, the largest class, by two standard errors: {', '.join(vain)}.** "
        "Such figures show nothing of what a network can learn."
    )


def alone(settings: Settings) -> str:
    """What the data and the recipe are, and why the paper's accuracies are not beside these."""
    recipe = (
        f"{settings.points} points, {settings.blocks} blocks, {counted(settings.epochs, 'epoch')}, batches of "
        f"{settings.batch_size}, a learning rate from {settings.lr:g} down."
    )
    if not settings.simulated:
        kept = f" of the classes {', '.join(settings.classes)}," if settings.classes else ""
        kept += f" at the loads {', '.join(map(str, settings.loads))}," if settings.loads else ""
        place = Path(settings.data).name
        return f"The data are recordings, `{place}`,{kept} in windows, `--split {settings.split}`: {recipe}"
    return (
        f"The data are {settings.num_signals} simulated signals, one of {settings.folds} folds to test on: {recipe} "
        "The paper's accuracies, means over its three kinds of noise from -5 to 5 dB, do not belong beside these."
    )


def beside_the_paper(settings: Settings) -> str:
    """What differs from the paper."""
    return (
        f"The data are not the paper's: here {settings.num_signals} simulated signals, one of {settings.folds} folds "
        "to test on; there 28,800 raw signals of its authors' own rig, one of 10 folds to test on, at -5 to 5 dB in "
        f"steps of 1. Here and there: {settings.points} and 2048 points, {settings.blocks} and 12 blocks, "
        f"{settings.epochs} and 100 epochs, batches of {settings.batch_size} and 128, learning rates from "
        f"{settings.lr:g} and 0.1 down. The paper's ± is as printed there."
    )
