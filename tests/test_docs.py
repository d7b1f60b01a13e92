"""What the documentation shows is what happens."""

import argparse
import doctest
import importlib
import inspect
import pkgutil
import re
import shlex
import shutil
import typing
from pathlib import Path

import numpy as np
import pytest
import torch

import drsn_ops
from benchmarks import __main__ as command
from benchmarks import report, study
from drsn_ops import models, noise, reference, rules
from drsn_ops.__main__ import COMMANDS, main
from drsn_ops.arguments import InputError
from drsn_ops.modules import THRESHOLDS
from drsn_ops.reference import STATISTICS
from drsn_ops.variants.gates import NORMS
from drsn_ops.variants.shrinkage import POOLINGS, RULES
from drsn_ops.vibration import CLASSES, vibration

ROOT = Path(__file__).parents[1]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "csrc").glob("*/README.md")),
]
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(drsn_ops.__path__, "drsn_ops.")
    if not module.name.endswith(("_C", "__main__")) and "._ops_" not in module.name
)
NAMES = {"torch": torch, "drsn_ops": drsn_ops}


def name_of(page):
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    module = importlib.import_module(name)
    assert module.__doc__
    options = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    assert doctest.testmod(module, extraglobs=NAMES, optionflags=options).failed == 0


@pytest.mark.parametrize(
    "name", sorted({*drsn_ops.__all__} - {"InputError", "models", "noise", "reference", "rules"})
)
def test_every_public_name_is_documented_and_annotated(name):
    public = getattr(drsn_ops, name)
    signature = inspect.signature(public)
    assert all(p.annotation is not p.empty for p in signature.parameters.values())
    sections = ["Args:", "Raises:"] if signature.parameters else []
    if inspect.isfunction(public):
        assert signature.return_annotation is not signature.empty
        sections += ["Returns:"] if signature.parameters else []
    elif issubclass(public, torch.nn.Module):
        sections += ["Shape:"]
    assert len(public.__doc__) > 80 and all(section in public.__doc__ for section in sections)


def test_dir_shows_the_public_names():
    assert dir(drsn_ops) == sorted([*drsn_ops.__all__, "__version__"])


CHOICES = {
    "thresholds": THRESHOLDS,
    "expected": THRESHOLDS,
    "statistic": STATISTICS,
    "norm": tuple(NORMS),
    "rule": RULES,
    "pooling": POOLINGS,
    "kind": noise.KINDS,
}


def public_callables():
    for module in (drsn_ops, models, noise, reference, rules):
        for name, public in vars(module).items():
            ours = callable(public) and public.__module__.startswith("drsn_ops")
            if ours and not name.startswith("_") and public is not InputError:
                yield public


def test_words_to_choose_from_are_literal_types():
    """Editors complete them, and type checkers know them: the same that are accepted."""
    seen = set()
    for public in public_callables():
        names = CHOICES.keys() & inspect.signature(public).parameters.keys()
        # a Model, which load_model returns, is imported when it is called
        hints = typing.get_type_hints(public.__init__ if inspect.isclass(public) else public) if names else {}
        for name in names:
            kinds = [
                k
                for k in (hints[name], *typing.get_args(hints[name]))
                if typing.get_origin(k) is typing.Literal
            ]
            assert [typing.get_args(kind) for kind in kinds] == [CHOICES[name]], (public, name)
            seen.add((public.__name__, name))
    assert {*CHOICES} == {name for _, name in seen} and len(seen) > 20


def test_functions_show_an_example():
    for name in (
        "soft_threshold",
        "abs_mean",
        "shrink",
        "gated_shrink",
        "batch_norm_shrink",
        "batch_norm_relu",
        "group_soft_threshold",
    ):
        assert ">>> " in getattr(drsn_ops, name).__doc__


@pytest.mark.parametrize("page", [page for page in PAGES if ">>> " in page.read_text()], ids=name_of)
def test_sessions(page):
    assert doctest.testfile(str(page), module_relative=False, globs=dict(NAMES)).failed == 0


def programs(page):
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    return "\n".join(block for block in blocks if ">>>" not in block)


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    """A folder where the README's commands have been run but for the last, in few steps, on simulated recordings."""
    folder = tmp_path_factory.mktemp("tried")
    for seed, name in enumerate(("DIR", "DIR2", "DIR3")):
        made = vibration(48, points=4096, seed=seed)
        for i, label in enumerate(made.labels):
            if CLASSES[label] in ("healthy", "outer race"):
                place = folder / name / CLASSES[label]
                place.mkdir(parents=True, exist_ok=True)
                np.save(place / f"{i}.npy", made.x[i, 0].numpy())
    text = (ROOT / "README.md").read_text()
    lines = re.findall(r"^python -m drsn_ops (\w+ .*OUT.*?) +#", text, re.MULTILINE)
    assert [line.partition(" ")[0] for line in lines] == ["train", "evaluate", "predict", "export"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in lines[:3]:  # the export takes half a minute, and has tests of its own
            few = "--epochs 1 --blocks 3" if line.startswith("train") else ""
            assert main(shlex.split(f"{line} {few}")) == 0, line
    return folder


def test_the_commands_leave_what_the_page_says(tried):
    text = (ROOT / "docs" / "recordings.md").read_text()
    table = text.partition("| file | what it is |")[2].partition("\n\n")[0]
    named = re.findall(r"`([\w.]+\.\w+)`", "".join(line.split("|")[1] for line in table.splitlines()[2:]))
    assert {*named} == {path.name for path in (tried / "OUT").iterdir()}


@pytest.mark.parametrize(
    "name",
    ["README.md", "docs/recordings.md", "docs/training.md", "docs/experiment.md", "docs/shrinkage.md"],
)
def test_flags_that_are_named_are_there(name):
    known = {"--help", "--nproc-per-node", "--data", "--record"}  # of argparse, torchrun and benchmarks
    for module in (*(importlib.import_module(module) for module, _ in COMMANDS.values()), study):
        parser = argparse.ArgumentParser()
        module.add_arguments(parser)
        known |= {option for action in parser._actions for option in action.option_strings}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", (ROOT / name).read_text()))
    assert named <= known


@pytest.mark.parametrize("page", [page for page in PAGES if programs(page)], ids=name_of)
def test_programs(page, tmp_path, monkeypatch, request):
    """A page's, one after the other in one namespace, as a reader would run them."""
    shows_files = "OUT/model.pt" in programs(page)
    monkeypatch.chdir(request.getfixturevalue("tried") if shows_files else tmp_path)
    names = {
        **NAMES,
        "x": torch.randn(2, 4, 6, 6),
        "shortcut": torch.randn(2, 4, 6, 6),
        "gate": lambda mean: mean.sigmoid(),
    }
    exec(compile(programs(page), str(page), "exec"), names)


def test_sessions_and_programs_are_found():
    assert all(programs(ROOT / name) for name in ("README.md", "docs/usage.md"))
    assert ">>> " in (ROOT / "docs" / "usage.md").read_text()


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def anchors(page):
    """What the headings of a page are called in links."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if not link.startswith("https://"):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_are_named_are_there(page):
    folders = "drsn_ops|csrc|tests|benchmarks|examples|tools|docs"
    text = page.read_text()
    for name in re.findall(rf"(?<![\w./-])(?:{folders})/[\w./*-]*\w", text) + re.findall(
        r"`(test_\w+\.py)`", text
    ):
        assert any(ROOT.glob(name if "/" in name else f"tests/{name}")), name


def test_tables_are_those_that_report_writes(tmp_path):
    pages = {page: tmp_path / page.relative_to(ROOT) for page in report.pages(ROOT)}
    (tmp_path / "docs").mkdir()
    for page, copy in pages.items():
        shutil.copy(page, copy)
    for path in command.recorded():
        for page, text in report.with_regions(tmp_path, report.recorded(path)[0]).items():
            page.write_text(text)
    assert {page: copy.read_text() for page, copy in pages.items()} == {
        page: page.read_text() for page in pages
    }


def test_every_region_is_in_one_page():
    text = "".join(page.read_text() for page in PAGES)
    for region, devices in report.TABLES.items():
        for mark in ("<!-- {} -->", "<!-- /{} -->"):
            assert [text.count(mark.format(f"{region}:{device}")) for device in devices] == [1] * len(devices)


def test_the_citation_is_of_the_paper_and_the_changes_are_of_this_version():
    assert "doi: 10.1109/TII.2019.2943898" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {drsn_ops.__version__}" in (ROOT / "CHANGELOG.md").read_text()
