"""The command line as people type it: in a process, in this process, and on a terminal."""

from __future__ import annotations

import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import termios
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DASKRL = [sys.executable, "-m", "daskrl.cli"]


SMALL = shlex.split(
    "--streams 2 --envs-per-stream 2 --fragment-steps 8 --seed 3 --checkpoint-every 2 "
    "-s hidden=16, -s batch_size=8 -s learning_starts=32 -s replay_ratio=2.0 -s window=160"
)


def steps(count: int, workers: int = 0) -> list[str]:
    return [*SMALL, "--env-steps", str(count), "--workers", str(workers)]


def daskrl_(*typed: str, cwd: Path, code: int = 0, **given: Any) -> subprocess.CompletedProcess[str]:
    """Type ``daskrl ...`` and wait."""
    done = subprocess.run([*DASKRL, *typed], cwd=cwd, capture_output=True, text=True, check=False, **given)
    assert done.returncode == code, done.stdout + done.stderr
    return done


@dataclass
class Said:
    """What a command answered."""

    stdout: str
    stderr: str


Here = Callable[..., Said]


class Terminal:
    """A command on a terminal of its own, where Ctrl-C reaches all of its processes as it does for people."""

    def __init__(self, *typed: str, cwd: Path) -> None:
        self.text = ""
        self.pid, self.screen = pty.fork()
        if self.pid == 0:
            os.chdir(cwd)
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # whoever runs the tests may ignore it
            termios.tcsetwinsize(0, (24, 200))
            os.execvpe(DASKRL[0], [*DASKRL, *typed], {**os.environ, "TERM": "xterm"})

    def until(self, pattern: str | None) -> None:
        """Read until the pattern is on the screen; None is until the command has ended."""
        while pattern is None or not re.search(pattern, self.text):
            try:
                read = os.read(self.screen, 4096)
            except OSError:  # the other side is closed
                read = b""
            self.text += read.decode(errors="replace")
            if not read:
                assert pattern is None, self.text
                return

    def press_ctrl_c(self) -> None:
        os.write(self.screen, b"\x03")

    def exit_code(self) -> int:
        self.until(None)
        os.close(self.screen)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
