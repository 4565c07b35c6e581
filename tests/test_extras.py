"""What an extra installs and is not there: messages name the extra, before anything is made."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import daskrl
from daskrl import clusters, errors, sinks
from daskrl.analysis.curve import save_learning_curve
from tests.promise import start

Without = Callable[..., None]


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Without:
    """Have some packages be missing, and others, which may have them already, be imported again."""

    def block(*missing: str, again: tuple[str, ...] = ()) -> None:
        for name in [*sys.modules]:
            if any(f"{name}.".startswith(f"{package}.") for package in (*missing, *again)):
                monkeypatch.delitem(sys.modules, name)
                parent, _, child = name.rpartition(".")
                if parent in sys.modules:
                    monkeypatch.delattr(sys.modules[parent], child, raising=False)
        for package in missing:
            monkeypatch.setitem(sys.modules, package, None)

    return block


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = start(tmp_path_factory.mktemp("extras") / "run").store.root
    return root


@pytest.mark.parametrize(
    ("missing", "again", "extra", "call"),
    [
        ("matplotlib", (), "plot", daskrl.plot_learning_curve),
        ("matplotlib", (), "plot", lambda stored: save_learning_curve(stored, "never.png")),
        ("xarray", (), "analysis", lambda stored: daskrl.Store.open(stored).to_xarray()),
        ("bokeh", (), "dashboard", lambda _: clusters.local(1, dashboard=True)),
        ("dask_jobqueue", (), "jobqueue", lambda _: clusters.slurm()),
        ("cryptography", (), "jobqueue", lambda _: clusters.pbs()),
        ("yaml", (), "jobqueue", lambda _: clusters.from_file("site.yaml")),
        ("dask_mpi", (), "mpi", lambda _: clusters.mpi().__enter__()),
        ("mpi4py", (), "mpi", lambda _: clusters.mpi().__enter__()),
        ("cryptography", (), "mpi", lambda _: clusters.mpi().__enter__()),
        ("tensorboard", ("torch.utils.tensorboard",), "tensorboard", lambda _: sinks.tensorboard([], "never")),
        ("mlflow", (), "mlflow", lambda _: sinks.mlflow([])),
        ("prometheus_client", (), "prometheus", lambda _: sinks.prometheus([])),
    ],
)
def test_a_missing_package_is_a_message_that_names_the_package_and_the_extra_that_installs_it(
    stored: Path, without: Without, missing: str, again: tuple[str, ...], extra: str, call: Callable[[Path], Any]
) -> None:
    without(missing, again=again)
    with pytest.raises(errors.ConfigError) as raised:
        call(stored)
    assert missing in str(raised.value)
    assert f"Type: pip install 'daskrl[{extra}]'" in str(raised.value)


@pytest.mark.parametrize(
    ("missing", "again", "extra", "env"),
    [
        ("ale_py", (), "atari", "ALE/Pong-v5"),
        ("ale_py", (), "atari", "ale_py:ALE/Pong-v5"),
        ("cv2", ("gymnasium.wrappers.atari_preprocessing",), "atari", "ALE/Pong-v5"),
        ("minatar", (), "minatar", "MinAtar/Breakout-v1"),
        ("Box2D", ("gymnasium.envs.box2d",), "box2d", "LunarLander-v3"),
        ("mujoco", ("gymnasium.envs.mujoco",), "mujoco", "HalfCheetah-v5"),
        ("highway_env", (), "driving", "highway_env:highway-v0"),
        ("gym_anytrading", (), "trading", "gym_anytrading:stocks-v0"),
        ("pandas", ("gym_anytrading",), "trading", "gym_anytrading:stocks-v0"),
        ("gym_anytrading", (), "trading", lambda: importlib.import_module("gym_anytrading.envs")),
    ],
)
def test_an_environment_that_lacks_a_package_is_a_message_that_names_the_extra(
    tmp_path: Path, without: Without, missing: str, again: tuple[str, ...], extra: str, env: Any
) -> None:
    without(missing, again=again)
    with pytest.raises(errors.UnknownEnvironmentError) as raised:
        start(tmp_path / "run", env=env)
    assert f"Type: pip install 'daskrl[{extra}]'" in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_no_extra_has_is_named_without_one(tmp_path: Path, without: Without) -> None:
    without("somebodys_robots")
    with pytest.raises(errors.UnknownEnvironmentError, match=r"somebodys_robots.*Install the package that has it"):
        start(tmp_path / "run", env="somebodys_robots:Arm-v0")


@pytest.mark.parametrize(
    ("missing", "call", "extra"),
    [
        ("kiwisolver", "daskrl.plot_learning_curve(store)", "plot"),
        ("arch.bootstrap", "from daskrl.study.compare import compare; compare([], by='n_step')", "study"),
        ("scipy.stats", "from daskrl.study.winner import optimism; optimism([], [])", "study"),
        ("pandas", "from daskrl.study.winner import winner; winner([])", "study"),
        ("pandas", "daskrl.Store.open(store).to_xarray()", "analysis"),
        ("google.protobuf", "from daskrl import sinks; sinks.mlflow([])", "mlflow"),
    ],
)
def test_so_is_one_that_a_package_of_the_extra_needs(stored: Path, missing: str, call: str, extra: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; import daskrl; store = {str(stored)!r}; {call}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("daskrl.errors.ConfigError: ")
    assert missing in last
    assert f"Type: pip install 'daskrl[{extra}]'" in last


def test_a_notebook_without_widgets_is_told_the_extra_that_has_them() -> None:
    code = (
        "import sys, types\n"
        "kernel = types.ModuleType('ipykernel.zmqshell')\n"
        "sys.modules['ipykernel.zmqshell'], sys.modules['ipywidgets'] = kernel, None\n"
        "import IPython\n"
        "from daskrl.watching.bar import tqdm\n"
        "print(tqdm().__module__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "notebook" not in done.stdout
    assert "UserWarning: the progress bar is text" in done.stderr
    assert "Type: pip install 'daskrl[notebook]'" in done.stderr
    assert "TqdmWarning" not in done.stderr
