#!/usr/bin/env bash
# Files that are too large to travel at once:
#
#   study/parts.sh split FILE FOLDER [MIB]   FILE in parts of at most MIB (60), with a list of sha256
#   study/parts.sh join FOLDER OUT           puts every file together again whose list is in FOLDER
set -euo pipefail

split_file() {
  local file=$1 folder=$2 name
  name=$(basename "$file")
  mkdir -p "$folder"
  split --bytes "${3:-60}M" --numeric-suffixes "$file" "$folder/$name.part"
  (cd "$folder" && sha256sum "$name".part* > "$name.parts.sha256")
  sha256sum < "$file" | sed "s/-$/$name/" > "$folder/$name.sha256"
}

join_files() {
  local folder=$1 out=$2 list name code=0
  mkdir -p "$out"
  for list in "$folder"/*.parts.sha256; do
    [ -e "$list" ] || { echo "$folder: no list of parts (*.parts.sha256)" >&2; exit 1; }
    name=$(basename "$list" .parts.sha256)
    [ -e "$out/$name" ] && continue
    (cd "$folder" && sha256sum --check --quiet "$name.parts.sha256") || {
      echo "$name: a part is missing or corrupt, see above; copy it again" >&2
      code=1
      continue
    }
    cut -c 67- "$list" | (cd "$folder" && xargs -d '\n' cat) > "$out/.$name"
    [ "$(sha256sum < "$out/.$name" | cut -c -64)" = "$(cut -c -64 "$folder/$name.sha256")" ] || {
      echo "$name: not the file that was split, though its parts are; split it again" >&2
      code=1
      continue
    }
    mv "$out/.$name" "$out/$name"
  done
  return "$code"
}

case "${1:-} $#" in
  "split 3" | "split 4") split_file "${@:2}" ;;
  "join 3") join_files "$2" "$3" ;;
  *) sed -n '2,5s/^# \?//p' "$0" >&2; exit 2 ;;
esac
