#!/usr/bin/env bash
# Compiles csrc/cuda for every architecture we ship, as a portable build does, and fails on a register spill, local
# memory, or a symbol that PyTorch 2.11 has not. Needs nvcc; no GPU, and a PyTorch of any kind. Without an nvcc it
# compiles no kernel, or fails if REQUIRE_NVCC is set.
set -euo pipefail
cd "$(dirname "$0")/.."

python=.venv/bin/python
out=build/kernels
log=$out/nvcc.log
rm -rf "$out" build/temp.*/csrc/cuda
mkdir -p "$out"
started=$SECONDS
PORTABLE=1 USE_CUDA=${REQUIRE_NVCC:+1} \
    NVCC_APPEND_FLAGS="-Xptxas -v,--warn-on-spills,--warn-on-local-memory-usage,--warning-as-error" \
    "$python" setup.py build_ext --build-lib "$out" > "$log" 2>&1 ||
    { grep -v -e 'ptxas info' -e 'bytes stack frame' "$log" >&2; exit 1; }
seconds=$((SECONDS - started))
grep -m 2 -e 'CPU ONLY' -e '^  CUDA' "$log"
library=$out/drsn_ops/_ops_cuda.so
[[ -f $library ]] || exit 0

"$python" tools/symbols.py "$library"
awk -v bytes="$(stat -c %s "$library")" -v seconds="$seconds" '
    /Used [0-9]+ registers/ { n++; for (i = 1; i < NF; i++) if ($i == "Used" && $(i + 1) > most) most = $(i + 1) }
    END {
        if (!n) { print "nvcc named no kernel"; exit 1 }
        printf "%d kernels over all architectures, at most %d registers, no local memory\n", n, most
        printf "_ops_cuda.so: PyTorch 2.11 has every symbol that it uses; %d bytes, %d s\n", bytes, seconds
    }' "$log"
