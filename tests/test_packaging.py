"""What is shipped, with which PyTorch it loads, and what happens where the CUDA library does not."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import torch
from checks import make_gate, operators_of
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import drsn_ops
from drsn_ops.ops import library

ROOT = Path(__file__).parents[1]
FOLDER = Path(library.__file__).parents[1]
SYMBOLS = [sys.executable, ROOT / "tools" / "symbols.py"]


def link(code, library, *flags):
    """A shared library of these lines of C++."""
    compiler = os.environ.get("CXX", "c++").split()
    if not shutil.which(compiler[0]):
        pytest.skip(f"there is no C++ compiler {compiler[0]}")
    source = library.with_suffix(".cpp")
    source.write_text(code)
    subprocess.run([*compiler, "-shared", "-fPIC", source, "-o", library, *flags], check=True)
    return library


def calls(symbol):
    return f'extern "C" void {symbol}(); void f() {{ {symbol}(); }}'


class TestSymbols:
    pytestmark = pytest.mark.skipif(not shutil.which("objdump"), reason="needs nm and objdump")

    def test_pytorch_2_11_has_every_symbol_that_is_used(self):
        subprocess.run([*SYMBOLS, *FOLDER.glob("_ops_*.so")], check=True)

    @pytest.mark.parametrize("symbol", ["torch_exception_get_what", "_ZN2at4_ops3abs4callERKNS_6TensorE"])
    def test_another_symbol_is_named(self, tmp_path, symbol):
        library = link(calls(symbol), tmp_path / "library.so")
        result = subprocess.run([*SYMBOLS, library], capture_output=True, text=True)
        assert result.returncode == 1 and symbol in result.stderr

    def test_a_symbol_of_the_runtime_without_a_version_passes(self, tmp_path):
        library = link(calls("_ZNSt4drsn4joinEv"), tmp_path / "library.so")
        subprocess.run([*SYMBOLS, library], check=True)

    def test_a_symbol_of_a_library_that_is_not_linked(self, tmp_path):
        """The CPU library loads without libtorch_cuda.so, so it may take nothing from there."""
        code = calls("aoti_torch_get_current_cuda_stream")
        stub = link("", tmp_path / "libtorch_cuda.so", "-Wl,-soname,libtorch_cuda.so")
        alone = link(code, tmp_path / "alone.so")
        linked = link(code, tmp_path / "linked.so", "-Wl,--no-as-needed", stub)
        assert subprocess.run([*SYMBOLS, alone], capture_output=True).returncode == 1
        assert subprocess.run([*SYMBOLS, linked], capture_output=True).returncode == 0


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a checkout with git")
def test_the_sdist_has_every_file(tmp_path):
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [name for name in listed.splitlines() if (ROOT / name).exists()]
    for name in files:
        copy = tmp_path / "source" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy)
    # in a copy: setuptools would leave an egg-info in the tree
    program = "import setuptools.build_meta as backend; backend.build_sdist('..')"
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path / "source", capture_output=True, check=True)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        shipped = {name.partition("/")[2] for name in archive.getnames()}
    assert set(files) <= shipped


def test_type_checkers_find_an_editable_install(tmp_path):
    """From outside the checkout. Without setup.py nothing is compiled."""
    pytest.importorskip("mypy")
    source, outside = tmp_path / "source", tmp_path / "outside"
    shutil.copytree(
        ROOT / "drsn_ops", source / "drsn_ops", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    outside.mkdir()
    (outside / "mypy.ini").write_text(
        "[mypy]\n[mypy-torch.*]\nfollow_imports = skip\n"
    )  # takes half a minute
    program = "import setuptools.build_meta as backend; backend.build_editable('../outside')"
    subprocess.run([sys.executable, "-c", program], cwd=source, capture_output=True, check=True)
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run(
        [python, "-c", where], capture_output=True, text=True, check=True
    ).stdout.strip()
    (wheel,) = outside.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--python-executable", python, "-c", "from drsn_ops import Shrinkage"],
        cwd=outside,
        env={name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")},
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout


def write_wheel(place, files, tags="py3-none-linux_x86_64"):
    """A wheel with these files, whose names lead to their contents."""
    wheel = place / f"drsn_ops-0.1.0-{tags}.whl"
    tag = wheel.stem.partition("0.1.0-")[2]
    about = "drsn_ops-0.1.0.dist-info/"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.writestr(f"{about}METADATA", "Metadata-Version: 2.1\nName: drsn_ops\nVersion: 0.1.0\n")
        archive.writestr(f"{about}WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tag}\n")
        archive.writestr(f"{about}RECORD", "".join(f"{name},,\n" for name in archive.namelist()))
    return wheel


class TestWheel:
    @pytest.fixture
    def tool(self, load_tool):
        return load_tool("wheel")

    @pytest.fixture
    def library(self, tmp_path):
        """One that calls a function of glibc 2.26 and is linked with PyTorch's and CUDA's."""
        names = ("torch_cuda", "torch_cpu", "c10_cuda", "cudart")
        stubs = [link("", tmp_path / f"lib{name}.so", f"-Wl,-soname,lib{name}.so") for name in names]
        flags = ("-Wl,--no-as-needed", *stubs, f"-Wl,-rpath,{tmp_path}")
        return link(calls("reallocarray"), tmp_path / "_ops_cuda.so", *flags).read_bytes()

    def test_its_tag_says_which_glibc_it_needs(self, tool, tmp_path, library):
        pytest.importorskip("auditwheel")
        files = {"drsn_ops/_ops_cuda.so": library, "drsn_ops/__init__.py": b""}
        wheel = tool.repair(write_wheel(tmp_path, files), tmp_path)
        assert "manylinux_2_26_" in wheel.name and tool.glibc(wheel) == (2, 26)
        with zipfile.ZipFile(wheel) as archive:
            assert {name: archive.read(name) for name in files} == files
            others = {name for name in archive.namelist() if name[-1] != "/"} - {*files}
        assert all(name.startswith("drsn_ops-0.1.0.dist-info/") for name in others)

    def test_the_glibc_of_a_tag_that_has_an_older_name_too(self, tool):
        name = "drsn_ops-0.1.0-cp311-cp311-manylinux2014_x86_64.manylinux_2_17_x86_64.whl"
        assert tool.glibc(Path(name)) == (2, 17)

    def test_one_for_too_new_a_glibc_is_not_released(self, tool):
        tool.check_glibc(Path("drsn_ops-0.1.0-py3-none-manylinux_2_34_x86_64.whl"))
        with pytest.raises(SystemExit, match="2_38_x86_64.whl: .* a release's is for glibc 2.34"):
            tool.check_glibc(Path("drsn_ops-0.1.0-py3-none-manylinux_2_38_x86_64.whl"))

    def test_a_library_that_would_have_to_be_shipped_is_an_error(self, tool, tmp_path):
        pytest.importorskip("auditwheel")
        other = link("", tmp_path / "libother.so", "-Wl,-soname,libother.so")
        library = link("", tmp_path / "_ops_cpu.so", "-Wl,--no-as-needed", other, f"-Wl,-rpath,{tmp_path}")
        wheel = write_wheel(tmp_path, {"drsn_ops/_ops_cpu.so": library.read_bytes()})
        with pytest.raises(subprocess.CalledProcessError):
            tool.repair(wheel, tmp_path / "dist")
        assert not (tmp_path / "dist").exists()

    def test_its_files(self, tool, tmp_path, monkeypatch):
        monkeypatch.setattr(tool, "ROOT", tmp_path)
        names = ["drsn_ops/__init__.py", "drsn_ops/models/__init__.py", "drsn_ops/py.typed"]
        for name in names:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        names += ["drsn_ops/_ops_cpu.so", "drsn_ops/build_info.json"]

        def check(names, cuda=None, tags="py3-none-manylinux_2_34_x86_64"):
            files = dict.fromkeys(names, "") | {"drsn_ops/build_info.json": json.dumps({"cuda": cuda})}
            tool.check_files(write_wheel(tmp_path, {name: files[name] for name in names}, tags))

        def refused(*arguments, lacks=(), odd=()):
            with pytest.raises(SystemExit) as refusal:
                check(*arguments)
            assert str(refusal.value).endswith(f": lacks {[*lacks]}, and should not have {[*odd]}")

        check([*names, "drsn_ops/"])
        check([*names, "drsn_ops/_ops_cuda.so"], "13.0")
        for name in names:
            refused([n for n in names if n != name], lacks=[name])
        for odd in ("drsn_ops.libs/libother.so", "drsn_ops/_C.so", "drsn_ops/_ops_cuda.so"):
            refused([*names, odd], odd=[odd])
        refused(names, "13.0", lacks=["drsn_ops/_ops_cuda.so"])
        for tags in ("py3-none-linux_x86_64", "cp311-cp311-manylinux_2_34_x86_64"):
            with pytest.raises(SystemExit, match="expected the tags of every Python 3 on Linux"):
                check(names, tags=tags)


def build_id_note(content):
    return b"\x7fELF" + library._BUILD_ID_NOTE + content


class TestCudaLibraryThatDoesNotLoad:
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path, monkeypatch):
        """A package folder of its own, under a PyTorch that says it has CUDA."""
        monkeypatch.setattr(library, "_FOLDER", tmp_path)
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(library, "_warned", False)
        monkeypatch.setattr(library, "_BUILT", {**library._BUILT, "cuda": "13.0", "cuda_reason": None})
        (tmp_path / "_ops_cpu.so").write_bytes(b"")
        return tmp_path

    def test_garbage(self, folder):
        (folder / "_ops_cuda.so").write_bytes(b"garbage")
        reason = library._load()
        assert reason.startswith(f"PyTorch {torch.__version__} cannot load the CUDA kernels (")
        assert "_ops_cuda.so" in reason and reason.endswith("; install drsn_ops again")

    def test_missing_symbol(self, folder):
        link(calls("not_in_pytorch"), folder / "_ops_cuda.so", "-Wl,--build-id=none")
        assert "undefined symbol: not_in_pytorch" in library._load()

    def test_of_another_version_is_not_loaded(self, folder):
        """Its kernels would read arguments that are not there."""
        (folder / "_ops_cpu.so").write_bytes(build_id_note(20 * b"a"))
        (folder / "_ops_cuda.so").write_bytes(build_id_note(20 * b"b"))
        assert "another version" in library._load()
        (folder / "_ops_cuda.so").write_bytes(build_id_note(20 * b"a"))
        assert "cannot load" in library._load()

    def test_pytorch_without_cuda(self, folder, monkeypatch):
        monkeypatch.setattr(torch.version, "cuda", None)
        (folder / "_ops_cuda.so").write_bytes(b"garbage")
        assert library._load().endswith("is built without CUDA")

    def test_pytorch_of_another_cuda(self, folder, monkeypatch):
        monkeypatch.setattr(torch.version, "cuda", "12.8")
        (folder / "_ops_cuda.so").write_bytes(b"garbage")
        running = f"PyTorch {torch.__version__}"
        assert library._load() == f"the kernels are of CUDA 13.0, and {running} is of CUDA 12.8"
        monkeypatch.setattr(torch.version, "cuda", "13.2")
        assert "cannot load" in library._load()

    def test_an_older_pytorch(self, folder, monkeypatch):
        (folder / "_ops_cuda.so").write_bytes(b"garbage")
        monkeypatch.setattr(torch, "__version__", "2.10.1+cu130")
        expected = "the CUDA kernels are for PyTorch 2.11 and newer, and this is PyTorch 2.10.1+cu130"
        assert library._load() == expected
        monkeypatch.setattr(torch, "__version__", "3.0.0+cu130")
        assert "cannot load" in library._load()

    def test_there_is_none(self, folder, monkeypatch):
        assert library._load() == f"{folder / '_ops_cuda.so'} is missing; install drsn_ops again"
        built = {**library._BUILT, "cuda": None, "cuda_reason": "USE_CUDA=0"}
        monkeypatch.setattr(library, "_BUILT", built)
        assert library._load() == "built without CUDA: USE_CUDA=0"
        (folder / "_ops_cuda.so").write_bytes(b"of an earlier build")
        assert library._load() == "built without CUDA: USE_CUDA=0"

    def test_cuda_tensors_take_the_plain_formula_with_one_warning(self, folder, monkeypatch):
        (folder / "_ops_cuda.so").write_bytes(b"garbage")
        monkeypatch.setattr(library, "cuda_reason", library._load())
        modules = make_gate(3, 4, 3).float(), nn.BatchNorm1d(3), drsn_ops.Shrinkage(3)
        mode = FakeTensorMode(allow_non_fake_inputs=True)  # for the modules, made where there need be no CUDA
        with mode, torch.no_grad(), pytest.warns(RuntimeWarning) as record:
            x = torch.empty(2, 3, 4, device="cuda")
            gate, norm, shrinkage = (module.to_empty(device="cuda").eval() for module in modules)
            calls = [
                lambda: drsn_ops.soft_threshold(x, 0.5),
                lambda: drsn_ops.abs_mean(x),
                lambda: drsn_ops.shrink(x, 0.5),
                lambda: drsn_ops.gated_shrink(x, gate),
                lambda: drsn_ops.batch_norm_shrink(x, norm, gate),
                lambda: drsn_ops.batch_norm_relu(x, norm),
                lambda: shrinkage(x),
            ]
            assert [operators_of(call) for call in calls] == [[]] * len(calls)
        (message,) = [str(r.message) for r in record if "drsn_ops" in str(r.message)]
        sentence = f"PyTorch {torch.__version__} cannot load the CUDA kernels ({folder / '_ops_cuda.so'}: "
        assert message.startswith(f"drsn_ops runs in plain PyTorch operators on cuda: {sentence}")
        reason = drsn_ops.build_info()["cuda_reason"]
        assert reason.startswith(sentence) and reason.endswith("; install drsn_ops again")


def test_a_package_that_was_not_compiled(monkeypatch, tmp_path):
    monkeypatch.setattr(library, "_FOLDER", tmp_path)
    with pytest.raises(ImportError) as refusal:
        library._read_build_file()
    assert str(refusal.value) == (
        f"drsn_ops in {tmp_path} is not compiled: no build_info.json; install it, or leave this source tree if "
        "another one is installed"
    )
    (tmp_path / "build_info.json").write_text("{}")
    with pytest.raises(ImportError, match=r"is not compiled: no _ops_cpu\.so; install it, "):
        library._read_build_file()


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"{}"])
def test_a_build_file_that_is_damaged(monkeypatch, tmp_path, content):
    monkeypatch.setattr(library, "_FOLDER", tmp_path)
    (tmp_path / "_ops_cpu.so").touch()
    (tmp_path / "build_info.json").write_bytes(content)
    with pytest.raises(ImportError, match=r"build_info\.json is damaged \(.+\); install drsn_ops again$"):
        library._read_build_file()


def test_a_cpu_library_of_another_namespace(monkeypatch, tmp_path):
    monkeypatch.setattr(library, "_FOLDER", tmp_path)
    monkeypatch.setattr(library, "OPS", object())
    link("", tmp_path / "_ops_cpu.so")
    with pytest.raises(
        ImportError, match=r"_ops_cpu\.so is of another build than .*; install drsn_ops again$"
    ):
        library._load()


def test_a_pytorch_that_cannot_load_the_cpu_library(monkeypatch, tmp_path):
    monkeypatch.setattr(library, "_FOLDER", tmp_path)
    monkeypatch.setattr(library, "OPS", object())
    monkeypatch.setattr(torch, "__version__", "2.9.1")
    link(calls("not_in_pytorch"), tmp_path / "_ops_cpu.so")
    with pytest.raises(ImportError) as refusal:
        library._load()
    sentence = "drsn_ops is for PyTorch 2.11 and newer, and PyTorch 2.9.1 cannot load it ("
    assert str(refusal.value).startswith(sentence) and "not_in_pytorch" in str(refusal.value)


def test_the_compiled_module_tells_what_the_build_file_tells():
    """The one is in `pip install .`, the other in every way to install."""
    compiled = pytest.importorskip("drsn_ops._C", reason="a wheel for every Python has no _C")
    written = json.loads((FOLDER / "build_info.json").read_text())
    assert compiled.build_info() == written
    info = drsn_ops.build_info()
    assert {name: info[name] for name in written if name != "cuda_reason"} == {
        name: value for name, value in written.items() if name != "cuda_reason"
    }


@pytest.mark.skipif(not (ROOT / "csrc").exists(), reason="needs the sources")
def test_the_build_id_of_the_libraries_is_that_of_the_schemas():
    schemas = library.NAMESPACE.encode() + (ROOT / "csrc" / "registration.cpp").read_bytes()
    found = {library._build_id(path) for path in FOLDER.glob("_ops_*.so")}
    assert found == {hashlib.sha1(schemas).digest()}
