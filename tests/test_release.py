"""What a release is made of: its notes, and the workflows' commands, which all run on any machine."""

import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
CHANGES = """# Changes

## 0.2.0 (2026-12-01)

The second.

- One
  sentence.
- Another one.

## 0.1.0 (2026-11-01)

The first.
"""


class TestNotes:
    @pytest.fixture
    def notes(self, tmp_path):
        """Runs release_notes.py in a tree with these changes and this version."""
        (tmp_path / "tools").mkdir()
        tool = tmp_path / "tools" / "release_notes.py"
        tool.write_text((ROOT / "tools" / "release_notes.py").read_text())

        def run(tag, changes=CHANGES, version="0.2.0"):
            (tmp_path / "CHANGELOG.md").write_text(changes)
            (tmp_path / "pyproject.toml").write_text(f'[project]\nname = "drsn_ops"\nversion = "{version}"\n')
            return subprocess.run([sys.executable, tool, tag], capture_output=True, text=True)

        return run

    def test_are_the_text_of_the_version_alone_without_breaks_in_a_sentence(self, notes):
        assert notes("v0.2.0").stdout == "The second.\n\n- One sentence.\n- Another one.\n"

    @pytest.mark.parametrize(
        "tag, changes, version, reason",
        [
            ("v0.3.0", CHANGES, "0.2.0", "tag v0.3.0: pyproject.toml has version 0.2.0, whose tag is v0.2.0"),
            (
                "v0.1.0",
                CHANGES,
                "0.1.0",
                "newest heading is '0.2.0 (2026-12-01)', expected '0.1.0 (YYYY-MM-DD)'",
            ),
            (
                "v0.2.0",
                CHANGES.replace("2026-12-01", "unreleased"),
                "0.2.0",
                "is '0.2.0 (unreleased)', expected",
            ),
        ],
    )
    def test_are_refused_where_the_versions_differ(self, notes, tag, changes, version, reason):
        done = notes(tag, changes, version)
        assert done.returncode == 1 and done.stdout == "" and reason in done.stderr


def test_the_readme_installs_this_version():
    project = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert set(re.findall(r"drsn_ops-(.+)-py3", (ROOT / "README.md").read_text())) == {project}


class TestWorkflows:
    def test_call_what_there_is(self):
        text = "\n".join(path.read_text() for path in WORKFLOWS)
        makes = re.findall(r"(?:: |&& |\[|, |\d )make ([^#&,\]\n]+)", text)
        goals = {goal for make in makes for goal in make.split() if "=" not in goal}
        rules = (ROOT / "Makefile").read_text().replace("$(VENV)", ".venv")
        assert goals <= set(re.findall(r"^(\S+):", rules, re.MULTILINE)) and len(goals) > 5
        programs = set(re.findall(r"(?:tools|\.ci)/[\w.]+", text))
        assert all((ROOT / name).is_file() for name in programs) and len(programs) > 2

    def test_a_release_has_no_secret_but_its_own_token(self):
        (text,) = [path.read_text() for path in WORKFLOWS if path.name == "release.yml"]
        assert "secrets." not in text and text.count("contents: write") == 1


def test_a_python_is_found_from_the_folder_that_names_it(load_tool, tmp_path, monkeypatch, capsys):
    """The wheel is tried in another."""
    try_wheel = load_tool("try_wheel")
    monkeypatch.chdir(tmp_path)
    Path("python").symlink_to(sys.executable)
    tried = []
    monkeypatch.setattr(try_wheel, "attempt", lambda *one: tried.append(one[2]))
    Path("a.whl").touch()
    try_wheel.main(["a.whl", "--quick", "--python", "./python"])
    assert tried == [str(tmp_path / "python")]
    with pytest.raises(SystemExit):
        try_wheel.main(["a.whl", "--quick", "--python", "./python4"])
    assert "there is no ./python4" in capsys.readouterr().err


def test_an_sdist_is_made_where_there_is_no_pytorch(tmp_path):
    """As in an isolated build of it."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "drsn_ops").mkdir()
    (tmp_path / "drsn_ops" / "__init__.py").touch()
    program = """
import sys
sys.modules["torch"] = None
import setuptools.build_meta as backend
backend.get_requires_for_build_sdist()
backend.build_sdist("out")
backend.build_wheel("out")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "drsn_ops is built against PyTorch" in done.stderr  # of the wheel
    (sdist,) = (tmp_path / "out").iterdir()
    with tarfile.open(sdist) as archive:
        assert sdist.name.replace(".tar.gz", "/drsn_ops/__init__.py") in archive.getnames()
