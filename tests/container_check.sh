#!/usr/bin/env bash
# Run beside the composed containers: one request to each door that a user tries first.
set -euo pipefail
url=http://127.0.0.1:${PORT:-8000}

check() { # check WHAT URL PATTERN [curl arguments]
  local what=$1 address=$2 pattern=$3 answer; shift 3
  answer=$(curl -fsS -m 10 "$@" "$address")
  grep -qE "$pattern" <<<"$answer" || { echo "FAILED: $what answered: ${answer:0:300}"; exit 1; }
  echo "ok: $what"
}

if sizes=$(docker history --no-trunc=false --format '{{.Size}}	{{.CreatedBy}}' carousel:dev 2>/dev/null); then
  echo "image: $(docker image inspect --format '{{.Size}}' carousel:dev | awk '{printf "%.0f MB", $1 / 1e6}'), by layer:"
  cut -c1-90 <<<"$sizes"
fi

check "readiness" "$url/health/ready" ready
check "models" "$url/v1/models" '"ready": ?true'
json=(-H 'Content-Type: application/json' --data '{"sequences": [{"inputs": [[0.3, 0], [0.6, 1], [0.4, 1]]}], "outputs": "last"}')
check "prediction" "$url/v1/models/adding-lstm/predict" '"final_state"' "${json[@]}"
check "a new sequence" "$url/v1/models/adding-lstm/sequences" '"step": ?0' -X POST -H 'Content-Type: application/json' --data '{"sequence_id": "s"}'
check "its first step" "$url/v1/models/adding-lstm/sequences/s/steps" '"step": ?1' -H 'Content-Type: application/json' --data '{"inputs": [[0.3, 0]]}'
check "metrics" "$url/metrics" '^carousel_steps_total'

for _ in $(seq 30); do
  if curl -fsS -m 5 'http://127.0.0.1:9090/api/v1/query?query=carousel_models_ready' 2>/dev/null | grep -q '"value"'; then
    echo "ok: Prometheus reads the metrics"; exit 0
  fi
  sleep 1
done
echo "FAILED: Prometheus shows no metrics"; exit 1
