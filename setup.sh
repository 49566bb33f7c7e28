#!/usr/bin/env bash
# Makes .venv with everything that the pipeline needs, at the versions of constraints.txt.
#
#   ./setup.sh                  CPU
#   EXTRA=gpu ./setup.sh        faiss-gpu instead of faiss-cpu
#   EXTRAS=dev ./setup.sh       with what developers need
#   PYTHON=python3.12           another interpreter
#   TORCH_INDEX=URL             where to look for torch and torchvision, such as https://download.pytorch.org/whl/cpu,
#                               whose CPU builds save some gigabytes
set -euo pipefail
cd "$(dirname "$0")"
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "error: datapool needs Python 3.11 or newer; $python is $("$python" --version). Set PYTHON=python3.12, say" >&2
  exit 1
}
[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.5'

# uv does not read pip's settings; a folder of wheels that pip was told of is handed on.
args=()
links=${PIP_FIND_LINKS:-$(.venv/bin/python -m pip config get global.find-links 2>/dev/null || true)}
for link in $links; do [ -d "$link" ] && args+=(--find-links "$link"); done
[ -n "${TORCH_INDEX:-}" ] && args+=(--extra-index-url "$TORCH_INDEX" --index-strategy unsafe-best-match)

# Compiled here, once: where Python may not keep what it compiles it would do so at every start, and dvc takes twice as long.
.venv/bin/uv pip install --quiet --compile-bytecode --python .venv/bin/python ${args[@]+"${args[@]}"} --constraint constraints.txt \
  --editable ".[${EXTRA:-cpu},${EXTRAS:-test}]"
.venv/bin/python -c 'import torch; print("ready: torch", torch.__version__, "on", "a GPU" if torch.cuda.is_available() else "the CPU")'
touch .venv/ready
