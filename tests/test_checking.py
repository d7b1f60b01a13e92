"""`check_shrinkage` names every known mistake, with any gate, and finds none in a right block."""

import copy
import re

import numpy as np
import pytest
import torch
from torch import nn

from drsn_ops import Shrinkage, check_shrinkage
from drsn_ops.analysis.mistakes import (
    CONFUSED,
    CUT,
    GARROTE,
    HARD,
    MAGNITUDE_WITHOUT_SIGN,
    MEAN_DROPPED,
    MEAN_WITHOUT_ABS,
    OTHER_GRADIENT,
    RESHAPE,
    SHORTCUT,
    UNBOUNDED,
    UNKNOWN,
)

C = 6
CW, CS = "channel-wise", "channel-shared"
SEEDS = range(5)


def per_channel(values, x):
    return values.reshape(*values.shape, *[1] * (x.dim() - 2))


class Block(nn.Module):
    """A shrinkage in plain PyTorch, with a small method for each thing that a mistake replaces."""

    def __init__(self, outputs=C, scope="channel", norm=False, channels=C):
        super().__init__()
        self.scope = scope
        hidden = nn.BatchNorm1d(channels) if norm else nn.Identity()
        self.gate = nn.Sequential(
            nn.Linear(channels, channels), hidden, nn.ReLU(), nn.Linear(channels, outputs), nn.Sigmoid()
        )

    def statistic(self, x):
        return x.abs().flatten(2).mean(-1)

    def threshold(self, alpha, mean):
        return alpha * (mean if self.scope == "channel" else mean.mean(1, keepdim=True))

    def apply_to(self, x, tau):
        return x.sign() * torch.relu(x.abs() - tau)

    def forward(self, x):
        mean = self.statistic(x)
        return self.apply_to(x, per_channel(self.threshold(self.gate(mean), mean), x))


class SignedMean(Block):
    def statistic(self, x):
        return x.flatten(2).mean(-1)


class SignedGate(Block):
    """Only the gate sees the mean of x."""

    def forward(self, x):
        mean = self.statistic(x)
        return self.apply_to(x, per_channel(self.gate(x.flatten(2).mean(-1)) * mean, x))


class SignedThreshold(Block):
    """Only the threshold is made of the mean of x."""

    def forward(self, x):
        tau = self.gate(self.statistic(x)) * x.flatten(2).mean(-1)
        return self.apply_to(x, per_channel(tau, x))


class AbsOfMean(Block):
    def statistic(self, x):
        return x.flatten(2).mean(-1).abs()


class SignedClamp(SignedMean):
    """With a negative threshold this form is not an odd function."""

    def apply_to(self, x, tau):
        return x - torch.minimum(torch.maximum(x, -tau), tau)


class NoSign(Block):
    def apply_to(self, x, tau):
        return torch.relu(x.abs() - tau)


class TimesX(Block):
    def apply_to(self, x, tau):
        return x * torch.relu(x.abs() - tau)


class TimesMagnitude(Block):
    def apply_to(self, x, tau):
        return x.abs() * torch.relu(x.abs() - tau)


class NoMean(Block):
    def threshold(self, alpha, mean):
        return alpha


class Hard(Block):
    def apply_to(self, x, tau):
        return x * (x.abs() > tau)


class Garrote(Block):
    def apply_to(self, x, tau):
        return torch.where(x.abs() > tau, x - tau**2 / x, 0)


class OtherGate(Block):
    """Another last layer in the gate."""

    def __init__(self, last, sign=1.0, **options):
        super().__init__(**options)
        self.gate[4] = last
        nn.init.constant_(self.gate[3].bias, sign)


class OtherGateAlone(OtherGate, NoMean):
    """The same, and its output alone is the threshold."""


class ChannelsLast(Block):
    """Reads the (C, L) memory of a sample as (L, C), or the reverse, and shrinks rightly what it then sees."""

    def __init__(self, back, **options):
        super().__init__(**options)
        self.back = back

    def forward(self, x):
        n, c = x.shape[:2]
        if self.back:
            rows = x.flatten(2).transpose(1, 2).reshape(n, c, -1)
            return super().forward(rows).reshape(n, -1, c).transpose(1, 2).reshape(x.shape)
        rows = x.flatten(1).reshape(n, -1, c).transpose(1, 2)
        return super().forward(rows).transpose(1, 2).reshape(x.shape)


class OneWay(Block):
    """The axes are moved in one direction and only renamed in the other."""

    def __init__(self, moves_in, **options):
        super().__init__(**options)
        self.moves_in = moves_in

    def forward(self, x):
        n, c = x.shape[:2]
        rows = x.flatten(2).mT if self.moves_in else x.reshape(n, -1, c)
        y = super().forward(rows.mT).mT
        return (y if self.moves_in else y.mT).reshape(x.shape)


class MixedStatistic(ChannelsLast):
    """Only the means are taken over the wrong rows."""

    def forward(self, x):
        return Block.forward(self, x)

    def statistic(self, x):
        n, c = x.shape[:2]
        rows = (
            x.flatten(2).transpose(1, 2).reshape(n, c, -1) if self.back else x.flatten(1).reshape(n, -1, c).mT
        )
        return rows.abs().mean(-1)


class MixedThreshold(Block):
    """The means are right and each goes to the wrong elements."""

    def apply_to(self, x, tau):
        rows = x.flatten(1).reshape(len(x), -1, x.shape[1])
        return super().apply_to(rows, tau.flatten(1)[:, None]).reshape(x.shape)


MISTAKES = {
    "signed mean": (SignedMean, {}, None, MEAN_WITHOUT_ABS),
    "signed mean, shared": (SignedMean, {"outputs": 1, "scope": "sample"}, CS, MEAN_WITHOUT_ABS),
    "signed mean, norm": (SignedMean, {"norm": True}, CW, MEAN_WITHOUT_ABS),
    "signed gate": (SignedGate, {}, None, MEAN_WITHOUT_ABS),
    "signed threshold": (SignedThreshold, {}, None, MEAN_WITHOUT_ABS),
    "abs of the mean": (AbsOfMean, {}, None, MEAN_WITHOUT_ABS),
    "signed clamp": (SignedClamp, {}, None, MEAN_WITHOUT_ABS),
    "no sign": (NoSign, {}, None, MAGNITUDE_WITHOUT_SIGN),
    "times x": (TimesX, {}, CW, MAGNITUDE_WITHOUT_SIGN),
    "times x, shared": (TimesX, {"outputs": 1, "scope": "sample"}, None, MAGNITUDE_WITHOUT_SIGN),
    "times magnitude": (TimesMagnitude, {"norm": True}, None, MAGNITUDE_WITHOUT_SIGN),
    "no mean": (NoMean, {}, None, MEAN_DROPPED),
    "no mean, shared": (NoMean, {"outputs": 1}, CS, MEAN_DROPPED),
    "no mean, norm": (NoMean, {"norm": True}, CW, MEAN_DROPPED),
    "hard": (Hard, {}, None, HARD),
    "hard, shared": (Hard, {"outputs": 1, "scope": "sample"}, CS, HARD),
    "garrote": (Garrote, {"norm": True}, CW, GARROTE),
    "garrote, shared": (Garrote, {"outputs": 1, "scope": "sample"}, None, GARROTE),
    "softplus gate": (OtherGate, {"last": nn.Softplus()}, None, UNBOUNDED),
    "softplus gate, shared": (
        OtherGate,
        {"last": nn.Softplus(), "outputs": 1, "scope": "sample"},
        CS,
        UNBOUNDED,
    ),
    "ReLU gate": (OtherGate, {"last": nn.ReLU(), "norm": True}, CW, UNBOUNDED),
    "linear gate": (OtherGate, {"last": nn.Identity()}, None, UNBOUNDED),
    "tanh gate": (OtherGate, {"last": nn.Tanh(), "sign": -1.0}, CW, UNBOUNDED),
    "softplus gate, no mean": (OtherGateAlone, {"last": nn.Softplus()}, None, MEAN_DROPPED),
    "hybrid for CS": (Block, {"scope": "sample"}, CS, CONFUSED),
    "one gate output for CW": (Block, {"outputs": 1}, CW, CONFUSED),
    "reshape": (ChannelsLast, {"back": False}, None, RESHAPE),
    "reshape back": (ChannelsLast, {"back": True}, CW, RESHAPE),
    "reshape, shared": (ChannelsLast, {"back": False, "outputs": 1, "scope": "sample"}, CS, RESHAPE),
    "reshape in alone": (OneWay, {"moves_in": False}, None, RESHAPE),
    "reshape out alone": (OneWay, {"moves_in": True}, CW, RESHAPE),
    "reshape of the statistic": (MixedStatistic, {"back": False}, None, RESHAPE),
    "reshape back of the statistic": (MixedStatistic, {"back": True}, None, RESHAPE),
    "reshape of the threshold": (MixedThreshold, {}, None, RESHAPE),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_every_mistake_has_its_name(name):
    kind, options, expected, mistake = MISTAKES[name]
    for seed in SEEDS:
        torch.manual_seed(seed)
        check = check_shrinkage(kind(**options), C, dim=1 + seed % 3, expected=expected)
        assert not check and check.mistake == mistake, f"seed {seed}: {check}"
        assert check.statement == mistake and check.remedy and check.evidence


def test_a_gate_that_only_negative_means_open():
    block = SignedGate()
    with torch.no_grad():
        block.gate[0].weight.abs_().neg_()
        block.gate[0].bias.zero_()
    assert check_shrinkage(block, C).mistake == MEAN_WITHOUT_ABS


def correct_blocks(seed):
    """Every pair of thresholds and statistic, as a `Shrinkage` and in plain PyTorch."""
    norm = ("batch", "layer", "rms", "none")[seed % 4]
    for thresholds, outputs in ((CW, C), (CS, 1)):
        for statistic in ("channel", "sample"):
            options = {"statistic": statistic, "norm": norm, "reduction": 1 + seed // 4 % 2}
            yield Shrinkage(C, thresholds, inplace=seed % 3 == 0, **options), thresholds, statistic
            yield Block(outputs, statistic, norm == "batch"), thresholds, statistic


@pytest.mark.parametrize("seed", range(12))
def test_nothing_right_is_called_wrong(seed):
    torch.manual_seed(seed)
    for block, thresholds, statistic in correct_blocks(seed):
        paper = {(CW, "channel"): CW, (CS, "sample"): CS}.get((thresholds, statistic))
        options = {"expected": paper if seed % 2 else None, "statistic": None if paper else statistic}
        check = check_shrinkage(block, C, dim=1 + seed % 3, training=seed % 5 == 0, **options)
        assert check and check.mistake is None and check.remedy is None, f"{block}: {check}"
        assert check.statistic == statistic
        # a gate whose hidden units are all 0 has one constant alpha; its width cannot show
        assert check.thresholds in (thresholds, None if thresholds == CS else thresholds), f"{block}: {check}"


@pytest.mark.parametrize("channels", [1, 2, 17, 64])
@pytest.mark.parametrize("thresholds", [CW, CS])
def test_any_number_of_channels(channels, thresholds):
    """Also as many as there are positions, and one, for which the two kinds are the same."""

    def check(block, **options):
        return check_shrinkage(block, channels, spatial=(64,), **options)

    block = Shrinkage(channels, thresholds)
    assert check(block, expected=thresholds)
    other = check(block, expected={CW: CS, CS: CW}[thresholds])
    assert other.mistake == (None if channels == 1 else CONFUSED) and bool(other) == (channels == 1)
    assert check(TimesX(channels=channels, outputs=channels)).mistake == MAGNITUDE_WITHOUT_SIGN


def shrunk(x, tau):
    return x.sign() * torch.relu(x.abs() - tau)


def mean_of(x):
    return x.abs().mean(-1, keepdim=True)


@pytest.mark.parametrize("statistic", ["channel", "sample"])
@pytest.mark.parametrize("thresholds", [CW, CS])
def test_a_mixed_pair_is_right_where_its_mean_is_asked_for(thresholds, statistic):
    block = Shrinkage(C, thresholds, statistic=statistic)
    mixed = (thresholds, statistic) in ((CW, "sample"), (CS, "channel"))
    for expected in (None, thresholds):
        assert check_shrinkage(block, C, expected=expected, statistic=statistic)
        check = check_shrinkage(block, C, expected=expected)
        assert check.mistake == (CONFUSED if mixed else None)
        assert not mixed or f"statistic='{statistic}'" in check.remedy
    other = {"channel": "sample", "sample": "channel"}[statistic]
    assert check_shrinkage(block, C, statistic=other).mistake == CONFUSED
    swapped = {CW: CS, CS: CW}[thresholds]
    assert check_shrinkage(block, C, expected=swapped, statistic=statistic).mistake == CONFUSED


GUARDS = {
    "quotient": lambda x, mean, alpha, eps: x * torch.relu(1 - alpha * mean / (x.abs() + eps)),
    "sign": lambda x, mean, alpha, eps: x / (x.abs() + eps) * torch.relu(x.abs() - alpha * mean),
    "mean": lambda x, mean, alpha, eps: shrunk(x, alpha * (mean + eps)),
}


@pytest.mark.parametrize("eps", [1e-12, 1e-10, 1e-8, 1e-6])
@pytest.mark.parametrize("guard", GUARDS)
def test_a_guard_against_a_division_by_zero_is_no_mistake(guard, eps):
    for alpha in (1e-3, 0.3, 1.0):
        for axes, statistic in ((2, "channel"), ((1, 2), "sample")):
            check = check_shrinkage(
                lambda x, axes=axes, alpha=alpha: GUARDS[guard](x, x.abs().mean(axes, True), alpha, eps), C
            )
            assert check and check.statistic == statistic, check
    # what is larger than a guard shows in the small inputs
    assert not check_shrinkage(lambda x: GUARDS[guard](x, mean_of(x), 1.0, 1e-4), C)


@pytest.mark.parametrize("alpha", [2e-6, 1e-5, 1e-3])
def test_a_nearly_closed_gate_shows_its_mean(alpha):
    for axes, statistic in ((2, "channel"), ((1, 2), "sample")):
        check = check_shrinkage(lambda x, axes=axes: shrunk(x, alpha * x.abs().mean(axes, True)), C)
        assert check and check.statistic == statistic, check


def test_a_gate_of_one_output_shows_where_it_opens():
    """At the magnitudes of most inputs this alpha is one constant."""

    class Late(Block):
        def forward(self, x):
            mean = self.statistic(x)
            alpha = 0.5 - 0.1 * (mean.mean(1, keepdim=True) > 50)
            return self.apply_to(x, per_channel(self.threshold(alpha, mean), x))

    assert check_shrinkage(Late(), C).mistake == CONFUSED
    assert check_shrinkage(Late(scope="sample"), C).thresholds == CS


def test_gate_outputs_next_to_zero_are_not_taken_for_one():
    outputs = 3e-6 * torch.linspace(1, 1.3, C, dtype=torch.float64)[:, None]
    check = check_shrinkage(lambda x: shrunk(x, outputs * (0.5 + 0.5 * (mean_of(x) > 50)) * mean_of(x)), C)
    assert check and check.thresholds == CW, check


SEEN = {
    "hard": (
        lambda x: x * (x.abs() > 0.5 * mean_of(x)),
        HARD,
        r"x = 2.92 becomes 2.92, sign\(x\) .* is 2.18$",
    ),
    "garrote": (
        lambda x: torch.where(x.abs() > mean_of(x), x - mean_of(x) ** 2 / x, 0),
        GARROTE,
        r"x = 2.92 becomes 2.16, sign\(x\) .* is 1.43$",
    ),
    "with its shortcut, and a ReLU": (
        lambda x: torch.relu(x + shrunk(x, 0.5 * mean_of(x))),
        SHORTCUT,
        "y - x is soft thresholding of x$",
    ),
    "with its shortcut": (
        lambda x: x + shrunk(x, 0.5 * mean_of(x)),
        SHORTCUT,
        "y - x is soft thresholding of x$",
    ),
    "twice": (lambda x: shrunk(x, 1.5 * mean_of(x)), UNBOUNDED, "alpha .* is up to 1.5\n"),
    "negative": (lambda x: shrunk(x, -0.5 * mean_of(x)), UNBOUNDED, "alpha .* is down to -0.5\n"),
    "sum": (lambda x: shrunk(x, 0.005 * x.abs().sum(-1, True)), UNBOUNDED, "alpha .* is up to 1.25\n"),
    "a constant": (lambda x: shrunk(x, 1.5e-4), MEAN_DROPPED, "gate's output alone"),
    "softplus alone": (
        lambda x: shrunk(x, nn.functional.softplus(mean_of(x))),
        MEAN_DROPPED,
        "gate's output alone",
    ),
}


@pytest.mark.parametrize("name", SEEN)
def test_what_is_seen_is_named(name):
    function, mistake, evidence = SEEN[name]
    check = check_shrinkage(function, C)
    assert check.mistake == mistake and re.search(evidence, "\n".join(check.evidence)), check


class Detached(Block):
    """A block with a cut: ``cut`` names what is detached."""

    def __init__(self, cut, **options):
        super().__init__(**options)
        self.cut = cut

    def pass_on(self, name, value):
        return value.detach() if name in self.cut else value

    def forward(self, x):
        x = self.pass_on("x", x)
        mean = self.statistic(x)
        alpha = self.pass_on("alpha", self.gate(self.pass_on("input", mean)))
        tau = self.pass_on("tau", self.threshold(alpha, self.pass_on("mean", mean)))
        magnitude = self.pass_on("magnitude", x.abs())
        return self.pass_on("y", x.sign() * torch.relu(magnitude - per_channel(tau, x)))


PARAMETERS = r"y moves with gate\.0\.weight, .*gate\.3\.bias, which no gradient reaches"
CUTS = {
    "tau": [PARAMETERS, "the threshold is cut off from x"],
    "alpha": [PARAMETERS, "the gate's input is cut off from x"],
    "input": ["the gate's input is cut off from x"],
    "mean": ["the mean that alpha multiplies is cut off from x"],
    "input mean": ["the threshold is cut off from x"],
    "magnitude": ["x is cut off beside the threshold"],
    "tau magnitude": [PARAMETERS, "the threshold is cut off from x", "x is cut off beside the threshold"],
    "x": ["the threshold is cut off from x", "x is cut off beside the threshold"],
    "y": ["y has no gradient at all"],
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(
    "options", [{}, {"outputs": 1, "scope": "sample"}, {"norm": True}], ids=["CW", "CS", "norm"]
)
def test_what_is_cut_off_from_the_gradient_is_named(cut, options):
    for seed in range(4):
        torch.manual_seed(seed)
        check = check_shrinkage(Detached(cut.split(), **options), C, dim=1 + seed % 3, training=seed % 2 == 1)
        assert not check and check.mistake == CUT and "detach()" in check.remedy, f"seed {seed}: {check}"
        assert len(check.evidence) == len(CUTS[cut]), check
        for line, words in zip(check.evidence, CUTS[cut], strict=True):
            assert re.search(words, line), f"seed {seed}: {check}"


def narrow(kind):
    """The block, which refuses to compute in float64."""

    class Narrow(kind):
        def forward(self, x):
            if x.dtype != torch.float32:
                raise RuntimeError("expected scalar type Float")
            return super().forward(x)

    return Narrow


def test_a_cut_shows_in_float32_and_in_functions():
    for cut in CUTS.keys() - {"input"}:
        for seed in range(2):
            torch.manual_seed(seed)
            check = check_shrinkage(narrow(Detached)(cut.split()), C)
            assert check.mistake == CUT and re.search(CUTS[cut][0], check.evidence[0]), f"{cut}: {check}"
    function = check_shrinkage(Detached(["mean"]).forward, C)
    assert function.mistake == CUT and "the mean that alpha" in function.evidence[0]


def test_another_gradient_is_no_cut():
    class Halved(Block):
        def apply_to(self, x, tau):
            half = 0.5 * (x + x.detach())
            return half.sign() * torch.relu(half.abs() - tau)

    class Doubled(Block):
        def threshold(self, alpha, mean):
            tau = super().threshold(alpha, mean)
            return 2 * tau - tau.detach()

    for kind, evidence in ((Halved, "y move by 0.5 of"), (Doubled, "tau moves by")):
        check = check_shrinkage(kind(), C)
        assert check.statement == OTHER_GRADIENT and check.mistake is None, check
        assert re.search(evidence, check.evidence[0]), check


def test_a_block_whose_backward_fails():
    class Overwritten(Block):
        def apply_to(self, x, tau):
            kept = torch.relu(x.abs() - tau)
            y = x.sign() * kept
            kept.zero_()
            return y

    check = check_shrinkage(Overwritten(), C)
    assert check.statement == "raises RuntimeError" and "inplace operation" in check.evidence[0]


def test_frozen_and_unused_parameters_are_no_cut():
    block = Block()
    block.other = nn.Linear(3, 3)
    block.gate[0].requires_grad_(False)
    assert check_shrinkage(block, C)
    assert check_shrinkage(block.requires_grad_(False), C)


@pytest.mark.parametrize("wrap", [torch.no_grad, torch.inference_mode])
def test_blocks_made_and_checked_without_gradients(wrap):
    with wrap():
        right, cut = Block(), Detached(["alpha"])
        assert check_shrinkage(right, C)
        assert check_shrinkage(cut, C).mistake == CUT
    assert check_shrinkage(right, C)


def test_a_function_without_gradients_is_judged_by_its_values():
    def in_numpy(x):
        x = x.numpy()
        tau = 0.5 * np.abs(x).mean(-1, keepdims=True)
        return torch.from_numpy(np.sign(x) * np.maximum(np.abs(x) - tau, 0))

    check = check_shrinkage(in_numpy, C)
    assert check and check.evidence[-1].startswith("raises RuntimeError where x requires gradients")
    check = check_shrinkage(lambda x: in_numpy(x.detach()), C)
    assert check and check.evidence[-1].startswith("y has no gradient at all")


OTHERS = {
    "one-sided": (lambda x: torch.relu(x - 0.5 * mean_of(x)), UNKNOWN, "with other signs .* deviates"),
    "batch": (
        lambda x: shrunk(x, 0.5 * x.abs().mean((0, 2), keepdim=True)),
        UNKNOWN,
        "depends on other samples",
    ),
    "standard deviation": (
        lambda x: shrunk(x, 0.3 * x.std(-1, keepdim=True)),
        UNKNOWN,
        "with mean.x. and mean.x. fixed, tau still moves",
    ),
    "gate of the maximum": (
        lambda x: shrunk(x, x.amax(-1, keepdim=True).sigmoid() * mean_of(x)),
        UNKNOWN,
        "with mean.x. and mean.x. fixed, tau still moves",
    ),
    "gate of a negative maximum": (
        lambda x: shrunk(x, (-x.amax(-1, keepdim=True)).relu().sigmoid() * mean_of(x)),
        UNKNOWN,
        "with mean.x. and mean.x. fixed, tau still moves",
    ),
    "median": (
        lambda x: shrunk(x, 0.3 * x.abs().median(-1, keepdim=True).values),
        UNKNOWN,
        "tau is 0.3 times .* evenly spread .x., 0.151 times",
    ),
    "quantile": (
        lambda x: shrunk(x, 0.1 * x.abs().quantile(0.9, -1, keepdim=True)),
        UNKNOWN,
        "rows of the same mean.x. have other thresholds",
    ),
    "gate of the median": (
        lambda x: shrunk(x, x.abs().median(-1, keepdim=True).values.sigmoid() * mean_of(x)),
        UNKNOWN,
        "rows of the same mean.x. have other thresholds",
    ),
    "half": (
        lambda x: shrunk(x, 0.5 * mean_of(x[..., :99])),
        UNKNOWN,
        "when values move within their channel$",
    ),
    "pixel-wise": (lambda x: shrunk(x, 0.5 * x.abs().mean(1, keepdim=True)), UNKNOWN, "deviates by up to"),
    "negated": (
        lambda x: -shrunk(x, 0.5 * mean_of(x)),
        UNKNOWN,
        "100.0% of what is let through has another sign",
    ),
    "zero": (lambda x: 0 * x, UNKNOWN, "y is 0 everywhere"),
    "identity": (lambda x: x, "cannot be judged: the thresholds are 0", "at most 0 times mean"),
    "random": (lambda x: shrunk(x, torch.rand(()) * mean_of(x)), "gives another result for the same x", ""),
    "shape": (lambda x: x[..., 1:], r"returns shape \(6, 6, 250\) for an x of \(6, 6, 251\)", ""),
    "tuple": (lambda x: (x, x), "returns tuple, expected a tensor", ""),
    "integers": (lambda x: x.long(), "returns torch.int64", ""),
    "NaN": (lambda x: x / (x - x), "returns infinite values|returns NaN", "100.0% of the values"),
    "raises": (lambda x: x @ x, "raises RuntimeError", r"\(6|Expected size"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_else_is_wrong_is_said(name):
    function, statement, evidence = OTHERS[name]
    check = check_shrinkage(function, C)
    assert not check and check.mistake is None and check.remedy is None
    assert re.match(statement, check.statement), check
    assert re.search(evidence, "\n".join(check.evidence)), check


def test_nothing_of_the_module_changes():
    block = Shrinkage(C).train()
    state = copy.deepcopy(block.state_dict())
    random = torch.get_rng_state()
    for training in (False, True):
        assert check_shrinkage(block, C, training=training)
    # the copy draws random numbers, which are given back
    dropping = check_shrinkage(nn.Sequential(block, nn.Dropout()), C, training=True)
    assert dropping.statement.startswith("gives another result")
    assert block.training and torch.equal(torch.get_rng_state(), random)
    assert block.fc[0].weight.dtype == torch.float32 and block.fc[0].weight.requires_grad
    for name, value in block.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_training_mode_is_examined():
    """A block that is right in evaluation alone."""

    class Careless(Block):
        def apply_to(self, x, tau):
            return x * torch.relu(x.abs() - tau) if self.training else super().apply_to(x, tau)

    assert check_shrinkage(Careless(), C)
    assert check_shrinkage(Careless(), C, training=True).mistake == MAGNITUDE_WITHOUT_SIGN


@pytest.mark.parametrize(
    "kind, mistake", [(Block, None), (SignedMean, MEAN_WITHOUT_ABS), (NoMean, MEAN_DROPPED)]
)
def test_a_block_of_float32_alone(kind, mistake):
    for seed in range(3):
        torch.manual_seed(seed)
        for block in (narrow(kind)(), narrow(kind)().forward):
            check = check_shrinkage(block, C, expected=CW)
            assert check.mistake == mistake and bool(check) == (mistake is None), check


def test_float32_tells_the_thresholds_of_long_rows():
    check = check_shrinkage(lambda x: shrunk(x.float(), 0.37 * mean_of(x.float())), 2, spatial=(20000,))
    assert check and check.statistic == "channel", check


def test_a_gate_that_gives_one_constant_is_neither_kind():
    block = Shrinkage(C, CW)
    nn.init.zeros_(block.fc[3].weight)
    nn.init.zeros_(block.fc[3].bias)
    check = check_shrinkage(block, C, expected=CW)
    assert check and check.thresholds is None and "does not show" in check.statement
    assert check_shrinkage(block, C, expected=CS).mistake == CONFUSED


def test_a_closed_gate_is_not_judged():
    block = Shrinkage(C)
    nn.init.constant_(block.fc[3].bias, -40)
    check = check_shrinkage(block, C)
    assert not check and check.mistake is None and check.statement.startswith("cannot be judged")


def test_spatial_sizes_are_given_where_the_block_needs_them():
    class Fixed(Block):
        def forward(self, x):
            assert x.shape[2:] == (8, 4), "8 x 4 maps"
            return super().forward(x)

    check = check_shrinkage(Fixed(), C, dim=2)
    assert check.statement == "raises AssertionError" and check.evidence[0] == "8 x 4 maps"
    assert check_shrinkage(Fixed(), C, dim=2, spatial=(8, 4), expected=CW)


def test_a_check_is_printed():
    assert str(check_shrinkage(lambda x: shrunk(x, 0.25 * mean_of(x)), C)).startswith(
        "right: tau_c = alpha * mean|x_c| with one constant alpha"
    )
    lines = str(check_shrinkage(lambda x: shrunk(x, 0.25 * x.mean(-1, True)), C)).splitlines()
    assert lines[0] == "wrong: mean without abs"
    assert "25% of the signs turned" in lines[1] and "tau goes from 0.25 to 0.1" in lines[2]
    assert lines[-1].startswith("  to mend it: take the mean of x.abs()")


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ((3, C), TypeError, "module: got int, expected a module"),
        ((abs, 0), ValueError, "channels: got 0, expected an integer of at least 1"),
        ((abs, C, {"dim": 4}), ValueError, "dim: got 4, expected 1, 2 or 3"),
        ((abs, C, {"expected": "CW"}), ValueError, "expected: got 'CW', expected 'channel-wise', "),
        (
            (abs, C, {"statistic": "mean"}),
            ValueError,
            "statistic: got 'mean', expected 'channel', 'sample' or",
        ),
        ((abs, C, {"spatial": (5, 5)}), ValueError, r"spatial: got \(5, 5\), expected 1 sizes \(dim\)"),
        ((abs, C, {"spatial": (15,)}), ValueError, r"spatial: got \(15,\), .* at least 16 positions"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    *arguments, options = arguments if len(arguments) == 3 else (*arguments, {})
    with pytest.raises(error, match=message):
        check_shrinkage(*arguments, **options)


def test_a_module_that_cannot_be_copied():
    block = Block()
    block.made = torch.ones(2, requires_grad=True) * 2
    with pytest.raises(ValueError, match="module: got one that cannot be copied"):
        check_shrinkage(block, C)


def test_a_whole_block_is_told_to_give_its_shrinkage_alone():
    block = torch.nn.Sequential(torch.nn.Conv1d(4, 4, 3, padding=1), Shrinkage(4))
    assert "give its shrinkage alone" in str(check_shrinkage(block, 4))
    assert "give its shrinkage alone" not in str(check_shrinkage(torch.nn.ReLU(), 4))
