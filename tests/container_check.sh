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

# One sequence through the balancer: whichever replica takes a step, the sequence stands where the last one left it.
balanced=http://127.0.0.1:${BALANCER_PORT:-8080}
id=over-replicas-$$
step_to() { # step_to N: one step, from N - 1
  local answer start=false
  [ "$1" != 1 ] || start=true
  answer=$(curl -fsS -m 10 -H 'Content-Type: application/json' "$balanced/v1/models/adding-lstm/sequences/$id/steps" \
    --data "{\"inputs\": [[0.3, 0]], \"step\": $(($1 - 1)), \"start\": $start}")
  grep -qE "\"step\": ?$1,.*\"replayed\": ?false" <<<"$answer" || { echo "FAILED: step $1: ${answer:0:300}"; exit 1; }
}
for n in $(seq 40); do step_to "$n"; done
echo "ok: 40 steps of one sequence through the balancer"

answer=$(curl -fsS -m 10 "${json[@]}" "$balanced/v1/models/adding-lstm/predict")
token=$(grep -oE '"state_token": ?"[^"]+"' <<<"$answer")
for _ in $(seq 10); do
  curl -fsS -m 10 -o /dev/null "$balanced/v1/models/adding-lstm/predict" -H 'Content-Type: application/json' \
    --data "{\"sequences\": [{\"inputs\": [[0.3, 0]], $token}]}"
done
echo "ok: a state token of one replica is taken by each"

seen() { # seen WHAT QUERY PATTERN: wait until Prometheus answers so
  for _ in $(seq 30); do
    if curl -fsS -m 5 -G http://127.0.0.1:9090/api/v1/query --data-urlencode "query=$2" 2>/dev/null | grep -qE "$3"; then
      echo "ok: $1"; return 0
    fi
    sleep 1
  done
  echo "FAILED: $1"; exit 1
}
seen "Prometheus reads the metrics" carousel_models_ready '"value"'
seen "more than one replica took steps" \
  'count(count by (instance) (carousel_http_requests_total{job="replicas",route=~".*/steps",status="200"} > 0))' '"value":\[[^]]*"([2-9]|[0-9]{2,})"\]'

if replica=$(docker ps -q --filter label=com.docker.compose.service=replica 2>/dev/null | head -n 1) && [ -n "$replica" ]; then
  docker kill "$replica" >/dev/null
  for n in $(seq 41 60); do step_to "$n"; done
  echo "ok: the sequence goes on though a replica was killed"
fi
