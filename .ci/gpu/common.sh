# Of a, b and c: where things are, stages with limits, one archive.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
letter=$(basename "$0")
carried=$PWD/build/gpu
mkdir -p "${1:-${OUT:-build/gpu/out}}"
out=$(cd "${1:-${OUT:-build/gpu/out}}" && pwd)
logs=$(mktemp -d)
python=${PYTHON:-python3}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}:$carried/site
summary=()

# What was carried: Python packages, and the extension, for a machine that has its Python.
[ -f "$carried/carried.tar.gz" ] && tar -xzf "$carried/carried.tar.gz" -C "$carried"
for library in "$carried"/_C*.so; do
  [ -e "$library" ] && cp "$library" lddgan_kernels/
done

stage() {  # stage NAME SECONDS COMMAND...
  local name=$1 limit=$2 begin=$SECONDS code=0 verdict=ok
  shift 2
  echo "== $name (at most $limit s): $*"
  timeout --signal=INT --kill-after=15 "$limit" "$@" >"$logs/$name.log" 2>&1 || code=$?
  tail -n 25 "$logs/$name.log"
  [ "$code" -ne 0 ] && verdict="FAILED ($code)"
  [ "$code" -eq 124 ] && verdict="stopped at $limit s"
  summary+=("$(printf '%-22s %-18s %4d s' "$name" "$verdict" "$((SECONDS - begin))")")
}

left() {  # seconds until the command has run for $1
  echo $(($1 - SECONDS > 5 ? $1 - SECONDS : 5))
}

pack() {  # pack [PATH...]: the logs, and these, into one archive
  printf '%s\n' "${summary[@]}" | tee "$logs/summary.txt"
  tar -czf "$out/$letter.tar.gz" -C "$logs" . "$@"
  echo "written: $(ls -l "$out/$letter.tar.gz")"
}
