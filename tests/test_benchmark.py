"""The benchmark's logic, without a look at the times that it finds."""

from __future__ import annotations

import argparse
import json
import sys

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import host, report
from benchmarks.grid import cpu_cases, cuda_cases
from benchmarks.rows import environment, kept_for_backward, peak_bytes, rows_of, slug
from drsn_ops import benchmark, reference
from drsn_ops.benchmark import DIRECTIONS, OPERATORS, Case, Contender, Inputs, bytes_moved, measure, providers

SIZES = ((2, 3, 64), (4, 3, 64), (2, 3, 128))
KEYS = set(
    "operator direction shape dtype layout provider timer samples p20_us p50_us p80_us bytes copy_us fraction "
    "saved_bytes saved_bytes_per_element kept_bytes peak_bytes machine gpu driver cuda torch threads simd commit "
    "date".split()
)
CASES = [
    Case(operator, direction, shape)
    for operator in OPERATORS
    for direction in DIRECTIONS
    for shape in ((4, 4), (3, 5, 17), (2, 3, 4, 5))
    if operator != "abs_mean" or direction != "inference in place"
]


@pytest.fixture(autouse=True)
def small_pool(monkeypatch):
    """Two inputs, whatever their size."""
    monkeypatch.setattr(benchmark, "MAX_POOL", 2)


def by_reference(case, x, threshold, residual):
    """The case's operator in float64, the definition."""
    if case.operator == "soft_threshold":
        return reference.soft_threshold(x, threshold)
    if case.operator == "abs_mean":
        return reference.abs_mean(x)
    return reference.shrink(x, threshold, residual=residual)


def expected(contender, index):
    """What ``call`` has to return, from the definition in float64 on the same numbers."""
    case, inputs = contender.case, contender.inputs
    tensors = [inputs.x[0 if case.inplace else index], contender.threshold, inputs.residual[index]]
    x, threshold, residual = [
        None if t is None else t.detach().double().requires_grad_(case.trains) for t in tensors
    ]
    flat = threshold.reshape(case.shape[:2]) if case.operator.startswith("shrink") else threshold
    y = by_reference(case, x, flat, residual)
    if case.direction in ("backward", "forward+backward"):
        leaves = [x, threshold, residual][: 1 if case.operator == "abs_mean" else 3]
        leaves = [leaf for leaf in leaves if leaf is not None]
        return torch.autograd.grad(y, leaves, contender.grad.double().reshape(y.shape))
    return (y.detach(),)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_provider_gives_the_result_of_the_reference(case):
    inputs = Inputs(case)
    for name, function in providers(case, ()):
        contender = Contender(case, name, function, inputs)
        for index in range(len(inputs.x)):
            got = contender.call(index, contender.fresh(index))
            got = got if isinstance(got, tuple) else (got,)
            for tensor, truth in zip(got, expected(contender, index), strict=True):
                tensor = tensor.detach().double().reshape(truth.shape)
                torch.testing.assert_close(
                    tensor, truth, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
                )


@pytest.mark.parametrize("direction", ["inference in place", "forward+backward"])
def test_a_compiled_formula_gives_the_result_of_the_reference(direction):
    case = Case("shrink+residual", direction, (2, 3, 16))
    inputs = Inputs(case)
    function = benchmark.eager(case, "strong", inplace=False)
    function = benchmark.in_place(function) if case.inplace else function
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    contender = Contender(case, "compile/strong", compiled, inputs)
    got = contender.call(1, contender.fresh(1))
    for tensor, truth in zip(got if isinstance(got, tuple) else (got,), expected(contender, 1), strict=True):
        torch.testing.assert_close(tensor.double().reshape(truth.shape), truth, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("operator", ["soft_threshold", "shrink", "shrink+residual"])
def test_in_place_means_that_the_result_is_in_x(operator):
    case = Case(operator, "inference in place", (3, 5, 17))
    inputs = Inputs(case)
    before = [x.clone() for x in inputs.x]
    for name, function in providers(case, ()):
        contender = Contender(case, name, function, inputs)
        state = contender.fresh(1)
        assert contender.call(1, state).data_ptr() == state.data_ptr(), name
        assert contender.fresh(1).equal(inputs.x[0]), name
    assert all(x.equal(y) for x, y in zip(inputs.x, before, strict=True))


def test_every_formula_takes_part_and_every_mode():
    names = [
        name for name, _ in providers(Case("shrink", "forward", (1, 1, 1)), ("default", "reduce-overhead"))
    ]
    assert names == ["drsn_ops"] + [f"eager/{f}" for f in benchmark.FORMULAS] + [
        f"compile/{f}/default" for f in benchmark.FORMULAS
    ]
    on_cuda = Case("shrink", "forward+backward", (1, 1, 1), device="cuda", timer="graph")
    assert "compile/tidy/reduce-overhead" in [name for name, _ in providers(on_cuda, ("reduce-overhead",))]


def test_channels_last_inputs_are_channels_last():
    inputs = Inputs(Case("shrink", "inference", (2, 3, 4, 5), layout="channels_last"))
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in inputs.x)


@pytest.mark.parametrize(
    ("operator", "direction", "dtype", "expected"),
    [
        # x of 2 * 3 rows of 16: 96 elements; 6 numbers a row of 4 bytes; two planes of 12 bytes, three of 6 * 2 each
        ("soft_threshold", "inference", torch.float32, 2 * 384 + 24),
        ("soft_threshold", "forward", torch.float32, 2 * 384 + 24 + 24),
        ("soft_threshold", "backward", torch.bfloat16, 2 * 192 + 24 + 24),
        ("abs_mean", "forward", torch.float32, 384 + 24 + 24),
        ("shrink", "inference in place", torch.float32, 2 * 384 + 48),
        ("shrink", "forward", torch.float32, 2 * 384 + 48 + 36),
        ("shrink", "backward", torch.float64, 2 * 768 + 144 + 36),
        ("shrink", "forward+backward", torch.float32, 4 * 384 + 48 + 72 + 2 * 36),
        ("shrink+residual", "forward", torch.float32, 3 * 384 + 48 + 36),
    ],
)
def test_bytes_moved(operator, direction, dtype, expected):
    assert bytes_moved(Case(operator, direction, (2, 3, 16), dtype)) == expected


def test_a_row_of_odd_length_has_a_code_of_whole_bytes():
    assert bytes_moved(Case("shrink", "forward", (2, 3, 17))) == 2 * 6 * 17 * 4 + 2 * 24 + 3 * 6 * 3


def test_the_copy_moves_the_bytes_of_the_case():
    case = Case("shrink", "forward+backward", (4, 4, 64))
    copy = benchmark.Copy(case)
    copied = copy.call(0, copy.fresh(0))
    assert copied.equal(copy.sources[0])
    assert 2 * copied.nbytes == pytest.approx(bytes_moved(case), abs=8)


def contender_of(name, shape=(4, 8, 64)):
    case = Case("shrink", "forward+backward", shape)
    return Contender(case, name, dict(providers(case, ()))[name], Inputs(case))


def test_kept_for_backward():
    elements, rows = 4 * 8 * 64, 4 * 8
    beyond, total = kept_for_backward(contender_of("drsn_ops"))
    assert 0.375 * elements <= beyond <= total <= 0.375 * elements + 16 * rows
    # The strong formula keeps x, which it was given, and little else.
    beyond, total = kept_for_backward(contender_of("eager/strong"))
    assert beyond < elements
    assert total >= 4 * elements


def test_peak_bytes_counts_results_and_not_inputs():
    shape = (4, 8, 4096)
    tensor = 4 * 4 * 8 * 4096
    ours, naive = (peak_bytes(contender_of(name, shape)) for name in ("drsn_ops", "eager/naive"))
    assert 2 * tensor <= ours < 3 * tensor  # y and the gradient of x
    assert naive > ours


@pytest.fixture(scope="module")
def rows():
    """What a run over the table's cases records, with tensors small enough for a test in their place."""
    rows = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "MAX_POOL", 1)
        patch.setattr(report, "SIZES", SIZES)
        around = environment("cpu")
        for direction in ("inference in place", "forward+backward"):
            for size in SIZES:
                for dtype in (torch.float32, torch.bfloat16):
                    case = Case("shrink", direction, size, dtype)
                    rows += rows_of(case, measure(case, (), rounds=1, seconds=0.0), around)
        for operator, size in (("soft_threshold", (4, 4)), ("shrink", (1, 4, 4))):
            for direction in ("forward", "forward+backward"):
                case = Case(operator, direction, size)
                rows += rows_of(case, measure(case, (), rounds=1, seconds=0.0), around)
        yield json.loads(json.dumps(rows))


def test_every_row_says_everything(rows):
    assert all(set(row) == KEYS for row in rows)
    assert {row["provider"] for row in rows} == {
        "copy",
        "drsn_ops",
        *(f"eager/{f}" for f in benchmark.FORMULAS),
    }
    for row in rows:
        assert 0 < row["p20_us"] <= row["p50_us"] <= row["p80_us"]
        assert row["fraction"] == pytest.approx(row["copy_us"] / row["p50_us"])
        assert row["machine"] and row["torch"] == torch.__version__
        assert (row["saved_bytes"] is None) == (row["provider"] == "copy")


def test_the_report_is_made_from_the_rows(rows):
    changed = [dict(row) for row in rows]
    for row in changed:
        row["p50_us"] = {"drsn_ops": 100.0, "eager/strong": 450.0}.get(row["provider"], 800.0)
        row["date"] = "2001-02-03"
    changed.append({**changed[0], "provider": "compile/tidy/default", "p50_us": 175.0})
    readme = "before\n<!-- benchmark:cpu -->\nold\n<!-- /benchmark:cpu -->\nafter\n"
    made = report.insert(readme, changed)
    assert made.startswith("before\n<!-- benchmark:cpu -->\n") and made.endswith(
        "<!-- /benchmark:cpu -->\nafter\n"
    )
    assert "\nold\n" not in made and "2001-02-03" in made and changed[0]["machine"] in made
    assert "| float32 x of | 0.0 MB | 0.0 MB | 0.0 MB |" in made
    assert made.count("| the fastest eager formula takes, times that | 4.50 | 4.50 | 4.50 |") == 2
    assert "| the best torch.compile takes, times that | 1.75 | – | – |" in made
    assert "drsn_ops 0.375 an element and 8 a row" in made
    assert "0.12 for `soft_threshold` on 4x4, forward;" in made
    assert report.insert(made, changed) == made


def test_a_gpu_has_a_table_of_its_own(rows):
    gpu = [{**row, "gpu": "GPU", "driver": "1", "cuda": "2"} for row in rows]
    made = report.insert("<!-- benchmark:cuda --><!-- /benchmark:cuda -->", gpu)
    assert "GPU, driver 1, CUDA 2" in made
    assert made.count("\n| shrink | forward+backward |") == len(SIZES)
    assert slug(gpu[0]) == "gpu"


def test_the_plot_is_a_file(rows, tmp_path):
    report.plot(rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "readme", ["", "<!-- benchmark:cpu -->", "<!-- /benchmark:cpu --> <!-- benchmark:cpu -->"]
)
def test_a_readme_without_markers_is_refused(readme, rows):
    with pytest.raises(ValueError, match="benchmark:cpu"):
        report.insert(readme, rows)


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="no rows"):
        report.insert("", [])


def test_the_quick_grid_is_part_of_the_whole():
    for cases in (cpu_cases, cuda_cases):
        whole = cases(quick=False)
        assert len(whole) == len(set(whole))
        assert set(cases(quick=True)) <= set(whole)


def test_the_command_compares(capsys):
    parser = argparse.ArgumentParser()
    benchmark.add_arguments(parser)
    before = torch.get_num_threads()
    try:
        args = parser.parse_args(["--shape", "2,3,16", "--no-compile", "--threads", "1"])
        assert benchmark.run(args) == 0
    finally:
        torch.set_num_threads(before)
    printed = capsys.readouterr().out
    assert printed.count("drsn_ops  ") == 3 and printed.count("eager/strong") == 3


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--shape", "3"], "'3' has 1 axes, not two to five"),
        (["--shape", "3,-1"], "'-1' is not a positive number"),
        (["--shape", "a,b"], "'a' is not a positive number"),
        (["--threads", "0"], "'0' is not a positive number"),
    ],
)
def test_bad_arguments_are_refused(arguments, why, capsys):
    parser = argparse.ArgumentParser()
    benchmark.add_arguments(parser)
    with pytest.raises(SystemExit) as refused:
        parser.parse_args(arguments)
    assert refused.value.code == 2
    assert why in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_a_device_that_is_not_there_is_one_line(capsys):
    parser = argparse.ArgumentParser()
    benchmark.add_arguments(parser)
    before = torch.get_num_threads()
    try:
        assert benchmark.run(parser.parse_args(["--device", "cuda"])) == 2
    finally:
        torch.set_num_threads(before)
    assert capsys.readouterr().err.count("\n") == 1


def test_the_cost_of_a_call(monkeypatch):
    monkeypatch.setattr(host, "import_time", lambda: 5.0)
    before = torch.get_num_threads()
    try:
        rows = host.measure_host("cpu", 2)
    finally:
        torch.set_num_threads(before)
    assert {row["call"] for row in rows} == {*host.calls("cpu"), "import drsn_ops, after torch"}
    assert all(0 < row["p20_us"] <= row["p50_us"] <= row["p80_us"] and row["threads"] == 1 for row in rows)
    rows[0]["p50_us"], rows[-1]["p50_us"] = 12.34, 40_000.0
    made = report.insert("<!-- host:cpu --><!-- /host:cpu -->", rows, "host")
    assert f"| {rows[0]['call']} | 12.3 |" in made and made.count("\n| ") == len(rows) + 2
    assert "| import drsn_ops, after torch | 40,000.0 |" in made


def test_the_import_is_timed_in_a_process_of_its_own():
    assert host.import_time() > 0


def test_of_several_machines_the_newest_results_stay(tmp_path, monkeypatch):
    """Whatever the files are called; an experiment's table goes between the marks of its folder's name."""
    for machine, day in (("a", "2001-02-04"), ("b", "2001-02-03")):
        row = {
            **environment("cpu"),
            "call": "a call",
            "p50_us": 1.0,
            "machine": f"machine {machine}",
            "date": day,
        }
        (tmp_path / f"{machine}-host.json").write_text(json.dumps([row]))
    (tmp_path / "experiment-small").mkdir()
    (tmp_path / "experiment-small" / "table.md").write_text("| a table |\n")
    readme = tmp_path / "README.md"
    marks = ("host:cpu", "experiment-small")
    readme.write_text("".join(f"<!-- {mark} -->\n<!-- /{mark} -->\n" for mark in marks))
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "report", "--readme", str(readme)])
    assert command.main() == 0
    made = readme.read_text()
    assert "machine a" in made and "machine b" not in made
    assert "<!-- experiment-small -->\n| a table |\n<!-- /experiment-small -->" in made
