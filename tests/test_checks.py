"""What the tests of the operators lean on: the band around a kink, the choice by pairs, memory that is filled."""

import itertools

import pytest
import torch
from checks import assert_close, at_kinks, leaf, pairwise

from drsn_ops import reference


def gradient(x, tau, grad, near):
    x = leaf(x)
    return torch.autograd.grad(reference.soft_threshold(x, tau), x, grad.masked_fill(near, 0))[0]


def test_elements_at_a_kink_may_flip_and_no_others():
    x, tau, grad = torch.randn(400), torch.tensor(0.5), torch.rand(400) + 1
    x[:2] = torch.tensor([0.5, -0.5 - 2**-24])
    near = at_kinks(x, tau)
    assert near[:2].all()
    other = tau * (1 + 2**-22)
    expected = gradient(x.double(), tau.double(), grad.double(), near)
    assert_close(gradient(x, other, grad, near), expected)
    assert not torch.equal(gradient(x, other, grad, near & False), gradient(x, tau, grad, near & False))
    x[2] = -x[2] if x[2].abs() > 0.6 else 2.0  # another element
    with pytest.raises(AssertionError):
        assert_close(gradient(x + 2**-6, other, grad, near), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_few_elements_lie_at_a_kink(dtype):
    x, tau = torch.randn(1000).to(dtype), torch.rand(1000).to(dtype)
    assert at_kinks(x, tau).sum() <= 10
    x[:13] = tau[:13]
    with pytest.raises(AssertionError, match="of 1000 elements lie at a kink"):
        at_kinks(x, tau)


def test_a_choice_by_pairs_has_every_pair():
    factors = ("abc", range(4), {"x": 1, "y": 2}, (True, False))
    chosen = pairwise(*factors)
    assert len(chosen) == 12
    for (i, first), (j, second) in itertools.combinations(enumerate(map(list, factors)), 2):
        assert {(row[i], row[j]) for row in chosen} == set(itertools.product(first, second))
