"""The measurement of whole networks, without a look at the times that it finds."""

from __future__ import annotations

import json
import sys

import pytest
import torch
import torch.nn.functional as F

from benchmarks import __main__ as command
from benchmarks import networks, report, tax
from drsn_ops.benchmark import contest

KEYS = set(
    "what network shape variant provider mode layout timer dtype samples p20_us p50_us p80_us ratio_p20 ratio_p50 "
    "ratio_p80 added_us peak_bytes peak_ratio machine gpu driver cuda torch threads simd commit date".split()
)
SHAPES = {"paper": (2, 1, 64), "wide": (4, 1, 32), "resnet18": (2, 1, 64), "cifar10": (2, 3, 8, 8)}
EVALUATED = ((2, 1, 64), (1, 1, 64))
ROUNDS = {"paper": 2}


@pytest.fixture(scope="module")
def rows():
    """What the command prints, with sizes small enough for a test."""
    threads = torch.get_num_threads()
    printed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tax, "SHAPES", SHAPES)
        patch.setattr(tax, "EVALUATED", EVALUATED)
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
        assert 0 < row["p20_us"] <= row["p50_us"] <= row["p80_us"] and row["ratio_p50"] > 0
        assert row["samples"] == 5 * ROUNDS.get(row["network"], 1) and row["threads"] == 1
        is_step = row["what"] == "step"
        assert all((row[key] is not None) == is_step for key in ("peak_bytes", "peak_ratio"))
        shrinks = row["provider"] == "drsn_ops" and row["variant"] != "ResNet"
        assert (row["added_us"] is not None) == shrinks


def test_every_contestant_takes_part(rows):
    plain = ("ResNet", "pytorch")
    ours = [(variant, "drsn_ops") for variant in networks.THRESHOLDS]
    expected = {network: [plain, *ours] for network in SHAPES}
    expected["paper"].append(("DRSN-CW", "pytorch"))
    for network, shape in SHAPES.items():
        steps = [row for row in rows if (row["what"], row["network"]) == ("step", network)]
        layouts = ["contiguous", "channels_last"][: len(shape) - 2]
        assert [(row["variant"], row["provider"], row["layout"]) for row in steps] == [
            (*who, layout) for layout in layouts for who in expected[network]
        ]
    for shape in EVALUATED:
        found = [row for row in rows if row["what"] == "evaluation" and row["shape"] == list(shape)]
        assert [(row["variant"], row["provider"]) for row in found] == expected["paper"]


def test_what_is_compiled():
    def compiled(what, network):
        found = tax.contestants(what, network, ("eager", "compile"))
        return [one[:2] for one in found if one[2:] == ("compile", "contiguous")]

    plain, ours = ("ResNet", "pytorch"), ("DRSN-CW", "drsn_ops")
    assert compiled("step", "paper") == networks.variants("paper")
    assert compiled("step", "wide") == compiled("step", "cifar10") == [plain, ours]
    assert compiled("evaluation", "paper") == [plain]


def test_ratios_are_to_the_fastest_plain_resnet():
    plain, own = (("ResNet", provider, "eager", "contiguous") for provider in ("pytorch", "drsn_ops"))
    compiled, captured = (*plain[:2], "compile", "channels_last"), (*plain[:2], "graph", "contiguous")
    times = {plain: [3.0, 3.0, 1.0], own: [1.0] * 3, compiled: [2.0] * 3, captured: [0.5] * 3}
    assert tax.base_of(times, "eager") == tax.base_of(times, "compile") == compiled
    assert tax.base_of(times, "graph") == tax.base_of(times, "compile/reduce-overhead") == captured
    assert tax.base_of({own: [1.0]}, "eager") is None


def test_the_copied_formula_needs_more_memory(rows):
    steps = [row for row in rows if (row["what"], row["network"]) == ("step", "paper")]
    peaks = {(row["variant"], row["provider"]): row["peak_ratio"] for row in steps}
    assert peaks["ResNet", "pytorch"] == 1 < peaks["DRSN-CW", "pytorch"] > peaks["DRSN-CW", "drsn_ops"]


@pytest.mark.parametrize("network", list(SHAPES))
def test_every_variant_starts_from_one_state(network):
    start = networks.build(network, "DRSN-CW", "drsn_ops").state_dict()
    states = {
        variant: networks.build(network, variant, "drsn_ops").state_dict() for variant in networks.THRESHOLDS
    }
    assert set(states["ResNet"]) < set(states["DRSN-CS"]) == set(start)
    differ = {key for state in states.values() for key in state if not state[key].equal(start[key])}
    # The gate's last layer has one output in place of C.
    assert differ and all(".fc.3." in key for key in differ)


@pytest.mark.parametrize("network", list(SHAPES))
def test_the_plain_network_is_of_pytorch_alone(network):
    for variant in networks.THRESHOLDS:
        made = networks.build(network, variant, "pytorch")
        own = {
            type(module).__module__
            for module in made.modules()
            if type(module).__module__ != networks.__name__
        }
        assert all(name.startswith("torch.nn.") for name in own)


def losses(network, variant, provider):
    """The loss before and after one training step, in float64."""
    model = networks.build(network, variant, provider)
    step = tax.Step(model, SHAPES[network], torch.float32, "eager", "cpu")
    step.network.double()
    step.x = step.x.double()
    for group in step.optimizer.param_groups:
        group["lr"] = 0.01
    before = step.call(0, None)
    return torch.stack([before, F.cross_entropy(step.network(step.x), step.labels).detach()])


@pytest.mark.parametrize("network", list(SHAPES))
@pytest.mark.parametrize("variant", list(networks.THRESHOLDS))
def test_the_twin_learns_the_same(network, variant):
    truth = losses(network, variant, "pytorch")
    assert truth[0] != truth[1] and truth.isfinite().all()
    torch.testing.assert_close(losses(network, variant, "drsn_ops"), truth, rtol=1e-9, atol=1e-9)


def test_a_network_with_other_logits_is_not_timed(monkeypatch):
    class Other(networks.PlainNetwork):
        def forward(self, x):
            return super().forward(1.25 * x) if self.units[0].shrink is None else super().forward(x)

    monkeypatch.setattr(networks, "PlainNetwork", Other)
    with pytest.raises(
        contest.WrongResult, match="step of paper, ResNet, drsn_ops, eager, contiguous: its network"
    ):
        tax.network_rows("step", "paper", SHAPES["paper"], torch.float32, ("eager",), "cpu", 1)


def test_ratios_and_differences_are_of_the_same_round():
    row = tax.row([2.0, 1.0, 8.0], [1.0, 4.0, 2.0], [1.0, 0.0, 9.0], what="step")
    assert row["what"] == "step" and row["samples"] == 3
    assert row["p50_us"] == 2e6  # as is the base's: the ratio of medians would be 1
    assert [row[f"ratio_{p}"] for p in ("p20", "p50", "p80")] == pytest.approx([0.95, 2.0, 3.2])
    assert row["added_us"] == 1e6
    alone = tax.row([2.0])
    assert alone["ratio_p50"] is None and alone["added_us"] is None


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
    ratios = {"ResNetpytorch": 1.0, "DRSN-CWpytorch": 1.8}
    changed = []
    for row in rows:
        ratio = ratios.get(row["variant"] + row["provider"], 0.6)
        made = {**row, "p50_us": 60_000 * ratio, "ratio_p50": ratio, "date": "2001-02-03"}
        if row["what"] == "step":
            made |= {"peak_bytes": 62e6 * ratio, "peak_ratio": ratio}
            made["added_us"] = row["added_us"] and 2_345
        changed.append(made)
        if row["what"] == "step":
            changed.append({**made, "mode": "compile", "ratio_p50": 2 * ratio})
    return changed


def test_the_report_is_made_from_the_rows(rows, tmp_path, monkeypatch):
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
        "| PyTorch's plain ResNet | 60.0 | 1.00 | 2.00 | 1.00 | 1.00 |",
        "| ResNet, drsn_ops | 36.0 | 0.60 | 1.20 | 0.60 | 1.00 |",
        "| DRSN-CW, drsn_ops | 36.0 | 0.60 | 1.20 | 0.60 | 1.55 |",
        "| DRSN-CS, drsn_ops | 36.0 | 0.60 | 1.20 | 0.60 | 1.62 |",
        "| DRSN-CW, widely copied formula | 108 | 1.80 | 3.60 | 1.80 | 1.55 |",
    ):
        assert first.count(f"\n{line}\n") == 1, line
    assert first.count("\n| DRSN-") == 3
    for line in (
        "A training step of the paper's network, x of 2x1x64, float32:",
        "| time | eager: ms | ratio | torch.compile: ms | ratio | shrinkage adds: ms | the paper's: ratio |",
        "| DRSN-CW, drsn_ops | 36.0 | 0.60 | 36.0 | 1.20 | 2.35 | 1.55 |",
        "| ResNet, drsn_ops, channels_last | 36.0 | 0.60 | 36.0 | 1.20 | – |",
        "| peak memory | eager: MB | ratio | torch.compile: MB | ratio |",
        "| DRSN-CW, widely copied formula | 112 | 1.80 | 112 | 1.80 |",
        "Evaluation of the paper's network, x of 1x1x64, float32:",
    ):
        assert line in made.splitlines(), line
    assert made.count("\n| time | eager: ms | ratio |\n") == 2  # of evaluation, which here is not compiled
    assert not list(tmp_path.glob("*.png"))
    assert command.main() == 0 and (readme.read_text(), page.read_text()) == (first, made)


def test_a_gpu_has_a_table_of_its_own(rows):
    gpu = [{**row, "gpu": "GPU", "timer": "events"} for row in made_up(rows)]
    half = [{**row, "dtype": "bfloat16", "ratio_p50": 1.3} for row in gpu if row["what"] == "step"]
    found = report.texts(gpu + half, "tax")
    assert {*found} == {"first:cuda", "networks:cuda"}
    assert found["first:cuda"].count("\n| DRSN-CW, drsn_ops | ") == 1
    made = found["networks:cuda"]
    assert "A training step of the paper's network, x of 2x1x64, bfloat16:\n" in made
    assert "| DRSN-CW, drsn_ops | 36.0 | 1.30 | 36.0 | 1.30 | 2.35 | 1.55 |" in made
