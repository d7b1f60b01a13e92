"""Files are whole, old or new, whatever ends the writing."""

import errno
import os

import pytest
import torch
from commands import contents

from drsn_ops.files import replacing, save_tensors


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "kept"
    path.write_text("whole")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("ha")
        raise RuntimeError
    assert contents(tmp_path) == {path: b"whole"}


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    """The system may tell of it only when the file is synchronised; the error names the file that was meant."""
    path = tmp_path / "kept"
    path.write_text("whole")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=f"No space left on device: '{path}'$"), replacing(path) as temporary:
        temporary.write_text("new")
    assert contents(tmp_path) == {path: b"whole"}


def test_tensors_on_a_full_disk(tmp_path, small_files):
    """PyTorch's own writer raises a RuntimeError then."""
    path = tmp_path / "kept"
    path.write_text("whole")
    with small_files, pytest.raises(OSError, match=f"'{path}'$"):
        save_tensors(torch.ones(10_000), path)
    assert contents(tmp_path) == {path: b"whole"}
    save_tensors(torch.ones(10_000), path)
    assert torch.load(path, weights_only=True).equal(torch.ones(10_000))


def test_a_file_is_on_the_disk_before_it_is_renamed(tmp_path, monkeypatch):
    """Or a loss of power could leave a new name with nothing in it; the name, too, is then made to last."""
    done, path = [], tmp_path / "file"

    def record(name, of):
        inside = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args: done.append((name, of(*args))) or inside(*args))

    record("fsync", lambda descriptor: os.readlink(f"/proc/self/fd/{descriptor}"))
    record("replace", lambda source, target: str(source))
    with replacing(path) as temporary:
        temporary.write_text("new")
    assert done == [("fsync", str(temporary)), ("replace", str(temporary)), ("fsync", str(tmp_path))]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays(tmp_path, there):
    """What it points to is replaced, in its own folder, or made there."""
    (tmp_path / "inner").mkdir()
    target, link = tmp_path / "inner" / "target", tmp_path / "link"
    if there:
        target.write_text("old")
    link.symlink_to(os.path.join("inner", "target"))
    with replacing(link) as temporary:
        assert temporary.parent == target.parent
        temporary.write_text("new")
    assert link.is_symlink() and target.read_text() == "new"
    assert sorted(path.name for path in target.parent.iterdir()) == ["target"]


def test_permissions_are_those_of_a_file_that_is_opened(tmp_path):
    path, plain = tmp_path / "file", tmp_path / "plain"
    plain.touch()
    for wanted in (plain.stat().st_mode, 0o100600):
        with replacing(path) as temporary:
            temporary.write_text("new")
        assert path.stat().st_mode == wanted
        path.chmod(0o600)


def test_writers_at_a_time_have_files_of_their_own(tmp_path):
    path = tmp_path / "file"
    with replacing(path) as first, replacing(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert contents(tmp_path) == {path: b"first"}


def test_a_new_file_replaces_none(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(FileExistsError), replacing(path, new=True) as temporary:
        temporary.write_text("mine")
        path.write_text("another process's")
    assert contents(tmp_path) == {path: b"another process's"}
    path.unlink()
    with replacing(path, new=True) as temporary:
        temporary.write_text("mine")
    assert contents(tmp_path) == {path: b"mine"}
