#!/usr/bin/env bash
# One sarm-ray command on a Slurm allocation: a head on its first node, workers on the others, the job, all stopped again.
#
#   sbatch cluster/slurm.sh score --config jobs/score.yaml
#
# Edit: the #SBATCH lines (partition, account, nodes, GPUs, time), and SARM_RAY_ENV if sarm_ray is not in ./.venv of where
# sbatch is typed, the repository. That, dataset, --cache and --output lie on a disk that all nodes share. Nodes of one kind:
# their cores decode, their GPUs encode.
# Costs: nodes x hours of the allocation, whatever runs on them; `sarm-ray score --dry-run` on the login node says how much
# there is to do, and a run that ends early gives the nodes back at once.
# Watch: tail -f sarm-ray-JOBID.out (the job's own progress lines); the dashboard by
#   ssh -L 8265:HEAD:PORT LOGIN     # HEAD and PORT are in the file's first lines, the token in the folder named beside
# Exit code: the command's own, as in jobs/submit.sh; 3 if Ray did not start. Five minutes before the time limit, and on
# scancel --signal=TERM --batch, the job is told to stop: chunks in flight are finished, and the same sbatch line goes on.
#SBATCH --job-name=sarm-ray
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=1
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --output=sarm-ray-%j.out
set -euo pipefail
repository=${SLURM_SUBMIT_DIR:-$PWD}   # sbatch runs a copy of this script, which knows not where it came from
environment=${SARM_RAY_ENV:-$repository/.venv}
[ -d "$environment/bin" ] && PATH=$environment/bin:$PATH
python=${PYTHON:-python3}
[ $# -gt 0 ] || { echo "usage: sbatch cluster/slurm.sh COMMAND [FLAGS...]" >&2; exit 2; }
: "${SLURM_JOB_ID:?not in a Slurm allocation; sbatch cluster/slurm.sh ...}"

# the token: a file that only this user reads, on the disk that all nodes share
dir=$repository/.sarm-ray-$SLURM_JOB_ID
umask_before=$(umask); umask 077
mkdir -p "$dir"
"$python" -c 'import secrets; print(secrets.token_hex(32))' >"$dir/token"
umask "$umask_before"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$dir/token RAY_USAGE_STATS_ENABLED=0
export RAY_JOB_STOP_WAIT_TIME_S=${RAY_JOB_STOP_WAIT_TIME_S:-270}   # Slurm kills after 300
export RAY_idle_worker_killing_time_threshold_ms=60000   # a process takes seconds to start
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0   # else a node that is told to end waits half a minute, for nobody
unset RAY_AUTH_TOKEN RAY_ADDRESS

steps=() job=''
# shellcheck disable=SC2329  # called by the traps
stop_all() {
    code=$?
    trap - EXIT
    trap '' INT TERM
    for pid in "${steps[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done   # srun passes it on to its node
    for pid in "${steps[@]}"; do wait "$pid" 2>/dev/null || true; done
    case $code in
        0|1|2|130)
            rm -rf "$dir"
            # shellcheck disable=SC2016  # expanded on the node
            srun --overlap --ntasks-per-node=1 bash -c 'rm -rf "${TMPDIR:-/tmp}/ray-$SLURM_JOB_ID"' || true ;;
        *) echo "what Ray printed is in $dir" >&2 ;;
    esac
    exit "$code"
}
# shellcheck disable=SC2329
told() {   # the job's own process stops the job and waits for its end
    if [ -n "$job" ]; then kill -TERM "$job" 2>/dev/null || true; else exit 130; fi
}
trap stop_all EXIT
trap told INT TERM

mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${hosts[0]}
head_ip=$(srun --overlap --nodes=1 --ntasks=1 -w "$head" hostname --ip-address | awk '{print $1; exit}')
# several allocations may share a node: ports by the job's number
gcs=$((20000 + SLURM_JOB_ID % 5000)) dashboard=$((25000 + SLURM_JOB_ID % 5000)) client=$((30000 + SLURM_JOB_ID % 2000))

# one step per node, with what Slurm gave this job of it; the head's node works like the others, less the core of the driver
start() {
    local host=$1 less=$2; shift 2
    # shellcheck disable=SC2016  # expanded on the node
    srun --overlap --nodes=1 --ntasks=1 -w "$host" bash -c '
        less=$1; shift
        exec ray start --block --disable-usage-stats --temp-dir "${TMPDIR:-/tmp}/ray-$SLURM_JOB_ID" \
            --min-worker-port 0 --max-worker-port 0 \
            --num-cpus "$((${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE} - less))" --num-gpus "${SLURM_GPUS_ON_NODE:-0}" "$@"
    ' - "$less" "$@" >"$dir/$host.log" 2>&1 </dev/null &
    steps+=($!)
}
start "$head" 1 --head --node-ip-address "$head_ip" --port "$gcs" --ray-client-server-port "$client" \
    --dashboard-host "$head_ip" --dashboard-port "$dashboard"
address=http://$head_ip:$dashboard
for _ in $(seq 240); do
    "$python" - "$address" <<'END' && break
import sys, urllib.request
try:
    urllib.request.urlopen(sys.argv[1] + "/api/gcs_healthz", timeout=2)
except OSError:
    sys.exit(1)
END
    kill -0 "${steps[0]}" 2>/dev/null || { cat "$dir/$head.log" >&2; exit 3; }
    sleep 0.5
done
for host in "${hosts[@]:1}"; do
    start "$host" 0 --address "$head_ip:$gcs"
done

echo "cluster   ${#hosts[@]} node(s), head $head; RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$dir/token \
RAY_ADDRESS=$address" >&2
cd "$repository"
PYTHON=$python "$repository/jobs/submit.sh" --address "$address" --nodes "${#hosts[@]}" --stop "$@" </dev/null &
job=$!
code=0
while :; do   # a signal ends `wait`, not the job
    wait "$job" && code=0 || code=$?
    kill -0 "$job" 2>/dev/null || break
done
exit "$code"
