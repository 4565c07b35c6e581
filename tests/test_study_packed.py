"""A run of a study, which is packed: drawn, exported, evaluated, unpacked and packed again, as it is typed."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import xarray
import zarr

import daskrl
from daskrl.study import Study
from tests.studies import small
from tests.typed import Here


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return small(tmp_path_factory.mktemp("study") / "lr", space={}, seeds=2).run(progress=False)


def runs(study: Study) -> list[Path]:
    """The directories that its runs had."""
    return [Path(str(study.log.storage)) / run for run in study.table().run]


def test_a_packed_run_is_drawn_exported_and_evaluated_as_its_directory_is(
    study: Study, tmp_path: Path, here: Here
) -> None:
    run = runs(study)[0]
    unpacked = daskrl.train(
        daskrl.DQN(hidden=(8,), learning_starts=64, batch_size=16, window=1024), "CartPole-v1", store=tmp_path / "run",
        env_steps=256, streams=2, envs_per_stream=2, fragment_steps=16, progress=False,
    ).wait().store  # fmt: skip
    assert not run.exists()
    curves = [daskrl.plot_learning_curve(store).lines for store in (run, unpacked)]
    assert len(curves[0]) > 0
    for line, drawn in zip(*curves, strict=True):
        assert np.array_equal(np.asarray(line.get_xydata()), np.asarray(drawn.get_xydata()))
    daskrl.Store.open(run).to_xarray().to_zarr(tmp_path / "data.zarr")
    with xarray.open_zarr(tmp_path / "data.zarr") as data:
        mine, other = (one.drop_vars("fragment.wall_time").load() for one in (data, unpacked.to_xarray()))
    xarray.testing.assert_equal(mine, other)
    played, exported = [], []
    for path, name in ((run, "mine.safetensors"), (unpacked.root, "other.safetensors")):
        said = here("evaluate", str(path), "--episodes", "3", "--json", cwd=tmp_path).stdout
        played.append(json.loads(said)["returns"])
        here("export", str(path), "--format", "safetensors", "--output", name, cwd=tmp_path)
        weights = safetensors.numpy.load_file(tmp_path / name)
        exported.append({layer: values.tobytes() for layer, values in weights.items()})
    assert played[0] == played[1]
    assert exported[0] == exported[1]


def test_zarr_knows_all_that_lies_in_the_store_of_a_run(study: Study) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group = zarr.open_group(zarr.storage.ZipStore(runs(study)[0].with_suffix(".zip"), mode="r"), mode="r")
        assert {"reward", ".scored"} <= {name for name, _ in group.members()}


def test_runs_are_unpacked_and_packed_again_as_it_is_typed_and_the_study_knows_them(study: Study, here: Here) -> None:
    directory, digest = Path(str(study.log.storage)), study.digest()
    names = [str(run.relative_to(directory)) for run in runs(study)]
    packs = {path.name: path.read_bytes() for path in (directory / "runs").iterdir()}
    assert len(packs) == 2
    said = here("unpack", names[0], f"{names[1]}.zip", cwd=directory).stdout
    assert said.split() == [str(run) for run in runs(study)]
    assert all(run.is_dir() for run in runs(study))
    assert daskrl.runs(directory).packed.tolist() == [False, False]
    assert small(directory, space={}, seeds=2).run(progress=False).digest() == digest  # nothing is left to run
    here("pack", *names, cwd=directory)
    assert {path.name: path.read_bytes() for path in (directory / "runs").iterdir()} == packs
    assert "daskrl pack: expected directories of runs" in here("pack", cwd=directory, code=2).stderr
