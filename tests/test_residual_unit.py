"""A residual unit of few channels in evaluation: where it is one operator, and its numbers."""

import copy
import itertools

import pytest
import torch
from checks import REFUSAL, assert_same_bits, lay_out, make_features, operators_of, randomise
from test_batch_norm_relu_conv import run
from torch import nn
from torch.autograd import forward_ad
from torch.func import vmap
from torch.library import opcheck

from drsn_ops import RSBU
from drsn_ops.models import drsn
from drsn_ops.ops import library
from drsn_ops.ops.plain_gate import plain_batch_norm, plain_gate

ops = torch.ops.drsn_ops

pytestmark = pytest.mark.skipif(library.simd == "default", reason="PyTorch convolves on this processor")


def make(channels=4, out=6, stride=2, length=21, samples=3, **options):
    """A unit in evaluation and an x for it."""
    torch.manual_seed(0)
    unit = randomise(RSBU(channels, out, stride=stride, **options)).eval()
    return unit, lay_out(make_features((samples, channels, length)).float(), "channels_last")


def plain(unit, x):
    """The unit by PyTorch's modules and `reference`, in float64."""
    twin = copy.deepcopy(unit).double()
    twin.shrink.use_reference = True
    handles = [
        layer.register_forward_hook(lambda *_: None) for layer in (twin.bn1, twin.bn2, twin.conv1, twin.conv2)
    ]
    try:
        return twin(x.double())
    finally:
        for handle in handles:
            handle.remove()


def names_of(unit, x):
    with torch.no_grad():
        return operators_of(unit, x)


def check(unit, x):
    assert names_of(unit, x) == ["residual_unit"]
    with torch.no_grad():
        y, expected = unit(x), plain(unit, x)
    n, c, length = expected.shape
    assert y.shape == expected.shape and y.stride() == (length * c, 1, c)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


CHANNELS = (2, 3, 4, 5, 8, 11, 16)


@pytest.mark.parametrize(
    "channels, out", [pair for pair in itertools.product(CHANNELS, CHANNELS) if pair[0] <= pair[1]]
)
def test_numbers_of_channels(channels, out):
    for length, stride in ((37, 1), (70, 2)):
        check(*make(channels, out, stride, length))


@pytest.mark.parametrize("length", [2, 3, 5, 16, 64, 513, 2047, 2050, 5000])
def test_lengths(length):
    """Of one piece, and of more."""
    for stride, out in ((1, 4), (1, 6)) + ((2, 4),) * (length > 2):
        check(*make(4, out, stride, length))


OPTIONS = [
    {"thresholds": "channel-shared"},
    {"reduction": 4},
    {"norm": "layer"},
    {"norm": "rms"},
    {"norm": "none"},
    {"samples": 1},
    {"samples": 40, "length": 300},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options(options):
    check(*make(**options))


def test_units_without_parameters_that_are_left_out():
    unit, x = make()
    unit.bn1, unit.bn2 = (randomise(nn.BatchNorm1d(c, affine=False)).eval() for c in (4, 6))
    unit.conv1.bias = unit.conv2.bias = None
    unit.shrink.fc[0].bias = unit.shrink.fc[3].bias = None
    check(unit, x)


def test_values_that_are_not_finite_stay_where_they_are():
    unit, x = make(4, 4, 1, 200)
    x[0, 1, 100], x[1] = float("nan"), x[1].abs()
    with torch.no_grad():
        y, expected = unit(x), plain(unit, x)
    assert torch.equal(y.isnan(), expected.isnan()) and y[0].isnan().any() and not y[1].isnan().any()


def attach(place):
    return lambda unit: unit.get_submodule(place).register_forward_hook(lambda *_: None)


SEVERAL = {
    "training": lambda unit: unit.train(),
    "statistics of the batch": lambda unit: unit.bn2.train(),
    "a gate over the batch": lambda unit: unit.shrink.fc[1].train(),
    "no running statistics": lambda unit: setattr(unit, "bn1", nn.BatchNorm1d(4, track_running_stats=False)),
    "the reference": lambda unit: setattr(unit.shrink, "use_reference", True),
    "another branch": lambda unit: setattr(unit, "branch", unit.branch),
    "a wider convolution": lambda unit: setattr(unit, "conv2", nn.Conv1d(6, 6, 5, padding=2)),
    **{
        f"a hook of {name}": attach(name)
        for name in ("bn1", "conv1", "bn2", "conv2", "shrink", "shrink.fc", "shrink.fc.3")
    },
}


@pytest.mark.parametrize("what", SEVERAL)
def test_several_operators(what):
    unit, x = make()
    assert names_of(unit, x) == ["residual_unit"]
    SEVERAL[what](unit)
    assert "residual_unit" not in names_of(unit, x)


def test_a_gradient_takes_several_operators():
    unit, x = make()
    assert "residual_unit" not in operators_of(unit, x)
    unit.requires_grad_(False)
    assert operators_of(unit, x) == ["residual_unit"]
    assert "residual_unit" not in operators_of(unit, x.clone().requires_grad_())
    y, tangent = unit(x), torch.ones_like(x)
    with forward_ad.dual_level():
        torch.testing.assert_close(forward_ad.unpack_dual(unit(forward_ad.make_dual(x, tangent))).primal, y)
    torch.testing.assert_close(vmap(unit)(x[None])[0], y)


def test_a_gradient_of_one_tensor_takes_several_operators():
    unit, x = make()
    unit.requires_grad_(False)
    for parameter in unit.parameters():
        parameter.requires_grad_()
        assert "residual_unit" not in operators_of(unit, x) and unit(x).requires_grad
        parameter.requires_grad_(False)


def test_other_units_take_several_operators():
    for unit, x in (make(thresholds=None), make(4, 20), make(samples=2, length=20_000), make(channels=1)):
        assert "residual_unit" not in names_of(unit, x)
    unit, x = make()
    with torch.autocast("cpu", torch.bfloat16):
        assert "residual_unit" not in names_of(unit, x)
    assert "residual_unit" not in names_of(unit, x.contiguous())
    assert "residual_unit" not in names_of(unit.double(), x.double())


@pytest.mark.parametrize(
    "out, stride, length", [(8, 1, 4096), (5, 2, 13107), (5, 2, 13106), (16, 2, 4095), (16, 2, 4097)]
)
def test_the_longest_samples(out, stride, length):
    """As long as the operator takes them, and longer by a position."""
    unit, x = make(4, out, stride, length, samples=1)
    fits = -(-length // stride) * out <= 32768
    assert (names_of(unit, x) == ["residual_unit"]) == fits
    with torch.no_grad():
        y, expected = unit(x), plain(unit, x)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("grad", [True, False])
def test_a_shortcut_of_other_channels_is_refused(grad):
    unit, x = make()
    unit.out_channels = 7
    with torch.set_grad_enabled(grad), pytest.raises(ValueError, match="residual: got shape"):
        unit(x)


def test_a_long_sample_is_refused_by_the_operator():
    unit, x = make(4, 8, 1, 5000)
    with torch.no_grad(), pytest.raises(REFUSAL, match="x: got .* expected at most 32768 elements"):
        ops.residual_unit(*arguments(unit, x))


def arguments(unit, x):
    gate = plain_gate(unit.shrink.fc, unit.conv2.weight)
    halves = []
    for norm, conv in ((unit.bn1, unit.conv1), (unit.bn2, unit.conv2)):
        made = plain_batch_norm(norm, x)
        halves += [*made[:4], made.eps, conv.weight, conv.bias]
    return x, *halves, unit.stride, *gate.functional, unit.shrink.statistic == "sample"


@pytest.mark.parametrize("stride, out, length", [(1, 4, 21), (2, 6, 22)])
def test_opcheck(stride, out, length):
    unit, x = make(4, out, stride, length)
    opcheck(ops.residual_unit.default, arguments(unit.requires_grad_(False), x))


def test_compiled_and_exported(no_caches):
    network, x = randomise(drsn(1, 3, blocks=3, widths=(4, 8, 16))).eval(), torch.randn(4, 1, 64)
    with torch.no_grad():
        expected = network(x)
        assert operators_of(network, x).count("residual_unit") == 3
        compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), expected, rtol=1e-5, atol=1e-5)
        program = torch.export.export(network, (x,))
    assert "residual_unit" not in str(program.graph)


def everything():
    out = []
    for options in (
        {"samples": 40, "length": 512},
        {"channels": 8, "out": 16, "length": 700},
        {"channels": 3, "out": 5},
    ):
        unit, x = make(**options)
        with torch.no_grad():
            out += [unit(x), *(unit(one[None])[0] for one in x[:2])]
    return out


def test_same_bits_for_any_number_of_threads_and_for_a_sample_alone():
    assert_same_bits(everything)
    together, first, second = everything()[:3]
    assert torch.equal(together[0], first) and torch.equal(together[1], second)


@pytest.mark.skipif(library.simd != "avx512", reason="this processor has one instruction set with kernels")
def test_same_bits_from_both_instruction_sets(tmp_path):
    run(
        "import torch, test_residual_unit as t\ntorch.save(t.everything(), sys.argv[1])",
        "avx2",
        tmp_path / "bits",
    )
    found = torch.load(tmp_path / "bits")
    assert all(torch.equal(a, b) for a, b in zip(found, everything(), strict=True))
