#!/usr/bin/env bash
# Compiles the CPU library for arm64 as setup.py does, checks its symbols, and runs its loops under qemu: they have to
# give the same bits as x86-64's default level. Without a cross-compiler or qemu-user it does nothing, or fails if
# REQUIRE_ARM64 is set.
set -euo pipefail
cd "$(dirname "$0")/.."

cross=aarch64-linux-gnu-g++
emulator=qemu-aarch64
for program in $cross $emulator; do
    if ! command -v $program > /dev/null; then
        echo "No $program in PATH (Debian's g++-aarch64-linux-gnu and qemu-user): nothing is compiled for arm64." >&2
        exit "${REQUIRE_ARM64:-0}"
    fi
done

python=.venv/bin/python
out=build/arm64
mkdir -p $out
# stands in for PyTorch's library, which here is of another processor
$cross -shared -x c++ /dev/null -Wl,-soname,libtorch_cpu.so -o $out/libtorch_cpu.so
PORTABLE=1 USE_CUDA=0 CXX=$cross LDFLAGS="-L$out -Wl,--no-as-needed" \
    $python setup.py -q build_ext --build-lib $out --build-temp $out/objects > $out/log || { cat $out/log >&2; exit 1; }
$python tools/symbols.py $out/drsn_ops/_ops_cpu.so

host=build/temp.$($python -c 'import sys, sysconfig; print(sysconfig.get_platform(), sys.implementation.cache_tag, sep="-")')
$cross -static -std=c++17 -O1 -Wall -Icsrc -Icsrc/cpu tests/arm64/loops.cpp $out/objects/csrc/cpu/loops*.o -o $out/loops
${CXX:-c++} -std=c++17 -O1 -Wall -Icsrc -Icsrc/cpu tests/arm64/loops.cpp "$host"/csrc/cpu/loops*.o -o $out/host_loops
DRSN_OPS_SIMD=default $out/host_loops > $out/expected
$emulator $out/loops > $out/found
if ! diff $out/expected $out/found > $out/difference; then
    grep '^>' $out/difference | head -20
    echo "$(grep -c '^>' $out/difference) of $(wc -l < $out/expected) results are not x86-64's." >&2
    exit 1
fi
echo "$out/drsn_ops/_ops_cpu.so: PyTorch 2.11 has every symbol that it uses; $(wc -l < $out/found) results as on x86-64"
