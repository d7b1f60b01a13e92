"""The same cases under pytest-benchmark, for its JSON and its comparison of runs."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.grid import cpu_cases, cuda_cases
from drsn_ops.benchmark.cases import Case, bytes_moved
from drsn_ops.benchmark.contest import Contender, Inputs
from drsn_ops.benchmark.formulas import providers
from drsn_ops.machine import settle_allocator

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CASES = (cuda_cases if DEVICE == "cuda" else cpu_cases)(quick=True)
MODES = ("default",)


@pytest.mark.parametrize(
    ("case", "provider"),
    [(case, name) for case in CASES if case.timer != "events" for name, _ in providers(case, MODES)],
    ids=str,
)
def test_operator(benchmark: BenchmarkFixture, case: Case, provider: str) -> None:
    torch.set_num_threads(2)
    torch.compiler.reset()
    settle_allocator()
    contender = Contender(case, provider, dict(providers(case, MODES))[provider], Inputs(case))
    pool = range(contender.count)

    def fresh() -> tuple[tuple[list[torch.Tensor | None]], dict[str, object]]:
        return ([contender.fresh(index) for index in pool],), {}

    def calls(states: list[torch.Tensor | None]) -> None:
        for index, state in enumerate(states):
            contender.call(index, state)
        if case.device == "cuda":  # the fixture reads the host's clock
            torch.cuda.synchronize()

    benchmark.group = str(case)
    benchmark.extra_info.update(provider=provider, calls=len(pool), bytes=bytes_moved(case))
    benchmark.pedantic(calls, setup=fresh, rounds=10, warmup_rounds=2)
