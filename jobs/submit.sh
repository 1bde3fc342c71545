#!/usr/bin/env bash
# A sarm-ray command as a job of a Ray cluster; its log comes here, and its exit code is this script's:
#
#   export RAY_ADDRESS=http://127.0.0.1:8265        # the head's dashboard; mostly a forwarded port
#   export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=...   # the cluster's token; or RAY_AUTH_TOKEN_PATH, a file
#   jobs/submit.sh score --config jobs/score.yaml
#   jobs/submit.sh [--address URL] [--nodes N] [--working-dir DIR] [--runtime-env FILE] [--stop] COMMAND [FLAGS...]
#
# Exit codes: 0 done, 1 done with failures listed, 2 bad input (found here, too), 70 a bug, 130 interrupted or stopped, 137
# killed, 75 the job was lost without a code of its own. (`ray job submit` itself exits with 1 for all but the first.)
# After 130, 137 and 75 the same line again goes on.
#
# Needs sarm_ray installed where it is typed; PYTHON says which Python has it. Ctrl-C leaves the job running, unless --stop.
# Watch: the dashboard at RAY_ADDRESS, `ray job logs --follow JOB`, `ray job list`; stop it with `ray job stop JOB`.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-$here/../.venv/bin/python}
[ -x "$(command -v "$python")" ] || python=python3
exec "$python" -m sarm_ray.cli.submit --runtime-env "$here/runtime_env.yaml" "$@"
