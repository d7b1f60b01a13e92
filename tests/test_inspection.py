"""`inspect` reports what each block did and leaves no trace."""

import importlib.util
import sys

import pytest
import torch
from torch import nn

from drsn_ops import RSBU, Shrinkage, SoftThreshold, inspect, reference
from drsn_ops.analysis import inspection

CW, CS = "channel-wise", "channel-shared"


def network(**options):
    """Two units and a learned threshold, with statistics and affine parameters of their own."""
    model = nn.Sequential(RSBU(3, 4, **options), RSBU(4, 6, stride=2, **options), SoftThreshold(6, 0.2))
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if "running_var" in name or ("bn" in name and "weight" in name):
            nn.init.uniform_(tensor, 0.5, 1.5)
    return model


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("thresholds", [CW, CS])
def test_blocks_are_what_the_network_computed(dim, thresholds, device):
    model = network(dim=dim, thresholds=thresholds).double().to(device)
    x = torch.randn(2, 3, *[9] * dim, dtype=torch.float64, device=device)
    found = inspect(model, x)
    assert [b.name for b in found.blocks] == ["0.shrink", "1.shrink", "2"]
    assert [b.kind for b in found.blocks] == ["Shrinkage", "Shrinkage", "SoftThreshold"]
    model.eval()
    torch.testing.assert_close(found.output, model(x))
    assert torch.equal(found.x, x)

    unit, block = model[0], found.blocks[0]
    h = unit.conv2(torch.relu(unit.bn2(unit.conv1(torch.relu(unit.bn1(x))))))
    torch.testing.assert_close(block.x, h)
    alpha = unit.shrink.fc(reference.abs_mean(h))
    scope = {CW: "channel", CS: "sample"}[thresholds]
    passed, tau = reference.shrink(h, alpha, statistic=scope, return_threshold=True)
    for actual, expected in ((block.alpha, alpha), (block.tau, tau), (block.passed, passed)):
        torch.testing.assert_close(actual, expected)
    assert block.tau.shape == (2, {CW: 4, CS: 1}[thresholds])
    zeroed = (h.abs() <= reference.per_row(tau, h)).double().flatten(2).mean(-1)
    torch.testing.assert_close(block.zeroed, zeroed)
    assert block.zeroed_share == pytest.approx(zeroed.mean().item()) and 0 < block.zeroed_share < 1

    learned = found.blocks[2]
    torch.testing.assert_close(learned.passed, model[2](learned.x))
    assert learned.alpha is None and torch.equal(learned.tau, model[2].weight.detach().reshape(1, 6))


def test_a_block_in_place_is_seen_before_it_writes():
    model = nn.Sequential(Shrinkage(3, inplace=True), Shrinkage(3, inplace=True))
    x = torch.randn(2, 3, 8)
    before = x.clone()
    found = inspect(model, x)
    assert torch.equal(x, before) and torch.equal(found.blocks[0].x, before)
    assert torch.equal(found.blocks[1].x, found.blocks[0].passed)
    assert not torch.equal(found.blocks[1].passed, found.blocks[1].x)


def test_the_residual_is_no_part_of_what_was_let_through():
    class Unit(nn.Module):
        def __init__(self):
            super().__init__()
            self.shrink = Shrinkage(3)

        def forward(self, x):
            return self.shrink(residual=x, x=self.shrink(x, x))

    model, x = Unit(), torch.randn(2, 3, 8)
    found = inspect(model, x)
    first, second = found.blocks  # one module, called twice
    assert first.name == second.name == "shrink"
    torch.testing.assert_close(second.x, first.passed + x)
    torch.testing.assert_close(found.output, second.passed + x)


class Fails(nn.Module):
    def forward(self, x):
        raise ArithmeticError("late")


@pytest.mark.parametrize("fails", [False, True])
def test_it_leaves_no_trace(fails):
    model = nn.Sequential(network(), nn.Dropout(), *([Fails()] if fails else []))
    model.train()
    model[0][1].eval()
    modes = [m.training for m in model.modules()]
    state = {name: t.clone() for name, t in model.state_dict().items()}
    calls = []
    model[0][0].shrink.register_forward_hook(lambda *_: calls.append("hook"))
    random = torch.get_rng_state()
    x = torch.randn(2, 3, 16, requires_grad=True)
    torch.set_rng_state(random)
    if fails:
        with pytest.raises(ArithmeticError, match="late"):
            inspect(model, x)
    else:
        output = inspect(model, x).output
        assert not output.requires_grad
    assert [m.training for m in model.modules()] == modes and not all(modes) and any(modes)
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    assert calls == ["hook"]
    for module in model.modules():
        assert len(module._forward_hooks) == (module is model[0][0].shrink) and not module._forward_pre_hooks
    assert torch.equal(torch.get_rng_state(), random) and torch.is_grad_enabled()


def test_random_numbers_of_the_model_are_given_back():
    class Noisy(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x)

    random = torch.get_rng_state()
    inspect(nn.Sequential(Noisy(), SoftThreshold()), torch.ones(1, 2, 3))
    assert torch.equal(torch.get_rng_state(), random)


def test_a_compiled_network_is_seen():
    """A compiled graph does not call hooks that were added later."""
    model = torch.compile(nn.Sequential(Shrinkage(3), Shrinkage(3)), backend="eager")
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        model.eval()(x)
        assert len(inspect(model, x).blocks) == 2


def test_float16_and_autocast():
    x = torch.randn(2, 3, 8)
    block = Shrinkage(3)
    exact = inspect(block, x).blocks[0]
    with torch.autocast("cpu", torch.bfloat16):
        same = inspect(block, x).blocks[0]
    assert exact.name == "Shrinkage" and torch.equal(same.alpha, exact.alpha)
    narrow = inspect(block, x.half()).blocks[0]
    assert narrow.passed.dtype == torch.float16 and narrow.tau.dtype == torch.float32
    torch.testing.assert_close(narrow.tau, exact.tau, rtol=1e-2, atol=1e-3)


def test_the_table():
    model = nn.Sequential(Shrinkage(2, CW, norm="none"), nn.Flatten(), SoftThreshold(init=1.0))
    for parameter in model[0].parameters():
        nn.init.zeros_(parameter)  # alpha is 1/2
    x = torch.tensor([[[4.0, -2.0], [1.0, 1.0]]])  # means 3 and 1, so 2.5, -0.5, 0.5 and 0.5 are left
    found = inspect(model, x)
    head, first, second = str(found).splitlines()
    assert head.split() == "block x tau: least mean most alpha: mean zeroed".split()
    assert first.split() == ["0", "1x2x2", "0.5", "1", "1.5", "0.500", "0.0%"]
    assert second.split() == ["2", "1x4", "1", "1", "1", "-", "75.0%"]


SHAPES = [(2, 4), (2, 4, 33), (2, 4, 9, 7), (2, 4, 5, 6, 7)]


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved."""
    figure = pytest.importorskip("matplotlib.figure").Figure
    saved, save = [], figure.savefig
    monkeypatch.setattr(figure, "savefig", lambda self, *a, **k: (saved.append(self), save(self, *a, **k))[1])
    return saved


@pytest.mark.parametrize("shape", SHAPES)
def test_the_plot(shape, figures, tmp_path):
    x = torch.randn(shape)
    found = inspect(nn.Sequential(Shrinkage(4), SoftThreshold(), Shrinkage(4, CS)), x)
    path = tmp_path / "plot.png"
    path.write_text("old")
    assert found.plot(path, clean=x[1], sample=1) == path
    assert path.read_bytes().startswith(b"\x89PNG") and list(tmp_path.iterdir()) == [path]
    top, *parts = figures[0].subfigs
    assert len(parts) == 3 and all("zeroed" in part.get_suptitle() for part in parts)
    block = found.blocks[0]
    strongest = int(block.x[1].abs().reshape(4, -1).mean(-1).argmax())
    if len(shape) > 3:
        shown = block.passed[1, strongest]
        shown = shown if len(shape) == 4 else shown[len(shown) // 2]
        maps = [axes.images[0].get_array() for axes in parts[0].axes if axes.images]
        assert torch.equal(torch.tensor(maps[1]), shown.double())
        return
    lines = {line.get_label(): torch.tensor(line.get_ydata()) for line in parts[0].axes[0].lines}
    chosen = slice(None) if len(shape) == 2 else strongest
    assert torch.equal(lines["in"], block.x[1, chosen].double())
    assert torch.equal(lines["let through"], block.passed[1, chosen].double())
    assert torch.equal(lines["± threshold"], block.tau[1, chosen].double().expand(shape[-1]))
    assert [line.get_label() for line in top.axes[0].lines] == ["noisy", "clean"]


def test_the_channel_is_chosen(figures, tmp_path):
    found = inspect(Shrinkage(4), torch.randn(2, 4, 9))
    found.plot(str(tmp_path / "plot.png"), channel=2)
    (part,) = figures[0].subfigs[1:]
    assert part.get_suptitle().startswith("Shrinkage, channel 2, threshold ")
    shown = torch.tensor(part.axes[0].lines[0].get_ydata())
    assert torch.equal(shown, found.blocks[0].x[0, 2].double())


def test_a_plot_that_fails_leaves_the_old_file(monkeypatch, tmp_path):
    figure = pytest.importorskip("matplotlib.figure").Figure

    def fail(self, path, **options):
        path.write_text("half")
        raise OSError("no space left")

    monkeypatch.setattr(figure, "savefig", fail)
    path = tmp_path / "plot.png"
    path.write_text("old")
    with pytest.raises(OSError, match="no space"):
        inspect(Shrinkage(4), torch.randn(2, 4, 9)).plot(path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"sample": 2}, "sample: got 2, expected 0 to 1, the samples of x"),
        ({"sample": -1}, "sample: got -1, expected 0 to 1"),
        ({"channel": 4}, "channel: got 4, expected 0 to 3, the channels of 'Shrinkage'"),
        (
            {"clean": torch.ones(4, 8)},
            r"clean: got shape \(4, 8\), expected \(2, 4, 9\), that of x, or \(4, 9\)",
        ),
        ({"path": "none/plot.png"}, "path: got '.*none/plot.png', expected one in a folder that exists"),
    ],
)
def test_a_wrong_plot_writes_nothing(options, message, tmp_path):
    found = inspect(Shrinkage(4), torch.randn(2, 4, 9))
    path = tmp_path / options.pop("path", "plot.png")
    with pytest.raises(ValueError, match=message):
        found.plot(path, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("sample", [0, 1])
def test_a_network_that_cuts_its_input_into_windows_is_not_plotted(sample, tmp_path):
    """Sample 1 of its blocks is a window of sample 0."""
    model = nn.Sequential(SoftThreshold(), nn.Unflatten(2, (2, 8)), nn.Flatten(0, 1), Shrinkage(2))
    found = inspect(model, torch.randn(2, 2, 16))
    message = "model: gives '3' a batch of 4, expected 2, that of x, for one sample to be drawn"
    with pytest.raises(ValueError, match=message):
        found.plot(tmp_path / "plot.png", sample=sample)
    assert not list(tmp_path.iterdir())


def test_a_clean_input_that_is_no_tensor(tmp_path):
    found = inspect(Shrinkage(4), torch.randn(2, 4, 9))
    with pytest.raises(
        TypeError,
        match=r"clean: got numpy\.ndarray, expected a tensor or None; torch\.from_numpy\(clean\) is",
    ):
        found.plot(tmp_path / "plot.png", clean=found.x.numpy())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "model, x, error, message",
    [
        (
            abs,
            torch.ones(1, 2),
            TypeError,
            "model: got builtin_function_or_method, expected a torch.nn.Module",
        ),
        (Shrinkage(2), [1.0], TypeError, "x: got list, expected a tensor"),
        (
            nn.ReLU(),
            torch.ones(1, 2),
            ValueError,
            "model: got ReLU, expected one with a Shrinkage or SoftThre",
        ),
        (SoftThreshold(), torch.ones(3), ValueError, r"model: gives 'SoftThreshold' an x of shape \(3,\)"),
    ],
)
def test_wrong_arguments(model, x, error, message):
    with pytest.raises(error, match=message):
        inspect(model, x)


def test_a_model_that_calls_no_block():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.shrink = Shrinkage(2)

        def forward(self, x):
            return x

    with pytest.raises(ValueError, match="model: Idle called none of its 1 blocks"):
        inspect(Idle(), torch.ones(1, 2, 3))


def test_matplotlib_is_needed_for_a_plot_alone(monkeypatch, tmp_path):
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    # the module anew, as in an environment without matplotlib
    spec = importlib.util.spec_from_file_location("drsn_ops.analysis.anew", inspection.__file__)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    found = module.inspect(Shrinkage(2), torch.ones(1, 2, 3))
    with pytest.raises(ImportError, match="matplotlib"):
        found.plot(tmp_path / "plot.png")
    assert not list(tmp_path.iterdir())
