#!/usr/bin/env bash
# daskrl on other Pythons, with the newest packages that its requirements allow: by hand, in a clone that has a .venv.
#
#   tests/newest.sh python3.13 python3.12
#
# For each of the Pythons: a fresh environment without constraints.txt, the quick tests, and whether the digest of one
# short run is that of the .venv's Python. It ends with 1 where a test fails or a digest differs.
#
#   EXTRAS="analysis,minatar"       the extras to install (default: test, all that the tests use)
#   REQUIREMENTS="torch==2.13.0+cpu"   what else pip is told: unpinned, torch comes with some 3 GB of CUDA libraries.
#                                   Its CPU wheels are in an index of their own, see pytorch.org (PIP_EXTRA_INDEX_URL)
#   ENVIRONMENTS=DIR                where they are made (default: a directory that is removed in the end)
set -uo pipefail
[ $# -gt 0 ] || { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; exit 2; }
cd "$(dirname "$0")/.."
reference=$PWD/.venv/bin/python
[ -x "$reference" ] || reference=${REFERENCE:?no .venv/bin/python here: REFERENCE=the Python to compare with}
made=${ENVIRONMENTS:-$(mktemp -d)}
[ -n "${ENVIRONMENTS:-}" ] || trap 'rm -rf "$made"' EXIT
export OMP_NUM_THREADS=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

# Without clusters and real environments of the extras: a few minutes.
quick="tests/test_api.py tests/test_described.py tests/test_commits.py tests/test_schedule.py tests/test_spaces.py
    tests/test_planes.py tests/test_networks.py tests/test_losses.py tests/test_store.py tests/test_window.py
    tests/test_samplers.py tests/test_replay.py tests/test_format.py tests/test_envs.py tests/test_actor_critic.py"

digest() { # of one short run, with a Python
    "$1" - << 'END'
import tempfile

import daskrl

algorithm = daskrl.DQN(hidden=(32,), learning_starts=128, batch_size=16, replay_ratio=1.0, window=640, n_step=3)
given = {"streams": 4, "envs_per_stream": 2, "fragment_steps": 16, "seed": 7, "progress": False}
with tempfile.TemporaryDirectory() as made:
    print(daskrl.train(algorithm, "CartPole-v1", store=f"{made}/run", env_steps=2048, **given).wait().store.digest())
END
}

expected=$(digest "$reference") || exit 1
echo "digest $("$reference" -V): $expected"
failed=0
for python in "$@"; do
    env=$made/$(basename "$python")
    # The reference's pip installs, as some Pythons come without one.
    "$python" -m venv --clear --without-pip "$env" &&
        "$reference" -m pip --python "$env/bin/python" install -q pytest pytest-xdist hypothesis nbclient \
            ${REQUIREMENTS:-} -e ".[${EXTRAS:-test}]" || { echo "$python: cannot be installed"; failed=1; continue; }
    echo "== $("$env/bin/python" -V)"
    "$reference" -m pip --python "$env/bin/python" list --format=freeze 2> /dev/null |
        grep -E '^(torch|numpy|zarr|gymnasium|dask|distributed|xarray|google-crc32c|rich|cyclopts)=='
    # shellcheck disable=SC2086
    "$env/bin/python" -m pytest -q $quick > "$made/tests" 2>&1 || { echo "$python: tests failed"; failed=1; }
    tail -12 "$made/tests"
    if got=$(digest "$env/bin/python") && [ "$got" = "$expected" ]; then
        echo "$python: digest as expected"
    else
        echo "$python: DIGEST DIFFERS: ${got:-none}"
        failed=1
    fi
done
exit $failed
