"""Make the tiny store of format version 1 that is checked in: ``python -m tests.data.make_store``.

To be run again only while version 1 is not released; it then prints the literals that ``tests/test_format.py`` expects.
"""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from unittest import mock

import daskrl

STORE = Path(__file__).parent / "store_v1"
FRAGMENTS = 6
STEPS = 4


def make() -> daskrl.Store:
    """A run of DQN on CartPole-v1: one environment, six fragments of four steps."""
    algorithm = daskrl.DQN(hidden=(4,), learning_starts=0, batch_size=4, replay_ratio=1, window=16)
    with mock.patch.object(socket, "gethostname", return_value="host"):
        run = daskrl.train(
            algorithm, "CartPole-v1", store=STORE, env_steps=STEPS * FRAGMENTS, streams=1, envs_per_stream=1,
            fragment_steps=STEPS, weights_every=3, checkpoint_every=3, device="cpu", overwrite=True, progress=False,
        ).wait()  # fmt: skip
    (STORE / ".commits" / "driver.lock").unlink()
    return run.store


def main() -> None:
    store = make()
    first = [float(value) for value in store.read(store.fragments()[0])["observation"][0, 0]]
    path = Path(__file__).parents[1] / "test_format.py"
    text = re.sub(r'^DIGEST = ".*"$', f'DIGEST = "{store.digest()}"', path.read_text(), flags=re.MULTILINE)
    text = re.sub(r"^FIRST_OBSERVATION = .*$", f"FIRST_OBSERVATION = {json.dumps(first)}", text, flags=re.MULTILINE)
    path.write_text(text)
    print(f"made {STORE}, {store.digest()}")


if __name__ == "__main__":
    main()
