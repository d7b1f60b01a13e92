"""What setup.py builds: which CUDA toolkit it takes, what it says where none serves, and what is packed."""

import hashlib
import importlib
import itertools
import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

setuptools = pytest.importorskip("setuptools")
cpp_extension = pytest.importorskip("torch.utils.cpp_extension")

ROOT = Path(__file__).parents[1]
NVCC = """#!/bin/sh
case $1 in
    --version) echo 'Cuda compilation tools, release 13.0, V13.0.88' ;;
    --list-gpu-arch) printf 'compute_75\\ncompute_80\\ncompute_90\\n' ;;
    --help) echo 'Usage: nvcc [options] <inputfile>' ;;
    *) exit 1 ;;
esac
"""


def make_toolkit(place, nvcc=NVCC, libraries=("lib64/libcudart_static.a",), mode=0o755):
    """A folder with what setup.py looks at in a CUDA toolkit."""
    for name in ("bin/nvcc", *libraries):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(nvcc)
    (place / "bin" / "nvcc").chmod(mode)
    return str(place)


@pytest.fixture
def run_setup(monkeypatch):
    """Runs setup.py, with setup() replaced, under a PyTorch for this CUDA; returns its names and setup's arguments."""

    def run(cuda="13.0", **environment):
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)
        # set, so that what setup.py writes there is undone
        names = "USE_CUDA CUDA_HOME TORCH_CUDA_ARCH_LIST DEBUG PORTABLE OPERATOR_NAMESPACE OLDEST_TORCH"
        unset = dict.fromkeys(names.split(), "")
        for name, value in {**unset, **environment}.items():
            monkeypatch.setenv(name, value)
        arguments = {}
        monkeypatch.setattr(setuptools, "setup", lambda **given: arguments.update(given))
        names = {"__name__": "setup"}
        exec(compile((ROOT / "setup.py").read_text(), "setup.py", "exec"), names)
        names["extensions"] = {extension.name: extension for extension in arguments["ext_modules"]}
        names.update(arguments)
        return names

    return run


class TestUseCuda:
    def test_without_it_cuda_is_built_where_it_can_be(self, run_setup, tmp_path):
        names = run_setup(CUDA_HOME=make_toolkit(tmp_path))
        assert set(names["extensions"]) == {"drsn_ops._ops_cpu", "drsn_ops._ops_cuda", "drsn_ops._C"}
        assert (names["CUDA_HOME"], names["CUDA_VERSION"], names["CUDA_REASON"]) == (
            str(tmp_path),
            "13.0",
            None,
        )
        assert cpp_extension.CUDA_HOME == str(tmp_path)
        assert os.environ["TORCH_CUDA_ARCH_LIST"] == "7.5;8.0;9.0+PTX"
        info = names["build_info"]("1.2.3")
        assert info["version"] == "1.2.3" and info["cuda_arch"] == ["7.5", "8.0", "9.0+PTX"]
        assert (info["cuda"], info["cuda_reason"]) == ("13.0", None)

    def test_without_it_the_cpu_library_says_why_it_is_alone(self, run_setup, tmp_path):
        names = run_setup(CUDA_HOME=str(tmp_path))
        assert set(names["extensions"]) == {"drsn_ops._ops_cpu", "drsn_ops._C"}
        reason = f"no nvcc in CUDA_HOME ({tmp_path})"
        info = names["build_info"]("1.2.3")
        assert (info["cuda"], info["cuda_arch"], info["cuda_reason"]) == (None, [], reason)

    def test_0(self, run_setup, tmp_path):
        names = run_setup(CUDA_HOME=make_toolkit(tmp_path), USE_CUDA="0")
        assert set(names["extensions"]) == {"drsn_ops._ops_cpu", "drsn_ops._C"}
        assert names["CUDA_REASON"] == "USE_CUDA=0"

    def test_1(self, run_setup, tmp_path):
        with pytest.raises(SystemExit, match=r"^USE_CUDA=1, and the CUDA library cannot be built: no nvcc"):
            run_setup(CUDA_HOME=str(tmp_path), USE_CUDA="1")
        assert "drsn_ops._ops_cuda" in run_setup(CUDA_HOME=make_toolkit(tmp_path), USE_CUDA="1")["extensions"]

    @pytest.mark.parametrize("wish", ["2", "yes", "01", " "])
    def test_another_value(self, run_setup, wish):
        with pytest.raises(SystemExit, match=rf"^USE_CUDA may be 0 .* 1 .* or not set, and is '{wish}'\.$"):
            run_setup(USE_CUDA=wish)
        for name in ("DEBUG", "PORTABLE"):
            with pytest.raises(SystemExit, match=rf"^{name} may be 0, 1 or not set, and is '{wish}'\.$"):
                run_setup(**{name: wish})

    @pytest.mark.parametrize(
        "newest, expected",
        [
            ("90", "7.5;8.0;9.0+PTX"),
            ("90\\ncompute_100", "7.5;8.0;9.0;10.0+PTX"),
            ("90\\ncompute_100\\ncompute_110\\ncompute_120", "7.5;8.0;9.0;10.0+PTX;12.0"),
        ],
    )
    def test_the_ptx_is_older_than_each_gpu_without_code_of_its_own(
        self, run_setup, tmp_path, newest, expected
    ):
        run_setup(CUDA_HOME=make_toolkit(tmp_path, NVCC.replace("compute_90", f"compute_{newest}")))
        assert os.environ["TORCH_CUDA_ARCH_LIST"] == expected

    @pytest.mark.parametrize("knows", [False, True])
    def test_code_is_packed_small_where_nvcc_can(self, run_setup, tmp_path, knows):
        words = "--compress-mode [default,size,speed,balance,none]" if knows else "--no-compress"
        place = make_toolkit(tmp_path, NVCC.replace("Usage: nvcc [options] <inputfile>", words))
        flags = run_setup(CUDA_HOME=place)["extensions"]["drsn_ops._ops_cuda"].extra_compile_args["nvcc"]
        assert ("--compress-mode=size" in flags) is knows

    def test_architectures_that_are_asked_for(self, run_setup, tmp_path):
        names = run_setup(CUDA_HOME=make_toolkit(tmp_path), TORCH_CUDA_ARCH_LIST="8.6 9.0a")
        assert names["CUDA_ARCHS"] == ["8.6", "9.0a"]


class TestPortable:
    def test_no_python_is_in_it_and_cuda_is_under_any_pytorch(self, run_setup, tmp_path):
        place = make_toolkit(tmp_path)
        for cuda in (None, "12.8", "13.0"):
            names = run_setup(cuda, CUDA_HOME=place, PORTABLE="1")
            assert set(names["extensions"]) == {"drsn_ops._ops_cpu", "drsn_ops._ops_cuda"}
            # PyTorch's BuildExtension stops where they differ
            assert names["CUDA_VERSION"] == torch.version.cuda == "13.0"
            assert names["extensions"]["drsn_ops._ops_cuda"].library_dirs[0] == names["STUBS"]
        wheel = names["cmdclass"]["bdist_wheel"](
            setuptools.Distribution({"ext_modules": [*names["extensions"].values()]})
        )
        wheel.finalize_options()
        assert wheel.get_tag()[:2] == ("py3", "none") and wheel.get_tag()[2] != "any"

    def test_without_an_nvcc(self, run_setup, tmp_path):
        names = run_setup(None, CUDA_HOME=str(tmp_path), PORTABLE="1")
        assert set(names["extensions"]) == {"drsn_ops._ops_cpu"}
        assert names["CUDA_REASON"] == f"no nvcc in CUDA_HOME ({tmp_path})"

    def test_the_library_linked_in_the_place_of_pytorchs(self, run_setup, tmp_path):
        names = run_setup(CUDA_HOME=make_toolkit(tmp_path), PORTABLE="1")
        names["STUBS"] = tmp_path / "stubs"
        names["link_stub"]()
        listed = (ROOT / "tools" / "symbols-2.11.txt").read_text().split()
        has = subprocess.check_output(["nm", "-D", "--defined-only", tmp_path / "stubs/libtorch_cuda.so"])
        found = {line.split()[-1].decode() for line in has.splitlines() if b" T " in line}
        assert found == {
            name for library, name in zip(listed[::2], listed[1::2], strict=True) if "cuda" in library
        }


class TestNamespace:
    def test_it_is_that_of_the_package_or_given(self, run_setup):
        for name in ("", "second_copy"):
            names = run_setup(USE_CUDA="0", OPERATOR_NAMESPACE=name)
            flags = names["extensions"]["drsn_ops._ops_cpu"].extra_compile_args["cxx"]
            assert f"-DDRSN_NAMESPACE={name or 'drsn_ops'}" in flags
            assert names["build_info"]("1.2.3")["namespace"] == (name or "drsn_ops")

    @pytest.mark.parametrize("name", ["9", "a-b", "a::b", "a b"])
    def test_another_value(self, run_setup, name):
        with pytest.raises(
            SystemExit, match=rf"^OPERATOR_NAMESPACE may be .* identifier, and is '{name}'\.$"
        ):
            run_setup(OPERATOR_NAMESPACE=name)


@pytest.mark.parametrize("name", ["g++", "clang++"])
def test_the_compiler_is_named(run_setup, monkeypatch, name):
    if shutil.which(name) is None:
        pytest.skip(f"there is no {name}")
    monkeypatch.setenv("CXX", name)
    version = subprocess.check_output([name, "-dumpversion"], text=True).split(".")[0].strip()
    found = run_setup(USE_CUDA="0")["build_info"]("1")["compiler"]
    assert found.startswith(f"{'clang' if 'clang' in name else 'g++'} {version}.")


def test_no_file_of_a_debug_build_gives_others_what_it_compiled_for_newer_processors(run_setup, tmp_path):
    """Of a function in two files the linker keeps one, which then runs on every processor."""
    compiler, nm = (shutil.which(tool) for tool in (os.environ.get("CXX") or "c++", "nm"))
    if platform.machine() != "x86_64" or compiler is None or nm is None:
        pytest.skip("needs an x86-64 processor, a C++ compiler and nm")
    flags = run_setup(DEBUG="1", USE_CUDA="0")["extensions"]["drsn_ops._ops_cpu"].extra_compile_args["cxx"]
    assert "-O0" in flags
    sources = sorted((ROOT / "csrc" / "cpu").glob("loops*.cpp"))
    assert len(sources) == 4
    own = [flag for flag in flags if not flag.startswith("-isystem") and flag != "-g"]
    defined = []
    for source in sources:
        built = tmp_path / f"{source.stem}.o"
        include = f"-I{ROOT / 'csrc'}"
        subprocess.run(
            [compiler, *own, "-std=c++17", include, "-c", str(source), "-o", str(built)], check=True
        )
        names = subprocess.check_output([nm, "--defined-only", str(built)], text=True)
        defined.append({line.split()[-1] for line in names.splitlines() if line.split()[-2] in "WVu"})
    shared = {name for one, other in itertools.combinations(defined, 2) for name in one & other}
    assert shared <= {"DW.ref.__gxx_personality_v0"}  # an address


class TestToolkits:
    @pytest.fixture
    def elsewhere(self, monkeypatch, tmp_path):
        """The toolkit of PyPI's packages, and the one that PyTorch finds."""
        pypi = make_toolkit(tmp_path / "site-packages" / "nvidia" / "cu13")
        make_toolkit(tmp_path / "site-packages" / "nvidia" / "cublas")
        monkeypatch.syspath_prepend(tmp_path / "site-packages")
        importlib.invalidate_caches()
        return pypi, make_toolkit(tmp_path / "found by PyTorch")

    def test_order(self, run_setup, elsewhere):
        names = run_setup(USE_CUDA="0")
        pypi, found = elsewhere
        cpp_extension.CUDA_HOME = found
        places = names["toolkits"]()
        assert places[0] == pypi and found in places[1:]
        assert not any(place.endswith("cublas") for place in places)

    def test_cuda_home_is_taken_alone(self, run_setup, elsewhere, tmp_path):
        assert run_setup(USE_CUDA="0", CUDA_HOME=str(tmp_path))["toolkits"]() == []
        home = make_toolkit(tmp_path / "home")
        assert run_setup(USE_CUDA="0", CUDA_HOME=home)["toolkits"]() == [home]

    def test_the_first_that_fits_is_taken(self, run_setup, tmp_path):
        names = run_setup(USE_CUDA="0")
        old = make_toolkit(tmp_path / "old", NVCC.replace("13.0", "12.9"))
        new = make_toolkit(tmp_path / "new", NVCC.replace("13.0", "13.2"))
        names["toolkits"] = lambda: [old, new, "not asked"]
        assert names["find_cuda"]() == (new, None)
        names["toolkits"] = lambda: [old, old]
        reason = f"nvcc in {old} is of CUDA 12.9, PyTorch of CUDA 13.0"
        assert names["find_cuda"]() == (None, f"{reason}; {reason}")

    @pytest.mark.parametrize(
        "cuda, expected",
        [
            ("13.0", "no nvcc found; pip install 'cuda-toolkit[nvcc,nvvm,crt,cudart,cccl]' brings one"),
            ("12.9", "no nvcc found; PyPI has none of CUDA 12.9, NVIDIA's toolkit has"),
            (None, f"PyTorch {torch.__version__} is built without CUDA"),
        ],
    )
    def test_none(self, run_setup, cuda, expected):
        names = run_setup(cuda, USE_CUDA="0")
        names["toolkits"] = lambda: []
        assert names["find_cuda"]() == (None, expected)


class TestMisfit:
    @pytest.mark.parametrize(
        "changes, expected",
        [
            ({"nvcc": NVCC.replace("13.0", "12.8")}, "nvcc in {} is of CUDA 12.8, PyTorch of CUDA 13.0"),
            ({"nvcc": "#!/bin/sh\necho 13.0\n"}, "nvcc in {} does not say of which CUDA release it is"),
            ({"nvcc": "#!/bin/sh\nexit 7\n"}, "nvcc in {} does not run (Command .* returned .* 7.)"),
            ({"mode": 0o644}, "nvcc in {} does not run (.*Permission denied: '{}/bin/nvcc')"),
            ({"libraries": ()}, "neither libcudart_static.a nor libcudart.so in lib64 or lib of {}"),
            # -lcudart does not find it
            (
                {"libraries": ["lib/libcudart.so.13"]},
                "neither libcudart_static.a nor libcudart.so in lib64 or lib of {}",
            ),
        ],
    )
    def test_the_reason(self, run_setup, tmp_path, changes, expected):
        names = run_setup(CUDA_HOME=make_toolkit(tmp_path, **changes))
        pattern = expected.replace("{}", str(tmp_path)).replace("(", r"\(").replace(")", r"\)")
        assert names["CUDA_HOME"] is None
        pytest.raises(SystemExit, run_setup, CUDA_HOME=str(tmp_path), USE_CUDA="1").match(pattern)

    @pytest.mark.parametrize(
        "library", ["lib64/libcudart_static.a", "lib/libcudart_static.a", "lib/libcudart.so"]
    )
    def test_the_runtime_that_is_linked(self, run_setup, tmp_path, library):
        extension = run_setup(CUDA_HOME=make_toolkit(tmp_path, libraries=[library, "lib64/another"]))[
            "extensions"
        ]["drsn_ops._ops_cuda"]
        runtime = "cudart_static" if library.endswith(".a") else "cudart"
        assert (
            runtime in extension.libraries and len({"cudart_static", "cudart"} & {*extension.libraries}) == 1
        )
        assert str(tmp_path / Path(library).parent) in extension.library_dirs


def test_an_older_pytorch(run_setup, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.10.1+cpu")
    with pytest.raises(
        SystemExit, match=r"^drsn_ops needs PyTorch 2.11 or newer, and 2.10.1\+cpu is installed\.$"
    ):
        run_setup()


def test_the_oldest_pytorch_can_be_given(run_setup, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.13.0")
    for oldest, define in (("", "0x020b000000000000"), ("2.12", "0x020c000000000000")):
        names = run_setup(USE_CUDA="0", OLDEST_TORCH=oldest)
        flags = names["extensions"]["drsn_ops._ops_cpu"].extra_compile_args["cxx"]
        assert f"-DTORCH_TARGET_VERSION={define}" in flags
        assert names["build_info"]("1.2.3")["oldest_torch"] == (oldest or "2.11")
    for wrong in ("2", "2.9", "2.12.1", "new"):
        with pytest.raises(
            SystemExit, match=rf"^OLDEST_TORCH may be 2.11 or newer, such as 2.12, and is '{wrong}'"
        ):
            run_setup(OLDEST_TORCH=wrong)


def test_every_library_is_linked_with_the_build_id_of_the_schemas(run_setup, tmp_path):
    names = run_setup(CUDA_HOME=make_toolkit(tmp_path))
    expected = hashlib.sha1(b"drsn_ops" + (ROOT / "csrc" / "registration.cpp").read_bytes()).hexdigest()
    for library in ("drsn_ops._ops_cpu", "drsn_ops._ops_cuda"):
        assert f"-Wl,--build-id=0x{expected}" in names["extensions"][library].extra_link_args


def test_nothing_of_an_earlier_build_is_packed(run_setup, tmp_path, monkeypatch):
    commands = run_setup(USE_CUDA="0")["cmdclass"]
    monkeypatch.chdir(tmp_path)
    for name in (
        "drsn_ops/__init__.py",
        "lib/drsn_ops/_ops_cuda.so",
        "lib/drsn_ops/gone.py",
        "lib/other/kept.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    distribution = setuptools.Distribution(
        {"packages": ["drsn_ops"], "cmdclass": commands, "script_name": "setup.py"}
    )
    distribution.get_command_obj("build").build_lib = "lib"
    distribution.run_command("build")
    packed = {path.relative_to(tmp_path / "lib").as_posix() for path in (tmp_path / "lib").rglob("*.*")}
    assert packed == {"drsn_ops/__init__.py", "other/kept.py"}


def test_libraries_of_an_earlier_build_leave_the_tree(run_setup, tmp_path, monkeypatch):
    command_class = run_setup(USE_CUDA="0")["cmdclass"]["build_ext"]
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "drsn_ops"
    folder.mkdir()
    for name in ("_ops_cuda.so", "_C.cpython-311-x86_64-linux-gnu.so", "build_info.json"):
        (folder / name).touch()
    command = command_class(setuptools.Distribution({"ext_modules": []}))
    command.extensions, command.build_file = [], "{}"
    command.copy_extensions_to_source()
    assert [path.read_text() for path in folder.iterdir()] == ["{}"]


def test_a_build_cut_off_at_its_end_does_not_pass_for_a_whole_one(run_setup, tmp_path, monkeypatch):
    command_class = run_setup(USE_CUDA="0")["cmdclass"]["build_ext"]
    monkeypatch.chdir(tmp_path)
    stale = tmp_path / "drsn_ops" / "build_info.json"
    stale.parent.mkdir()
    stale.touch()
    command = command_class(setuptools.Distribution({"ext_modules": []}))
    command.build_lib = "lib"  # which lacks the library
    command.extensions = [setuptools.Extension("drsn_ops._ops_cpu", [])]
    with pytest.raises(Exception, match="_ops_cpu"):
        command.copy_extensions_to_source()
    assert not stale.exists()


def test_everything_is_compiled_anew_where_there_is_no_ninja(run_setup, monkeypatch):
    """setuptools would leave what was compiled with other flags."""
    command_class = run_setup(USE_CUDA="0")["cmdclass"]["build_ext"]
    command = command_class(setuptools.Distribution({"ext_modules": []}), use_ninja=False)
    command.finalize_options()
    assert command.force and not command.use_ninja


def test_the_sources_do_without_a_macro_that_pytorch_2_11_has_not():
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.is_file()]
    assert len(sources) > 20
    assert [path.name for path in sources if "STABLE_TORCH_ERROR_CODE_CHECK" in path.read_text()] == []
