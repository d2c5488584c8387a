#!/usr/bin/env bash
# The whole test suite in a separate environment. Needs Python 3.11, 3.12 or 3.13 and bash, nothing else.
# Arguments go to pytest: ./run_tests.sh tests/eval -k slots      ./run_tests.sh --slow
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

source scripts/environment.sh
make_environment requirements-test.txt "$MINILM"

export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false  # one thread each: the workers below already fill the cores
status=0
"$VENV/bin/python" -m ruff check . || status=1
"$VENV/bin/python" -m ruff format --check . || status=1
"$VENV/bin/lint-imports" --no-cache --no-logo || status=1
"$VENV/bin/python" -m mypy || status=1
"$VENV/bin/python" -m pytest -n "${WORKERS:-2}" "$@" || status=$?
exit "$status"
