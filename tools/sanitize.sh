#!/usr/bin/env bash
# Runs the operators' tests under ASan and UBSan, on the CPU kernels, then on the CUDA kernels in the emulator. The first
# error ends the process. Compiles into build/sanitized; the libraries in drsn_ops/ stay as they are.
set -euo pipefail
cd "$(dirname "$0")/.."

cxx=${CXX:-g++}
python=$PWD/.venv/bin/python
out=$PWD/build/sanitized
flags="-fsanitize=address,undefined -fno-sanitize-recover=all"

CXX=$cxx DEBUG=1 USE_CUDA=0 CFLAGS=$flags CXXFLAGS=$flags LDFLAGS=$flags \
    "$python" setup.py -q build --build-lib "$out/package" build_ext --build-temp "$out/objects"
make -C tests/emulator PY="$python" OUT="$out/emulator" CXX="$cxx $flags" WATCH= "$out/emulator/_ops_cuda.so"

# Python has to load the sanitizers first, as it is not compiled with them. It leaks at exit, so leaks are not searched.
preload=
for library in libasan.so libubsan.so; do
    preload+=" $($cxx -print-file-name=$library)"
done
run() {
    LD_PRELOAD=$preload ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH=$out/package \
        .venv/bin/pytest -p no:cacheprovider "$@"
}
run tests/test_{soft_threshold,shrink,gated_shrink,batch_norm_shrink,batch_norm_relu,batch_norm_relu_conv,residual_unit,kernels,overlap,operators}.py
DRSN_OPS_EMULATOR=sanitized/emulator run tests/test_kernels.py --device emulated -k "not 100000 and not 1000003"
