"""The measurement of whole networks, without a look at the times that it finds."""

from __future__ import annotations

import json
import sys

import pytest
import torch
import torch.nn.functional as F

from benchmarks import __main__ as command
from benchmarks import networks, report, tax
from drsn_ops import Shrinkage
from drsn_ops.benchmark import contest, formulas

KEYS = set(
    "what network shape variant provider mode timer dtype samples p20_us p50_us p80_us ratio_p20 ratio_p50 "
    "ratio_p80 eager_ratio_p50 peak_bytes peak_ratio machine gpu driver cuda torch threads simd commit date".split()
)
SHAPES = {"paper": (2, 1, 64), "resnet18": (2, 1, 64)}
EVALUATED = ((2, 3, 64), (4, 3, 64))
ROUNDS = {"paper": 2, "resnet18": 1}


@pytest.fixture(scope="module")
def rows():
    """What the command prints, with sizes small enough for a test."""
    threads = torch.get_num_threads()
    printed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contest, "MAX_POOL", 1)
        patch.setattr(tax, "SHAPES", SHAPES)
        patch.setattr(tax, "CALL_SHAPE", (2, 3, 32))
        patch.setattr(tax, "EVALUATED", {"cpu": EVALUATED})
        patch.setattr(tax, "SECONDS", 0.0)
        patch.setattr(tax, "ROUNDS", ROUNDS)
        patch.setattr(command, "print", lambda *words, **_: printed.extend(words), raising=False)
        patch.setattr(sys, "argv", ["benchmarks", "tax", "--quick", "--no-compile", "--threads", "1"])
        try:
            assert command.main() == 0
        finally:
            torch.set_num_threads(threads)
    (text,) = printed
    return json.loads(text)


def test_every_row_says_everything(rows):
    assert all(set(row) == KEYS for row in rows)
    for row in rows:
        assert 0 < row["p20_us"] <= row["p50_us"] <= row["p80_us"]
        assert row["samples"] == 5 * ROUNDS.get(row["network"], 1) and row["threads"] == 1
        is_step = row["what"] == "step"
        steps_alone = ("ratio_p50", "eager_ratio_p50", "peak_ratio", "network")
        assert all((row[key] is not None) == is_step for key in steps_alone)
        assert row["eager_ratio_p50"] == (1 if is_step else None)


def test_every_contestant_takes_part(rows):
    for network in SHAPES:
        steps = [row for row in rows if row["network"] == network]
        assert [(row["variant"], row["provider"]) for row in steps] == networks.variants(network)
        assert steps[0]["ratio_p20"] == steps[0]["ratio_p80"] == steps[0]["peak_ratio"] == 1
    providers = ["drsn_ops", *formulas.FORMULAS]
    assert [row["provider"] for row in rows if row["what"] == "call"] == providers
    for shape in EVALUATED:
        case = [row for row in rows if row["what"] == "evaluation" and row["shape"] == list(shape)]
        assert [row["provider"] for row in case] == [*providers, "copy"]


def test_the_copied_formula_needs_more_memory(rows):
    # In the other network, on so small a batch, the gradients of the parameters are the peak.
    peaks = {
        (row["variant"], row["provider"]): row["peak_bytes"] for row in rows if row["network"] == "paper"
    }
    assert peaks["ResNet", "pytorch"] < peaks["DRSN-CW", "drsn_ops"] < peaks["DRSN-CW", "naive"]


@pytest.mark.parametrize("network", list(SHAPES))
def test_every_variant_starts_from_one_state(network):
    start = networks.build(network, "DRSN-CW", "drsn_ops").state_dict()
    shared_threshold = networks.build(network, "DRSN-CS", "drsn_ops").state_dict()
    for variant, provider in networks.variants(network):
        state = networks.build(network, variant, provider).state_dict()
        expected = shared_threshold if variant == "DRSN-CS" else start
        assert (set(state) < set(start)) if variant == "ResNet" else (set(state) == set(start))
        assert all(value.equal(expected[key]) for key, value in state.items()), (variant, provider)
    # The gate's last layer has one output in place of C.
    differ = {key for key, value in shared_threshold.items() if not value.equal(start[key])}
    assert differ and all(".fc.3." in key for key in differ)


def losses(network, variant, provider):
    """The loss before and after one training step, in float64."""
    model = networks.build(network, variant, provider)
    step = tax.Step(model, SHAPES[network], torch.float32, "eager", "cpu")
    step.network.double()
    step.x = step.x.double()
    for group in step.optimizer.param_groups:
        group["lr"] = 0.01
    before = step.call(0, None)
    return before, F.cross_entropy(step.network(step.x), step.labels).detach()


@pytest.mark.parametrize("network", list(SHAPES))
@pytest.mark.parametrize("variant", ["DRSN-CW", "DRSN-CS"])
def test_every_provider_learns_the_same(network, variant):
    truth = torch.stack(losses(network, variant, "naive"))
    assert truth[0] != truth[1] and truth.isfinite().all()
    providers = {provider for name, provider in networks.variants(network) if name == variant}
    for provider in providers - {"naive"}:
        torch.testing.assert_close(
            torch.stack(losses(network, variant, provider)), truth, rtol=1e-9, atol=1e-9, msg=provider
        )


class Other(networks.FormulaShrinkage):
    def forward(self, x, residual=None):
        return super().forward(1.25 * x, residual)


def test_a_network_with_another_shrinkage_is_not_timed(monkeypatch):
    monkeypatch.setattr(networks, "FormulaShrinkage", Other)
    monkeypatch.setattr(tax, "SHAPES", SHAPES)
    with pytest.raises(contest.WrongResult, match="paper, DRSN-CW, naive, eager: its network differs"):
        tax.step_rows("paper", torch.float32, ("eager",), "cpu", 1)
    monkeypatch.setattr(tax, "FormulaShrinkage", Other)
    with pytest.raises(contest.WrongResult, match="naive/eager differs"):
        tax.call_rows("call", (2, 3, 32), "host", (), "cpu", 1)


@pytest.mark.parametrize("formula", list(formulas.FORMULAS))
@pytest.mark.parametrize("thresholds", ["channel-wise", "channel-shared"])
def test_every_formula_is_the_shrinkage(formula, thresholds):
    ours = Shrinkage(3, thresholds).double()
    module = networks.FormulaShrinkage(ours, formula)
    assert all(value.equal(ours.state_dict()[key]) for key, value in module.state_dict().items())
    x, residual = torch.randn(2, 4, 3, 5, 7, dtype=torch.float64)
    torch.testing.assert_close(module(x, residual), ours(x, residual))
    torch.testing.assert_close(module(x), ours(x))


def test_ratios_are_of_the_same_round():
    row = tax.row([2.0, 1.0, 8.0], 300, ([1.0, 4.0, 2.0], 200), what="step")
    assert row["what"] == "step" and row["samples"] == 3
    assert row["p50_us"] == 2e6  # as is the other's: the ratio of medians would be 1
    assert [row[f"ratio_{p}"] for p in ("p20", "p50", "p80")] == pytest.approx([0.95, 2.0, 3.2])
    assert row["peak_ratio"] == 1.5
    assert tax.row([2.0], None, ([1.0], 200))["peak_ratio"] is None
    alone = tax.row([2.0], 300, None)
    assert alone["ratio_p50"] is None and alone["peak_ratio"] is None and alone["peak_bytes"] == 300


def test_every_round_begins_with_another():
    order = []

    def sample(name):
        order.append(name)
        return float(len(order))

    times = tax.interleave([lambda name=name: sample(name) for name in "abc"], 4)
    assert "".join(order) == "abcbcacababc"
    assert times == [[1, 6, 8, 10], [2, 4, 9, 11], [3, 5, 7, 12]]


def test_modes():
    module = torch.nn.ReLU()
    assert tax.compiled(module, "eager") is tax.compiled(module, "graph") is module
    assert tax.compiled(module, "compile") is not module


def made_up(rows):
    """The rows with times as of a compiled run."""
    changed = [dict(row) for row in rows]
    for row in changed:
        row["p50_us"] = {"drsn_ops": 100.0, "strong": 450.0}.get(row["provider"], 800.0)
        if row["what"] == "step":
            ratios = {"pytorch": 1.0, "drsn_ops": 1.07, "batch_norm_shrink": 0.98, "naive": 1.6}
            row["ratio_p50"] = ratios[row["provider"]]
            row["peak_ratio"] = 2.03 if row["provider"] == "naive" else 1.05
            row["peak_bytes"] = 62e6
        row["date"] = "2001-02-03"
    steps = [row for row in changed if row["what"] == "step"]
    paper = [row for row in steps if row["network"] == "paper"]
    changed += [{**row, "mode": "compile", "ratio_p50": 1.2, "eager_ratio_p50": 0.9} for row in paper]
    modules = [row for row in changed if row["provider"] == "tidy"]
    return changed + [{**row, "mode": "compile/default", "p50_us": 175.0} for row in modules]


def test_the_report_is_made_from_the_rows(rows, tmp_path, monkeypatch, capsys):
    results, readme, page = (
        tmp_path / "machine-tax.json",
        tmp_path / "README.md",
        tmp_path / "docs" / "page.md",
    )
    results.write_text(json.dumps(made_up(rows)))
    readme.write_text("before\n<!-- first:cpu -->\nold\n<!-- /first:cpu -->\nafter\n")
    page.parent.mkdir()
    page.write_text("<!-- networks:cpu -->\n<!-- /networks:cpu -->\n")
    monkeypatch.setattr(sys, "argv", ["benchmarks", "report", str(results), "--folder", str(tmp_path)])
    assert command.main() == 0
    first, made = readme.read_text(), page.read_text()
    assert first.startswith("before\n<!-- first:cpu -->\n") and first.endswith("<!-- /first:cpu -->\nafter\n")
    assert "\nold\n" not in first
    assert all("2001-02-03" in text and rows[0]["machine"] in text for text in (first, made))
    for line in (
        "| a training step | ms | ratio | compiled: ratio | memory: ratio | the paper's: ratio |",
        "| ResNet | 1 | 1.00 | 1.20 | 1.05 | 1.00 |",
        "| DRSN-CW, `Shrinkage` | 0 | 1.07 | 1.20 | 1.05 | 1.55 |",
        "| DRSN-CS, widely copied formula | 1 | 1.60 | 1.20 | 2.03 | 1.62 |",
    ):
        assert first.count(f"\n{line}\n") == 1, line
    assert first.count("\n| DRSN-") == 4
    for line in (
        "A training step of the paper's network, x of 2x1x64, float32:",
        "| time | eager: ms | ratio | torch.compile: ms | ratio | compiled / eager | the paper's: ratio |",
        "| time | eager: ms | ratio |",
        "| ResNet | 1 | 1.00 |",
        "| DRSN-CW, `Shrinkage` | 0 | 1.07 | 0 | 1.20 | 0.90 | 1.55 |",
        "| DRSN-CS, widely copied formula | 1 | 1.60 | 1 | 1.20 | 0.90 | 1.62 |",
        "| DRSN-CW, `batch_norm_shrink` | 1 | 0.98 |",
        "| peak memory | eager: MB | ratio | torch.compile: MB | ratio |",
        "| ResNet | 62 | 1.05 | 62 | 1.05 |",
        "| `Shrinkage` with a residual, float32 | x | MB | ms | eager: ratio | torch.compile: ratio |",
        "| forward + backward | 2x3x32 | 0.0 | 0.100 | 4.50 | 1.75 |",
        "| evaluation | 4x3x64 | 0.0 | 0.100 | 4.50 | 1.75 |",
    ):
        assert made.count(f"\n{line}\n") == 1, line
    assert not list(tmp_path.glob("*.png"))
    assert command.main() == 0 and (readme.read_text(), page.read_text()) == (first, made)


def test_a_gpu_has_a_table_of_its_own(rows):
    timers = {"step": ["events"], "call": ["events", "graph"], "evaluation": ["graph"]}
    gpu = [{**row, "gpu": "GPU", "timer": timer} for row in made_up(rows) for timer in timers[row["what"]]]
    half = [{**row, "dtype": "bfloat16", "ratio_p50": 1.3} for row in gpu if row["what"] == "step"]
    found = report.texts(gpu + half, "tax")
    assert {*found} == {"first:cuda", "networks:cuda"}
    assert found["first:cuda"].count("\n| DRSN-CW, `Shrinkage` | ") == 1
    made = found["networks:cuda"]
    assert "A training step of the paper's network, x of 2x1x64, bfloat16:\n" in made
    assert "| DRSN-CW, `Shrinkage` | 0 | 1.30 | 0 | 1.30 | 0.90 | 1.55 |" in made
    assert "| evaluation | 2x3x64 | 0.0 | 0.100 | 4.50 | 1.75 | 8.00 |" in made
    assert made.count("\n| forward + backward") == 2 and made.count(", in a CUDA graph | ") == 1
