#!/bin/sh
# Names what is missing in one sentence, before the long set-up fails halfway with a less clear message.
python=$1
cxx=${CXX:-c++}

stop() {
    echo "$1" >&2
    exit 1
}

command -v "$python" > /dev/null ||
    stop "Python 3.10 or newer is needed, and there is no '$python': install it (Debian, Ubuntu: python3 python3-venv python3-dev) or name another one with make PYTHON=..."
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    stop "Python 3.10 or newer is needed, and '$python' is $("$python" -V 2>&1): install a newer one or name one with make PYTHON=..."
"$python" -c 'import ensurepip, venv' 2> /dev/null ||
    stop "'$python' cannot make virtual environments: install its venv module (Debian, Ubuntu: python3-venv)."
# unquoted: CXX may hold a launcher or flags
echo 'int main() {}' | $cxx -x c++ -c -o /dev/null - 2> /dev/null ||
    stop "A C++ compiler is needed, and '$cxx' does not work: install one (Debian, Ubuntu: g++; Fedora: gcc-c++) or name one with CXX=..."
"$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
    stop "The C headers of '$python' are needed (Python.h): install them (Debian, Ubuntu: python3-dev; Fedora: python3-devel)."
