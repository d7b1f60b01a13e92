"""The modules against the formulas of `drsn_ops.reference`, and what they refuse."""

import functools

import pytest
import torch
import torch.nn.functional as F

import drsn_ops
from drsn_ops import RSBU, Shrinkage, SoftThreshold, reference
from drsn_ops.layers import conv3, pad_same

SHAPES = [(3, 6), (3, 6, 49), (3, 6, 7, 9), (3, 6, 3, 4, 5)]
CW, CS = "channel-wise", "channel-shared"


def close(actual, expected):
    # float64 on both sides; only the order of sums differs, also where BatchNorm makes a gradient vanish
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [(), (5,), *SHAPES])
@pytest.mark.parametrize("parameters", [1, 6])
def test_soft_threshold_module(shape, parameters, device):
    if parameters == 6 and len(shape) < 2:
        pytest.skip("one threshold per channel needs a channel axis")
    module = SoftThreshold(parameters, init=0.3).double().to(device)
    x = torch.randn(shape, dtype=torch.float64, device=device, requires_grad=True)
    y = module(x)
    tau = module.weight.detach().clone().requires_grad_()
    channels = tau if parameters == 1 else tau.reshape(-1, *(1,) * (len(shape) - 2))
    expected = torch.sign(x) * (x.abs() - (channels.reshape(()) if not shape else channels)).relu()
    close(y, expected)
    g = torch.randn_like(y)
    for actual, want in zip(
        torch.autograd.grad(y, (x, module.weight), g), torch.autograd.grad(expected, (x, tau), g), strict=True
    ):
        close(actual, want)


def test_soft_threshold_module_is_made_like_prelu():
    module = SoftThreshold(4, init=0.25)
    assert module.weight.shape == (4,) and (module.weight == 0.25).all()
    assert repr(module) == "SoftThreshold(num_parameters=4, init=0.25)"
    assert list(SoftThreshold().state_dict()) == [
        "weight"
    ] and SoftThreshold().weight.item() == pytest.approx(0.01)
    with torch.no_grad():
        module.weight.fill_(7)
    module.reset_parameters()
    assert (module.weight == 0.25).all()


def test_negative_thresholds_act_as_zero(device):
    module = SoftThreshold(2).to(device)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([-1.0, 0.5]))
    x = torch.tensor([[[1.0, -2.0], [1.0, -2.0]]], device=device)
    y = module(x)
    assert y.tolist() == [[[1.0, -2.0], [0.5, -1.5]]]
    y.sum().backward()
    # channel 1: -sign(1) - sign(-2) = 0 for the sum, so weigh the two
    assert module.weight.grad[0] == 0
    module.zero_grad()
    (module(x) * torch.tensor([1.0, 3.0], device=device)).sum().backward()
    assert module.weight.grad.tolist() == [0.0, 2.0]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("thresholds", [CW, CS])
@pytest.mark.parametrize("statistic", [None, "channel", "sample"])
@pytest.mark.parametrize("norm", ["batch", "layer", "rms", "none"])
def test_shrinkage_against_reference(shape, thresholds, statistic, norm, device):
    module = Shrinkage(6, thresholds, statistic=statistic, reduction=2, norm=norm).double().to(device)
    # positive, as the means are, so that no ReLU is dead and every parameter has a gradient
    torch.nn.init.uniform_(module.fc[0].weight)
    x = torch.randn(shape, dtype=torch.float64, device=device, requires_grad=True)
    residual = torch.randn_like(x, requires_grad=True)
    inputs = (x, residual, *module.parameters())
    y = module(x, residual)
    scope = statistic or {CW: "channel", CS: "sample"}[thresholds]
    expected = reference.gated_shrink(x, module.fc, statistic=scope, residual=residual)
    close(y, expected)
    g = torch.randn_like(y)
    for actual, want in zip(
        torch.autograd.grad(y, inputs, g), torch.autograd.grad(expected, inputs, g), strict=True
    ):
        assert actual.abs().sum() > 0 or (norm == "batch" and want.abs().max() < 1e-10)
        close(actual, want)


def test_paper_thresholds_by_hand(device):
    """With every weight of the gate 0, alpha is sigmoid(0) = 1/2 and the rest is countable."""
    x = torch.tensor([[[4.0, -2.0], [1.0, 1.0]]], device=device)
    results = {}
    for thresholds in (CW, CS):
        module = Shrinkage(2, thresholds, norm="none").to(device)
        for parameter in module.parameters():
            torch.nn.init.zeros_(parameter)
        results[thresholds] = module(x).tolist()
    # channel means 3 and 1; mean of the sample 2
    assert results[CW] == [[[2.5, -0.5], [0.5, 0.5]]]
    assert results[CS] == [[[3.0, -1.0], [0.0, 0.0]]]


def test_the_gate_sees_channel_means_for_both_statistics():
    seen = []
    module = Shrinkage(3, CS, norm="none")
    module.fc.register_forward_hook(lambda _, inputs, alpha: seen.append((inputs[0], alpha)))
    x = torch.randn(2, 3, 10)
    module(x)
    means, alpha = seen[0]
    torch.testing.assert_close(means, x.abs().mean(-1))
    assert alpha.shape == (2, 1) and Shrinkage(3).fc[3].out_features == 3


@pytest.mark.parametrize("norm", ["layer", "rms", "none"])
@pytest.mark.parametrize("thresholds", [CW, CS])
def test_batch_of_one_trains_without_batch_norm(norm, thresholds, device):
    module = Shrinkage(8, thresholds, norm=norm).to(device)
    module(torch.randn(1, 8, 20, device=device)).square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in module.parameters())


def test_batch_of_one_with_batch_norm():
    module = Shrinkage(4)
    x = torch.randn(1, 4, 5)
    with pytest.raises(ValueError, match=r"x: got a batch of 1, expected at least 2 .*norm='layer'"):
        module(x)
    module.eval()
    assert module(x).shape == x.shape


@pytest.mark.parametrize("norm, extra", [("batch", 5), ("layer", 2), ("rms", 1), ("none", 0)])
def test_state_dict_keys(norm, extra):
    keys = set(Shrinkage(4, norm=norm).state_dict())
    linear = {"fc.0.weight", "fc.0.bias", "fc.3.weight", "fc.3.bias"}
    assert linear <= keys and len(keys - linear) == extra
    assert all(key.startswith("fc.1.") for key in keys - linear)


def test_gate_width():
    assert Shrinkage(10, reduction=4).fc[0].out_features == 2
    assert Shrinkage(2, reduction=4).fc[0].out_features == 1


def test_reprs():
    assert repr(Shrinkage(4, CS, norm="none")).startswith(
        "Shrinkage(\n  4, 'channel-shared', statistic='sample', reduction=1, norm='none', inplace=False"
    )
    assert repr(RSBU(2, 4, stride=2)).startswith("RSBU(\n  2, 4, stride=2, dim=1")


def test_shrinkage_in_place(device):
    module = Shrinkage(4, inplace=True).to(device).eval()
    x = torch.randn(2, 4, 30, device=device)
    expected = reference.gated_shrink(x, module.fc)
    with torch.no_grad():
        y = module(x)
    assert y.data_ptr() == x.data_ptr()
    torch.testing.assert_close(y, expected)


def test_reference_switch_computes_with_the_reference(monkeypatch):
    module = Shrinkage(4)
    x = torch.randn(2, 4, 30)
    expected = module(x)
    monkeypatch.setattr(drsn_ops.functional, "shrink", None)
    module.use_reference = True
    torch.testing.assert_close(module(x), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_modules(dtype, device):
    unit = RSBU(4, 8, stride=2).to(device, dtype)
    y = unit(torch.randn(2, 4, 32, device=device, dtype=dtype))
    assert y.dtype == dtype and y.isfinite().all()


def test_autocast(device):
    unit = RSBU(4, 8, stride=2, dim=2).to(device)
    x = torch.randn(2, 4, 8, 8, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        y = unit(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), unit(x), rtol=0.1, atol=0.1)
    y.float().sum().backward()
    assert all(p.grad is not None for p in unit.parameters())


def unit_by_hand(unit, x, thresholds, stride, dim):
    """The paper's unit, operation by operation, with TensorFlow's padding; BatchNorm uses the batch."""
    conv = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[dim]

    def normalised(h, bn):
        return F.batch_norm(h, None, None, bn.weight, bn.bias, True, 0.0, bn.eps).relu()

    # an odd axis is padded at both ends, an even one with stride 2 at its end
    pads = []
    for size in reversed(x.shape[2:]):
        pads += [0, 1] if stride == 2 and size % 2 == 0 else [1, 1]
    h = conv(F.pad(normalised(x, unit.bn1), pads), unit.conv1.weight, unit.conv1.bias, stride)
    h = conv(normalised(h, unit.bn2), unit.conv2.weight, unit.conv2.bias, padding=1)
    if thresholds is not None:
        magnitude = h.abs().flatten(2)
        means = magnitude.mean(-1)
        alpha = unit.shrink.fc(means)
        tau = alpha * (means if thresholds == CW else magnitude.mean((1, 2)).unsqueeze(1))
        h = h.sign() * (h.abs() - tau.reshape(tau.shape + (1,) * dim)).relu()
    shortcut = x[(..., *[slice(None, None, stride)] * dim)]
    y = h.clone()
    first = (h.shape[1] - x.shape[1]) // 2
    y[:, first : first + x.shape[1]] += shortcut
    return y


@pytest.mark.parametrize("sizes", [(8,), (7,), (6, 9), (4, 5, 6)])
@pytest.mark.parametrize("thresholds", [CW, CS, None])
@pytest.mark.parametrize("stride, out_channels", [(1, 3), (2, 3), (2, 6), (2, 8)])
def test_rsbu_by_hand(sizes, thresholds, stride, out_channels, device):
    dim = len(sizes)
    unit = RSBU(3, out_channels, stride=stride, dim=dim, thresholds=thresholds).double().to(device)
    x = torch.randn(4, 3, *sizes, dtype=torch.float64, device=device, requires_grad=True)
    y = unit(x)
    expected = unit_by_hand(unit, x, thresholds, stride, dim)
    assert y.shape == (4, out_channels, *(-(-size // stride) for size in sizes))
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
    g = torch.randn_like(y)
    inputs = (x, *unit.parameters())
    for actual, want in zip(
        torch.autograd.grad(y, inputs, g), torch.autograd.grad(expected, inputs, g), strict=True
    ):
        torch.testing.assert_close(actual, want, rtol=1e-8, atol=1e-8)


class Twice(RSBU):
    def shortcut(self, x):
        return 2 * super().shortcut(x)


class Shifted(RSBU):
    def branch(self, x):
        return super().branch(x) + 1


@pytest.mark.parametrize("how", ["a subclass", "an instance", "the class"])
@pytest.mark.parametrize("kind, part", [(Twice, "shortcut"), (Shifted, "branch")])
def test_another_shortcut_or_branch_of_a_unit_is_called(kind, part, how, device, monkeypatch):
    own = getattr(RSBU, part)
    unit = (kind if how == "a subclass" else RSBU)(3, 4, stride=2, thresholds=None).to(device).eval()
    x = torch.randn(2, 3, 8, device=device)
    h, shortcut = RSBU.branch(unit, x), RSBU.shortcut(unit, x)
    expected = h + 2 * shortcut if kind is Twice else h + 1 + shortcut

    def replaced(unit, x):
        return 2 * own(unit, x) if kind is Twice else own(unit, x) + 1

    if how == "an instance":
        setattr(unit, part, functools.partial(replaced, unit))
    elif how == "the class":
        monkeypatch.setattr(RSBU, part, replaced)
    torch.testing.assert_close(unit(x), expected)


def test_rsbu_leaves_its_input_alone(device):
    x = torch.randn(2, 3, 8, device=device)
    kept = x.clone()
    RSBU(3, 3).to(device)(x)
    assert torch.equal(x, kept)


@pytest.mark.parametrize(
    "size, stride, sums", [(4, 2, [6, 7]), (5, 2, [3, 9, 9]), (6, 3, [6, 15]), (4, 1, [3, 6, 9, 7])]
)
def test_same_padding(size, stride, sums):
    """1, 2, 3, ... summed by windows of three, as TensorFlow places them."""
    conv = conv3(1, 1, 1, stride)
    torch.nn.init.ones_(conv.weight)
    torch.nn.init.zeros_(conv.bias)
    x = torch.arange(1.0, size + 1).reshape(1, 1, size)
    assert conv(pad_same(x, stride)).flatten().tolist() == sums


X = torch.zeros(2, 4, 8)
ERRORS = [
    (lambda: SoftThreshold(0), r"num_parameters: got 0, expected an integer of at least 1"),
    (lambda: SoftThreshold(1.0), r"num_parameters: got 1\.0, expected"),
    (lambda: SoftThreshold(1, init=-1), r"init: got -1, expected a finite number of at least 0"),
    (lambda: SoftThreshold(1, init=float("nan")), r"init: got nan, expected"),
    (
        lambda: SoftThreshold(3)(X),
        r"x: got shape \(2, 4, 8\), expected 3 \(num_parameters\) on axis 1",
    ),
    (lambda: SoftThreshold(3)(X[0, 0]), r"x: got shape \(8,\), expected 3 "),
    (lambda: Shrinkage(0), r"channels: got 0, expected an integer of at least 1"),
    (lambda: Shrinkage(True), r"channels: got True, expected"),
    (lambda: Shrinkage(4, "CW"), r"thresholds: got 'CW', expected 'channel-wise' or 'channel-shared'"),
    (lambda: Shrinkage(4, None), r"thresholds: got None, expected 'channel-wise' or 'channel-shared'"),
    (lambda: Shrinkage(4, statistic="row"), r"statistic: got 'row', expected 'channel', 'sample' or None"),
    (lambda: Shrinkage(4, reduction=0), r"reduction: got 0, expected an integer of at least 1"),
    (lambda: Shrinkage(4, norm="group"), r"norm: got 'group', expected 'batch', 'layer', 'rms' or 'none'"),
    (lambda: Shrinkage(3)(X), r"x: got shape \(2, 4, 8\), expected 3 channels on axis 1"),
    (lambda: Shrinkage(3)(X[0, 0]), r"x: got shape \(8,\), expected 3 channels on axis 1"),
    (lambda: Shrinkage(4)(X, X[:1]), r"residual: got shape \(1, 4, 8\), expected \(2, 4, 8\)"),
    (lambda: RSBU(0, 4), r"in_channels: got 0, expected an integer of at least 1"),
    (lambda: RSBU(4, "4"), r"out_channels: got '4', expected an integer of at least 1"),
    (lambda: RSBU(4, 2), r"out_channels: got 2, expected at least in_channels, 4"),
    (lambda: RSBU(4, 4, stride=0), r"stride: got 0, expected an integer of at least 1"),
    (lambda: RSBU(4, 4, dim=4), r"dim: got 4, expected 1, 2 or 3"),
    (
        lambda: RSBU(4, 4, thresholds="both"),
        r"thresholds: got 'both', expected 'channel-wise', 'channel-shared' or None",
    ),
    (lambda: RSBU(4, 4, norm=None), r"norm: got None, expected"),
    (lambda: RSBU(3, 4)(X), r"x: got shape \(2, 4, 8\), expected \(N, 3, L1\)"),
    (lambda: RSBU(4, 4, dim=2)(X), r"x: got shape \(2, 4, 8\), expected \(N, 4, L1, L2\)"),
]


@pytest.mark.parametrize("call, message", ERRORS, ids=[message for _, message in ERRORS])
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_integer_input_is_refused():
    for module in (SoftThreshold(), Shrinkage(4, norm="none")):
        with pytest.raises(TypeError, match="x: got"):
            module(torch.ones(2, 4, 3, dtype=torch.int64))
