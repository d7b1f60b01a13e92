"""Sparse coding: LISTA, a few layers of learned soft thresholding, against ISTA and scikit-learn's Lasso.

A signal y = A z + noise is made of few atoms of a known dictionary A. The Lasso looks for the code z as the minimum of
||y - A z||^2 / 2 + lam ||z||_1, and ISTA goes there step by step: z <- soft_threshold(z + A' (y - A z) / L, lam / L),
with L the largest eigenvalue of A' A. LISTA learns the matrices and the thresholds of a fixed number of such steps,
here from the codes that made the signals. lam is what suits the Lasso best.

Prints, on signals that were not trained on, the error of the codes, and the share of the true atoms among as many atoms
with the largest entries.

Source: K. Gregor and Y. LeCun, "Learning Fast Approximations of Sparse Coding", ICML 2010.
"""

from __future__ import annotations

import torch
from sklearn.linear_model import Lasso
from torch import Tensor, nn

import drsn_ops

SIGNAL, ATOMS, ACTIVE, NOISE = 32, 64, 4, 0.1


def make_signals(dictionary: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Signals (count, SIGNAL) and their codes (count, ATOMS): ACTIVE entries of magnitude 0.5 to 1.5, the rest 0."""
    weights = (torch.rand(count, ACTIVE) + 0.5) * torch.randn(count, ACTIVE).sign()
    codes = torch.zeros(count, ATOMS).scatter_(1, torch.rand(count, ATOMS).argsort(1)[:, :ACTIVE], weights)
    signals = codes @ dictionary.T
    return signals + NOISE * torch.randn_like(signals), codes


def ista(signals: Tensor, dictionary: Tensor, lam: float, steps: int) -> Tensor:
    """The codes after some steps of the iterative shrinkage-thresholding algorithm."""
    lipschitz = torch.linalg.matrix_norm(dictionary, 2).item() ** 2
    codes = torch.zeros(len(signals), dictionary.shape[1], dtype=signals.dtype)
    for _ in range(steps):
        gradient = (codes @ dictionary.T - signals) @ dictionary
        codes = drsn_ops.soft_threshold(codes - gradient / lipschitz, lam / lipschitz)
    return codes


def lasso(signals: Tensor, dictionary: Tensor, lam: float) -> Tensor:
    """The minimum itself; scikit-learn divides the squared error by the length of the signal."""
    model = Lasso(lam / len(dictionary), fit_intercept=False, max_iter=10_000, tol=1e-6)
    fitted = model.fit(dictionary.double().numpy(), signals.T.double().numpy())
    return torch.from_numpy(fitted.coef_).to(signals.dtype)


class LISTA(nn.Module):
    """``layers`` steps z <- soft_threshold(S z + W y, tau) with W, S and a threshold an atom learned, shared by all."""

    def __init__(self, dictionary: Tensor, lam: float, layers: int) -> None:
        super().__init__()
        lipschitz = torch.linalg.matrix_norm(dictionary, 2).item() ** 2
        self.layers = layers
        self.w = nn.Parameter(dictionary.T / lipschitz)
        self.s = nn.Parameter(torch.eye(dictionary.shape[1]) - dictionary.T @ dictionary / lipschitz)
        self.threshold = drsn_ops.SoftThreshold(dictionary.shape[1], init=lam / lipschitz)

    def forward(self, signals: Tensor) -> Tensor:
        driven = signals @ self.w.T
        codes: Tensor = self.threshold(driven)
        for _ in range(self.layers - 1):
            codes = self.threshold(codes @ self.s.T + driven)
        return codes


def score(found: Tensor, true: Tensor) -> tuple[float, float]:
    """||found - true||^2 / ||true||^2, and the share of the true atoms among the ACTIVE largest entries."""
    error = (found - true).square().sum() / true.square().sum()
    largest = found.abs().topk(ACTIVE).indices
    return error.item(), (true.gather(1, largest) != 0).double().mean().item()


def main(layers: int = 16, steps: int = 2000, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Train and compare. Returns the error and the share of true atoms found, by method."""
    torch.manual_seed(seed)
    dictionary = nn.functional.normalize(torch.randn(SIGNAL, ATOMS), dim=0)
    signals, codes = make_signals(dictionary, 200)
    lam = min((0.02, 0.05, 0.1, 0.2), key=lambda lam: score(lasso(signals, dictionary, lam), codes))

    network = LISTA(dictionary, lam, layers)
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        signals, codes = make_signals(dictionary, 128)
        optimiser.zero_grad()
        (network(signals) - codes).square().sum(1).mean().backward()
        optimiser.step()
        schedule.step()

    signals, codes = make_signals(dictionary, 1000)
    with torch.no_grad():
        found = {
            "LISTA": network(signals),
            "ISTA": ista(signals, dictionary, lam, layers),
            "Lasso": lasso(signals, dictionary, lam),
        }
    results = {method: score(found[method], codes) for method in found}
    print(f"{layers} layers of LISTA, {layers} steps of ISTA, the Lasso to its minimum, lam {lam}")
    for method, (error, share) in results.items():
        print(f"{method:6} error {error:.4f}  true atoms found {share:.1%}")
    return results


if __name__ == "__main__":
    main()
