"""What a call of drsn_ops costs, by its public functions alone: the same file times any commit of the package.

As a program it prints the seconds of each call as JSON, and keeps what the calls return in a file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.benchmark import Timer

import drsn_ops


def calls(device: str, shape: Sequence[int] = (2, 4, 4)) -> dict[str, Callable[[], object]]:
    """What is timed, by name, on features of a shape (N, C, L); each call returns what it has computed."""
    torch.manual_seed(0)
    samples, channels, length = shape
    x, tau = torch.randn(channels, length, device=device), torch.rand(length, device=device)
    features, alpha = torch.randn(*shape, device=device), torch.rand(samples, channels, device=device)
    leaves = [t.clone().requires_grad_() for t in (x, tau, features, alpha)]
    xg, taug, featuresg, alphag = leaves
    module = drsn_ops.Shrinkage(channels).to(device)
    evaluated = drsn_ops.Shrinkage(channels).to(device).eval().requires_grad_(False)

    ones = {t.shape: torch.ones_like(t) for t in (x, features)}

    def with_backward(y: Tensor, *wanted: Tensor) -> object:
        return torch.autograd.grad(y, wanted, ones[y.shape])

    return {
        "soft_threshold, no gradient": lambda: drsn_ops.soft_threshold(x, tau),
        "soft_threshold, forward": lambda: drsn_ops.soft_threshold(xg, taug),
        "soft_threshold, forward + backward": lambda: with_backward(
            drsn_ops.soft_threshold(xg, taug), xg, taug
        ),
        "x * tau, forward + backward, for comparison": lambda: with_backward(xg * taug, xg, taug),
        "shrink, forward": lambda: drsn_ops.shrink(featuresg, alphag),
        "shrink, forward + backward": lambda: with_backward(
            drsn_ops.shrink(featuresg, alphag), featuresg, alphag
        ),
        "Shrinkage, evaluation": lambda: evaluated(features),
        "Shrinkage, forward": lambda: module(featuresg),
        "Shrinkage, forward + backward": lambda: with_backward(
            module(featuresg), featuresg, *module.parameters()
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shape", type=int, nargs=3, default=(2, 4, 4))
    parser.add_argument("--only", default="", help="part of the names of the calls")
    parser.add_argument("--results", help="the file for what the calls return")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    chosen = {name: call for name, call in calls(args.device, args.shape).items() if args.only in name}
    torch.save({name: call() for name, call in chosen.items()}, args.results)
    timers = {name: Timer("call()", globals={"call": call}) for name, call in chosen.items()}
    print(json.dumps({name: timer.blocked_autorange().median for name, timer in timers.items()}))


if __name__ == "__main__":
    main()
