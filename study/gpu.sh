#!/usr/bin/env bash
# All that the study does on a GPU, in one command. A second call only repeats what failed.
#
#   study/gpu.sh PARTS WORK OUT
#
# PARTS holds the weights in parts, see study/parts.sh: SmolLM2*.gguf, gemma-3*.gguf or both. WORK keeps models. OUT
# gets log.txt, done.txt (the stages that are done; a call with that OUT leaves them out) and a file for each cell.
#
# About 10 minutes on an H100 with 16 cores. Reckoned, not measured. With one seed each, training takes 3.4e16 FLOP: 3
# minutes at 200 TFLOP/s, and as long again for what is read and written between the products. Scores take 5e15 in
# float32, 2 minutes. A step of SmolLM2 waits 40 ms for its kernels to be launched, so the two studies run at once:
# SmolLM2 alone would take 6 minutes, both 7 or 8. Seconds in the cell files are those of two at once. Speeds are
# measured after them, a minute for each model; second seeds come last. What LIMIT leaves no time for is left to the
# next call; the cell files hold the first seeds until then.
set -uo pipefail
[ $# = 3 ] || { sed -n '2,7s/^# \?//p' "$0" >&2; exit 2; }
parts=$(realpath -m "$1") work=$(realpath -m "$2") out=$(realpath -m "$3")
cd "$(dirname "$0")/.."
: "${PYTHON:=python3}" "${LIMIT:=570}" "${RECIPES:=study/recipes}" "${CORPUS:=sample_data/natural.jsonl.zst}"
: "${SAMPLE_DATA:=sample_data}" "${DEVICE:=cuda}" "${DEVICE_OPTIONS:=}"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
mkdir -p "$work" "$out"
touch "$out/done.txt"

# stage NAME SECONDS COMMAND...: run it unless it is done, for so long at most, and keep what it prints
stage() {
  local name=$1 seconds=$2 left=$((LIMIT - SECONDS)) begun=$SECONDS code=0
  grep -qx "$name" "$out/done.txt" && return
  [ "$seconds" -lt "$left" ] || seconds=$left
  [ "$seconds" -gt 0 ] || { echo "$name: no time is left" | tee -a "$out/log.txt"; return 1; }
  timeout --kill-after 10 "$seconds" "${@:3}" > "$work/$name.log" 2>&1 || code=$?
  # One write each: two stages may end at once.
  { printf '== %s: exit code %d after %d s\n' "$name" "$code" $((SECONDS - begun)); tail -n 60 "$work/$name.log"; } |
    tee -a "$out/log.txt"
  [ "$code" = 0 ] && echo "$name" >> "$out/done.txt"
  return "$code"
}

# unpack FILE FOLDER BASE: what the study asks to find in its folder
unpack() {
  [ -e "$2/tokenizer" ] && return
  "$PYTHON" benchmarks/unpack.py "$1" "$2/bases/$3" &&
    mkdir -p "$2/.tokenizer" && cp "$2/bases/$3"/tokenizer* "$2/.tokenizer" && mv "$2/.tokenizer" "$2/tokenizer"
}

{
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || echo "no GPU is seen"
  echo "What the models were pretrained on is not known: they may have seen pages of the corpus."
} 2> /dev/null | tee -a "$out/log.txt"
# Where a part of one file is missing, the other file may be whole.
is_whole=true
study/parts.sh join "$parts" "$work" 2>&1 | tee -a "$out/log.txt" || is_whole=false
declare -A files=([smollm2]="SmolLM2*.gguf llama-576x30" [gemma3]="gemma-3*.gguf gemma3-640x18")
models=()
for name in smollm2 gemma3; do
  read -r pattern base <<< "${files[$name]}"
  file=$(compgen -G "$work/$pattern" | head -n 1)
  [ -n "$file" ] || { echo "$name: no weights" | tee -a "$out/log.txt"; continue; }
  models+=("$name")
  unpack "$file" "$work/$name" "$base" > "$work/unpack-$name.log" 2>&1 ||
    { echo "$name: not unpacked"; tail -n 5 "$work/unpack-$name.log"; } | tee -a "$out/log.txt" &
done

# studies NAME SECONDS OPTIONS...: those of all models at once
studies() {
  for name in ${models[@]+"${models[@]}"}; do
    stage "$1-$name" "$2" "$PYTHON" -m study "$RECIPES/gpu-$name.toml" --sample-data "$SAMPLE_DATA" \
      --work "$work/$name" --cells "$out" --device "$DEVICE" --dtype bfloat16 "${@:3}" &
  done
  wait
}

# Versions there are not those of the lock: a warning, or a file that wants a package, stops no other test.
stage tests 90 "$PYTHON" -m pytest -q -m gpu -W default --continue-on-collection-errors -p no:cacheprovider tests/engines
wait
stage softmax 45 "$PYTHON" -m benchmarks.softmax --rounds 2
studies study 470 --no-later
for name in ${models[@]+"${models[@]}"}; do
  read -r _ base <<< "${files[$name]}"
  stage "speed-$name" 90 "$PYTHON" -m benchmarks.device "$work/$name/bases/$base" --corpus "$CORPUS" $DEVICE_OPTIONS
done
studies later "$LIMIT"
# Stages that this call could have made: without weights there are none of that model.
n_stages=$((2 + 3 * ${#models[@]}))
echo "$SECONDS s in all; done: $(paste -sd ' ' "$out/done.txt")" | tee -a "$out/log.txt"
$is_whole && [ ${#models[@]} -gt 0 ] && [ "$(wc -l < "$out/done.txt")" -ge "$n_stages" ]
