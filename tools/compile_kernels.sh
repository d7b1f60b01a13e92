#!/usr/bin/env bash
# Compiles csrc/cuda for every architecture we ship and fails on a register spill or local memory, then links
# build/kernels/_ops_cuda.so as setup.py does and checks its symbols. Needs nvcc; no GPU, and a PyTorch of any kind:
# stubs stand in for the libraries linked. Without an nvcc it does nothing, or fails if REQUIRE_NVCC is set.
set -euo pipefail
cd "$(dirname "$0")/.."
shopt -s nullglob

nvcc=
from_pypi=(.venv/lib/python3*/site-packages/nvidia/cu*/bin/nvcc)
for candidate in "${CUDA_HOME:+$CUDA_HOME/bin/nvcc}" "${from_pypi[@]}" /usr/local/cuda/bin/nvcc "$(command -v nvcc || true)"; do
    if [[ -x $candidate ]]; then
        nvcc=$candidate
        break
    fi
done
if [[ -z $nvcc ]]; then
    echo "No nvcc in CUDA_HOME, .venv, /usr/local/cuda or PATH: the CUDA kernels are not compiled." >&2
    exit "${REQUIRE_NVCC:-0}"
fi
"$nvcc" --version | grep release
kernels=(csrc/cuda/*.cu)
if [[ ${#kernels[@]} == 0 ]]; then
    echo "No .cu file in csrc/cuda." >&2
    exit 1
fi

# the flags of setup.py and of PyTorch's BuildExtension, with the oldest C++ that either passes
flags=(-O2 -std=c++17 -Icsrc -Xcompiler -fPIC,-fvisibility=hidden,-Wall)
flags+=(-D__CUDA_NO_HALF_OPERATORS__ -D__CUDA_NO_HALF_CONVERSIONS__ -D__CUDA_NO_BFLOAT16_CONVERSIONS__)
flags+=(-D__CUDA_NO_HALF2_OPERATORS__ --expt-relaxed-constexpr --compress-mode=size)
flags+=(-Xptxas -v,--warn-on-spills,--warn-on-local-memory-usage,--warning-as-error)
known=$("$nvcc" --list-gpu-arch)
newest=
for arch in 75 80 90 100 120; do
    if [[ $known == *compute_$arch* ]]; then
        flags+=("-gencode=arch=compute_$arch,code=sm_$arch")
        newest=$arch
    else
        echo "This nvcc does not know sm_$arch: left out."
    fi
done
flags+=("-gencode=arch=compute_$newest,code=compute_$newest") # PTX, for the GPUs to come

out=build/kernels
started=$SECONDS
rm -rf "$out"
mkdir -p "$out"

compile() {
    local source=$1 out=$2 nvcc=$3
    shift 3
    local base
    base=$out/$(basename "$source" .cu)
    if ! "$nvcc" -c "$@" "$source" -o "$base.cu.o" > "$base.log" 2>&1; then
        grep -v -e '^ptxas info' -e 'bytes stack frame' "$base.log" >&2
        echo "FAILED $source" >&2
        return 1
    fi
    awk -v name="$source" '/Used [0-9]+ registers/ { n++; for (i = 1; i < NF; i++) if ($i == "Used" && $(i + 1) > most) most = $(i + 1) }
        END { printf "ok %s: %d kernels over all architectures, at most %d registers, no local memory\n", name, n, most }' "$base.log"
}
export -f compile
printf '%s\0' "${kernels[@]}" |
    xargs -0 -P "${MAX_JOBS:-$(getconf _NPROCESSORS_ONLN)}" -I{} bash -c 'compile "$@"' _ {} "$out" "$nvcc" "${flags[@]}"

seconds=$((SECONDS - started))
count=$(cat "$out"/*.log | grep -c 'Used [0-9]* registers')

home=$(dirname "$(dirname "$nvcc")")
python=$([[ -x .venv/bin/python ]] && echo .venv/bin/python || echo python3)
torch=$("$python" -c 'from importlib.util import find_spec; s = find_spec("torch"); print(s.submodule_search_locations[0] if s else "")')
lib=$home/lib64
[[ -d $lib ]] || lib=$home/lib
if [[ -z $torch || ! -f $lib/libcudart_static.a ]]; then
    echo "Without PyTorch's headers and $lib/libcudart_static.a, _ops_cuda.so is not linked." >&2
    exit "${REQUIRE_NVCC:-0}"
fi
cxx=${CXX:-c++}
for source in csrc/cuda/*.cpp; do
    # unquoted: CXX may hold a launcher or flags
    $cxx -c -O3 -std=c++17 -fPIC -fvisibility=hidden -Wall -Wextra -DUSE_CUDA -Icsrc -isystem "$torch/include" \
        -isystem "$torch/include/torch/csrc/api/include" -isystem "$home/include" "$source" -o "$out/$(basename "$source").o"
done
for name in torch_cpu torch_cuda; do
    $cxx -shared -x c++ /dev/null -Wl,-soname,lib$name.so -o "$out/lib$name.so"
done
$cxx -shared "$out"/*.o -o "$out/_ops_cuda.so" -Wl,--no-as-needed -L"$out" -ltorch_cuda -ltorch_cpu -Wl,--as-needed \
    -L"$lib" -s -Wl,--exclude-libs,ALL -lcudart_static -lrt -ldl -lpthread \
    -Wl,--build-id=0x"$(sha1sum < csrc/registration.cpp | cut -d ' ' -f 1)"
"$python" tools/symbols.py "$out/_ops_cuda.so"
echo "linked $out/_ops_cuda.so; PyTorch 2.11 has every symbol that it uses"
echo "$count kernels over all architectures, $(stat -c %s "$out/_ops_cuda.so") bytes, $seconds s of nvcc"
