#!/bin/bash
# Checks for the system packages that a bare Debian or Ubuntu lacks, and installs those that are missing.
#   system_packages.sh [PYTHON]
set -euo pipefail

python=${1:-python3}
missing=()

fail() { echo "error: $*" >&2; exit 1; }
need() { local package=$1; shift; "$@" >/dev/null 2>&1 || missing+=("$package"); }
has_library() { /sbin/ldconfig -p | grep -F "$1"; }
has_python_header() { "$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))'; }

# Open3D's shared libraries
need libusb-1.0-0 has_library libusb-1.0.so.0
need libgl1 has_library libGL.so.1
need libegl1 has_library libEGL.so.1
need libgomp1 has_library libgomp.so.1
# the compiler for the generated messages
need gcc command -v gcc
need g++ command -v g++
need make command -v make
# Python itself
need python3 command -v "$python"
need python3-venv "$python" -c 'import ensurepip, venv'
need python3-dev has_python_header

if ((${#missing[@]})); then
  echo "== system packages missing: ${missing[*]}"
  command -v apt-get >/dev/null || fail "no apt-get here: install the equivalents of the packages above, then retry"
  sudo=()
  if ((EUID != 0)); then
    command -v sudo >/dev/null || fail "not root and no sudo; as root: apt-get install ${missing[*]}"
    sudo=(sudo)
  fi
  "${sudo[@]}" apt-get update
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"
fi

"$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' ||
  fail "$("$python" --version) is not supported: Python 3.10 to 3.13 is needed; name another with make PYTHON=..."
