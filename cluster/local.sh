#!/usr/bin/env bash
# A Ray cluster on this machine for one command: a head without work, N workers, the job, and everything stopped again.
#
#   cluster/local.sh score --config jobs/score.yaml
#   cluster/local.sh --workers 2 --cpus 4 --gpus 1 train --config jobs/train.yaml
#
# What for: to rehearse on a laptop what will run on a cluster (the job server, the token, processes that see other folders).
# It is slower than `sarm-ray score` itself, which starts a Ray of its own without all that.
# Edit: nothing. --workers 1, and --cpus and --gpus of each (default: this machine's cores and GPUs, divided among them).
# Costs: 0.8 GB of memory for the head, 0.3 for each worker, 20 to 40 seconds to start and stop.
# Watch: the dashboard's address is printed; `ray job logs --follow JOB` with the RAY_* variables that are printed besides.
# Exit code: the command's own, as in jobs/submit.sh; 3 if Ray did not start. Ctrl-C and SIGTERM stop the job (finished
# chunks are kept), then the cluster. It ends the processes that it started, by their ids; other clusters here go on.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[ -x "$here/../.venv/bin/ray" ] && PATH=$(cd "$here/../.venv/bin" && pwd):$PATH
python=${PYTHON:-python3}

workers=1 cpus='' gpus=''
while [ $# -gt 0 ]; do
    case $1 in
        --workers) workers=$2; shift 2 ;;
        --cpus) cpus=$2; shift 2 ;;
        --gpus) gpus=$2; shift 2 ;;
        *) break ;;
    esac
done
[ $# -gt 0 ] || { sed -n '2,/^set/p' "${BASH_SOURCE[0]}" | sed '$d; s/^# \{0,1\}//'; exit 2; }
: "${cpus:=$(($(nproc) / workers > 0 ? $(nproc) / workers : 1))}"
: "${gpus:=$(($(nvidia-smi --list-gpus 2>/dev/null | wc -l) / workers))}"

dir=$(mktemp -d /tmp/sarm_ray.XXXXXX)   # short: Ray makes sockets in it, whose paths may have 107 characters
umask_before=$(umask); umask 077
"$python" -c 'import secrets; print(secrets.token_hex(32))' >"$dir/token"
umask "$umask_before"                   # what the job writes is for others to read
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$dir/token RAY_USAGE_STATS_ENABLED=0
export RAY_JOB_STOP_WAIT_TIME_S=${RAY_JOB_STOP_WAIT_TIME_S:-300}   # else 3 seconds, which finish no chunk
export RAY_idle_worker_killing_time_threshold_ms=60000   # a process takes seconds to start
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0   # else a node that is told to end waits half a minute, for nobody
unset RAY_AUTH_TOKEN RAY_ADDRESS

nodes=() job=''
# shellcheck disable=SC2329  # called by the traps
stop_all() {
    code=$?
    trap - EXIT
    trap '' INT TERM
    for pid in "${nodes[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
    for pid in "${nodes[@]}"; do wait "$pid" 2>/dev/null || true; done
    case $code in
        0|1|2|130) rm -rf "$dir" ;;   # the command said itself what there is to say
        *) echo "Ray's logs are in $dir" >&2 ;;
    esac
    exit "$code"
}
# shellcheck disable=SC2329
told() {   # the job's own process stops the job and waits for its end
    if [ -n "$job" ]; then kill -TERM "$job" 2>/dev/null || true; else exit 130; fi
}
trap stop_all EXIT
trap told INT TERM

# free ones, all different: several raylets share this machine, and maybe other clusters
read -r -a ports < <("$python" -c '
import socket, sys
held = [socket.create_server(("", 0)) for _ in range(int(sys.argv[1]))]
print(*[one.getsockname()[1] for one in held])' $((3 + 1 + workers)))
gcs=${ports[0]} dashboard=${ports[1]} client=${ports[2]}

# In a session of its own, so that Ctrl-C reaches this script alone, which stops things in order. With a folder of its own:
# of two raylets that share one, the second fetches a job's working directory anew and takes it away under the first one's.
start() {
    local name=$1; shift
    setsid ray start --block --temp-dir "$dir/$name" --disable-usage-stats \
        --object-store-memory "${STORE_BYTES:-1000000000}" --min-worker-port 0 --max-worker-port 0 \
        "$@" >"$dir/$name.log" 2>&1 </dev/null &
    nodes+=($!)
}
start h --head --port "$gcs" --num-cpus 0 --num-gpus 0 --ray-client-server-port "$client" \
    --dashboard-host 127.0.0.1 --dashboard-port "$dashboard" --dashboard-agent-listen-port "${ports[3]}"

address=http://127.0.0.1:$dashboard
for _ in $(seq 240); do
    "$python" - "$address" <<'END' && break
import sys, urllib.request
try:
    urllib.request.urlopen(sys.argv[1] + "/api/gcs_healthz", timeout=2)
except OSError:
    sys.exit(1)
END
    kill -0 "${nodes[0]}" 2>/dev/null || { cat "$dir/h.log" >&2; exit 3; }
    sleep 0.5
done
for ((i = 0; i < workers; i++)); do
    start "w$i" --address "127.0.0.1:$gcs" --num-cpus "$cpus" --num-gpus "$gpus" \
        --dashboard-agent-listen-port "${ports[4 + i]}"
done

echo "cluster   $workers worker(s) of $cpus CPU(s) and $gpus GPU(s); RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$dir/token \
RAY_ADDRESS=$address" >&2
PYTHON=$python setsid "$here/../jobs/submit.sh" --address "$address" --nodes $((workers + 1)) --stop "$@" </dev/null &
job=$!
code=0
while :; do   # a signal ends `wait`, not the job
    wait "$job" && code=0 || code=$?
    kill -0 "$job" 2>/dev/null || break
done
exit "$code"
