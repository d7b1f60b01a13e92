"""The mistakes that `check_shrinkage` knows by name, how to mend each, and the `Check` that it returns."""

from __future__ import annotations

from dataclasses import dataclass

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

# Findings that are no known mistake.
UNKNOWN = "differs from the definition, none of the known mistakes"
VANISHED = "cannot be judged: the thresholds are 0 or next to it"
OTHER_GRADIENT = "has other gradients than what it computes"


@dataclass(frozen=True)
class Check:
    """What `check_shrinkage` found. True where the block is right; printed, it is a report.

    Attributes:
        right: whether the block computes the definition.
        statement: the finding in one line.
        mistake: the name of the known mistake; None where the block is right, or wrong in another way.
        evidence: what was measured, in lines.
        remedy: how to mend the known mistake, or None.
        thresholds: as in `Shrinkage`; None where they were not found or do not show.
        statistic: as in `Shrinkage`; None likewise.
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


class Wrong(Exception):
    """Ends a check with a finding, the name of a known mistake or another statement, and its evidence."""

    def __init__(self, finding: str, *evidence: str) -> None:
        super().__init__(finding)
        self.check = Check(
            right=False,
            statement=finding,
            mistake=finding if finding in REMEDIES else None,
            evidence=evidence,
            remedy=REMEDIES.get(finding),
        )
