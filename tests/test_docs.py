"""What the documentation shows is what happens."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import typing
from pathlib import Path

import pytest
import torch

import drsn_ops
from drsn_ops import _C, models, noise, reference
from drsn_ops.modules import NORMS, THRESHOLDS
from drsn_ops.reference import STATISTICS

README = Path(__file__).parents[1] / "README.md"
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(drsn_ops.__path__, "drsn_ops.")
    if not module.name.endswith(("_C", "__main__")) and "._ops_" not in module.name
)
NAMES = {"torch": torch, "drsn_ops": drsn_ops}


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    module = importlib.import_module(name)
    assert module.__doc__
    options = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    assert doctest.testmod(module, extraglobs=NAMES, optionflags=options).failed == 0


@pytest.mark.parametrize("name", sorted({*drsn_ops.__all__} - {"models", "noise", "reference"}))
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
    "kind": noise.KINDS,
}


def public_callables():
    for module in (drsn_ops, models, noise, reference):
        for name, public in vars(module).items():
            if callable(public) and not name.startswith("_") and public.__module__.startswith("drsn_ops"):
                yield public


def test_words_to_choose_from_are_literal_types():
    """Editors complete them, and type checkers know them: the same that are accepted."""
    seen = set()
    for public in public_callables():
        names = CHOICES.keys() & inspect.signature(public).parameters.keys()
        hints = typing.get_type_hints(public.__init__ if inspect.isclass(public) else public)
        for name in names:
            kinds = [
                k
                for k in (hints[name], *typing.get_args(hints[name]))
                if typing.get_origin(k) is typing.Literal
            ]
            assert [typing.get_args(kind) for kind in kinds] == [CHOICES[name]], (public, name)
            seen.add((public.__name__, name))
    assert {*CHOICES} == {name for _, name in seen} and len(seen) > 20


def test_the_stub_has_what_the_compiled_module_has():
    stub = ast.parse(Path(_C.__file__).with_name("_C.pyi").read_text())
    declared = {node.name for node in stub.body if isinstance(node, ast.FunctionDef)}
    assert declared == {name for name in vars(_C) if not name.startswith("__")}


def test_functions_show_an_example():
    for name in ("soft_threshold", "abs_mean", "shrink", "gated_shrink", "batch_norm_shrink"):
        assert ">>> " in getattr(drsn_ops, name).__doc__


def test_readme_sessions():
    assert ">>> " in README.read_text()
    assert doctest.testfile(str(README), module_relative=False, globs=dict(NAMES)).failed == 0


def programs():
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    return "\n".join(block for block in blocks if ">>>" not in block)


def test_readme_programs(tmp_path, monkeypatch):
    """One after the other in one namespace, as a reader would run them."""
    monkeypatch.chdir(tmp_path)
    names = {
        **NAMES,
        "x": torch.randn(2, 4, 6, 6),
        "shortcut": torch.randn(2, 4, 6, 6),
        "gate": lambda mean: mean.sigmoid(),
    }
    exec(compile(programs(), str(README), "exec"), names)
