"""What holds for any shape and values."""

import hypothesis.strategies as st
import torch
from checks import LAYOUTS, lay_out
from hypothesis import given, settings

import drsn_ops
from drsn_ops import reference

shapes = st.lists(st.integers(1, 9), min_size=2, max_size=4).map(tuple)
values = st.floats(-1e3, 1e3, width=32)
seeds = st.integers(0, 2**31)
common = settings(deadline=None, max_examples=60)


@st.composite
def tensors(draw):
    shape = draw(shapes)
    torch.manual_seed(draw(seeds))
    x = torch.randn(shape) * draw(st.sampled_from([1e-3, 1.0, 1e4]))
    x[torch.rand(shape) < draw(st.sampled_from([0.0, 0.3]))] = 0
    return lay_out(x, draw(st.sampled_from(LAYOUTS)))


@common
@given(tensors(), st.floats(0, 1e3, width=32))
def test_soft_threshold(x, tau):
    y = drsn_ops.soft_threshold(x, tau)
    torch.testing.assert_close(y, x - x.clamp(-tau, tau))
    assert (x * y >= 0).all()
    assert torch.equal(drsn_ops.soft_threshold(-x, tau), -y)
    assert torch.equal(drsn_ops.soft_threshold(x, 0.0), x)


@common
@given(tensors(), tensors(), st.floats(0, 10, width=32))
def test_soft_threshold_does_not_spread_its_inputs(a, b, tau):
    b = b.flatten()[: a.numel()]
    a = a.flatten()[: b.numel()]
    spread = (drsn_ops.soft_threshold(a, tau) - drsn_ops.soft_threshold(b, tau)).abs()
    assert (spread <= (a - b).abs() * (1 + 1e-6) + 1e-6 * a.abs().maximum(b.abs())).all()


@common
@given(tensors(), seeds, st.sampled_from(["channel", "sample"]))
def test_shrink_is_soft_threshold_of_the_mean(x, seed, statistic):
    torch.manual_seed(seed)
    alpha = torch.rand(x.shape[:2])
    y, tau = drsn_ops.shrink(x, alpha, statistic=statistic, return_threshold=True)
    assert torch.equal(y, drsn_ops.soft_threshold(x, reference.per_row(tau, x)))
    assert torch.equal(tau, alpha * drsn_ops.abs_mean(x, statistic=statistic))
    torch.testing.assert_close(
        tau.double(), alpha * reference.abs_mean(x.double(), statistic=statistic), rtol=1e-6, atol=0
    )


@common
@given(tensors(), st.floats(0, 1, width=32))
def test_the_mask_of_shrink_decodes_to_its_definition(x, alpha):
    gate = torch.full((1, 1), alpha)
    _, mean, mask = torch.ops.drsn_ops.shrink_with_mask(x, gate, None, False)
    layout = drsn_ops.ops.masks.Layout.of(x)
    negative, nonzero, active = layout.planes(mask)
    tau = reference.per_row(gate * mean, x)
    assert torch.equal(negative, (x < 0).float())
    assert torch.equal(nonzero, (x != 0).float())
    assert torch.equal(active, (x.abs() > tau).float())
    # Bits past the end of a segment are 0: the mask of equal inputs is equal, byte for byte.
    bits = (mask.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8)) & 1
    assert bits.sum() == negative.sum() + nonzero.sum() + active.sum()
