"""Versions against fingerprints: what differs in name alone takes part; what may differ in bits does not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster

import daskrl
from daskrl import errors
from daskrl.pools import election, instructions, members
from daskrl.tasks import fingerprint, session
from tests.promise import records

VERSIONS = {
    "python": "3.11.9", "daskrl": "0.1.0", "torch": "2.13.0+cpu", "numpy": "2.4.1", "gymnasium": "1.4.0",
    "numcodecs": "0.16.1", "ale-py": "0.11.0",
}  # fmt: skip
PROBES = {"python": "p", "numpy": "n", "torch": "t", "zstd": "z"}
INFO: dict[str, Any] = {
    "versions": VERSIONS, "cpu": "c", "cuda": None, "cuda_name": None, "probes": PROBES, "settings": {}, "host": "h",
    "pid": 1,
}  # fmt: skip
RUN = fingerprint.reference(INFO, "cpu")


def with_version(**changed: str) -> dict[str, Any]:
    return {**INFO, "versions": {**VERSIONS, **{name.replace("_", "-"): value for name, value in changed.items()}}}


def with_probe(**changed: str) -> dict[str, Any]:
    return {**INFO, "probes": {**PROBES, **changed}}


@pytest.mark.parametrize(
    "info",
    [
        with_version(torch="2.13.0"), with_version(torch="2.13.0+cu130"), with_version(python="3.11.2"),
        with_version(python="3.12.4"), with_version(numpy="2.5.0"), with_version(numcodecs="0.15.0"),
        with_version(torch="2.13.0+cu130", python="3.11.2", numpy="2.4.0", numcodecs="0.17.0"),
    ],
)  # fmt: skip
def test_versions_that_give_the_same_bits_take_part_and_are_noted(info: dict[str, Any]) -> None:
    assert fingerprint.mismatch(info, RUN, learns=True) is None
    note = fingerprint.note_on(info, RUN, "worker 1")
    assert note is not None
    assert note["kind"] == "versions"
    assert note["versions"] == info["versions"]
    assert len(note["alike"]) == sum(info["versions"][name] != VERSIONS[name] for name in VERSIONS)


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("torch", "2.12.0+cpu"), ("torch", "2.13.1"), ("numpy", "1.26.4"), ("numpy", "3.0.0"), ("python", "4.0.0"),
        ("daskrl", "0.1.1"), ("gymnasium", "1.4.1"), ("ale-py", "0.11.1"), ("numcodecs", "not installed"),
    ],
)  # fmt: skip
def test_versions_whose_difference_no_probe_sees_are_refused_by_name(name: str, version: str) -> None:
    info = with_version(**{name: version})
    if version == "not installed":
        info = {**info, "versions": {key: value for key, value in VERSIONS.items() if key != name}}
    problem = fingerprint.mismatch(info, RUN, learns=True)
    assert problem is not None
    assert f"{name} " in problem
    assert f"(run: {VERSIONS[name]})" in problem
    assert "Install the run's versions" in problem


@pytest.mark.parametrize(
    ("probe", "package", "version", "said"),
    [
        ("python", "python", "3.12.0", "python 3.12.0"), ("numpy", "numpy", "2.5.0", "numpy 2.5.0"),
        ("torch", "torch", "2.13.0", "torch 2.13.0"), ("zstd", "numcodecs", "0.17", "numcodecs 0.17"),
    ],
)  # fmt: skip
def test_a_version_that_gives_other_bits_is_refused_by_name(probe: str, package: str, version: str, said: str) -> None:
    info = {**with_version(**{package: version}), "probes": {**PROBES, probe: "other"}}
    problem = fingerprint.mismatch(info, RUN, learns=True)
    assert problem is not None
    assert said in problem


@pytest.mark.parametrize(
    ("probe", "said"),
    [("python", "math.sin"), ("numpy", "NumPy's functions"), ("torch", "torch's functions"), ("zstd", "compressed")],
)  # fmt: skip
def test_equal_versions_that_give_other_bits_are_refused_with_what_aligns_them(probe: str, said: str) -> None:
    problem = fingerprint.mismatch(with_probe(**{probe: "other"}), RUN, learns=False)
    assert problem is not None
    assert said in problem
    assert "OPENBLAS_CORETYPE=Haswell" in problem
    assert fingerprint.note_on(with_probe(**{probe: "other"}), RUN, "this") is None


def test_a_run_made_before_there_were_probes_is_compared_by_versions() -> None:
    old = {key: value for key, value in RUN.items() if key != "probes"}
    assert fingerprint.mismatch(INFO, old, learns=True) is None
    problem = fingerprint.mismatch(with_version(python="3.11.2"), old, learns=True)
    assert problem is not None
    assert "python 3.11.2 (run: 3.11.9)" in problem


def test_a_run_made_with_fewer_probes_is_compared_by_those() -> None:
    fewer = {**RUN, "probes": {"python": "p"}}
    assert fingerprint.mismatch(with_probe(numpy="other"), fewer, learns=True) is None
    assert fingerprint.mismatch(with_version(python="3.11.2"), fewer, learns=True) is None
    assert fingerprint.mismatch(with_version(numpy="2.5.0"), fewer, learns=True) is not None


def test_probes_are_the_same_in_another_process() -> None:
    code = "from daskrl.tasks.fingerprint import probes; import json; print(json.dumps(probes()))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout) == fingerprint.probes()


def test_a_probe_sees_how_numpy_1_promotes_types() -> None:
    """By which Pendulum has other rewards: a float32 and a Python float made a float64."""
    numpy_1 = [
        "float64",
        "float64",
        "float64",
        "int64",
        "float64",
        "float64",
        "float32",
        "float32",
        "float32",
        "float32",
    ]
    numpy_2 = [
        "float32",
        "float32",
        "float64",
        "int8",
        "float32",
        "float32",
        "float64",
        "float64",
        "float32",
        "float64",
    ]
    found = fingerprint.promoted()
    assert [str(array.dtype) for array in found] == numpy_2
    as_before = [array.astype(kind) for array, kind in zip(found, numpy_1, strict=True)]
    assert fingerprint.sha_of(as_before) != fingerprint.sha_of(found)


TINY: dict[str, Any] = {"streams": 2, "envs_per_stream": 2, "fragment_steps": 8, "seed": 3, "progress": False}


def q_learning(store: Path, **options: Any) -> daskrl.Run:
    return daskrl.train(daskrl.QLearning(), "FrozenLake-v1", store=store, **{**TINY, "env_steps": 64, **options})


def test_a_run_is_resumed_on_another_patch_release_of_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = q_learning(tmp_path / "whole", env_steps=128).wait().store.digest()
    q_learning(tmp_path / "run").wait()
    here = session.versions()
    monkeypatch.setattr(session, "versions", lambda packages=(): {**here, "python": "3.11.99"})
    store = daskrl.resume(tmp_path / "run", env_steps=128, progress=False).wait().store
    assert store.digest() == whole
    assert not store.promise_off()
    (note,) = [record for record in records(store.root) if record["kind"] == "versions"]
    assert note["versions"]["python"] == "3.11.99"
    monkeypatch.setattr(session, "versions", lambda packages=(): {**here, "gymnasium": "0.0.1"})
    with pytest.raises(errors.WorkerMismatchError, match=r"gymnasium 0\.0\.1"):
        daskrl.resume(tmp_path / "run", env_steps=192, progress=False).wait()
    assert not session.SESSIONS


def test_a_store_of_before_there_were_probes_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = q_learning(tmp_path / "whole", env_steps=128).wait().store.digest()
    reference = fingerprint.reference

    def without_probes(info: Any, device: str) -> Any:
        return {key: value for key, value in reference(info, device).items() if key != "probes"}

    monkeypatch.setattr(fingerprint, "reference", without_probes)
    store = q_learning(tmp_path / "run").wait().store
    monkeypatch.undo()
    (kept,) = [record for record in records(store.root) if record["kind"] == "arithmetic"]
    assert "probes" not in kept
    assert daskrl.resume(tmp_path / "run", env_steps=128, progress=False).wait().store.digest() == whole


# -- torch_threads ---------------------------------------------------------------------------------------------------


def test_torch_threads_need_a_learner_in_a_process_of_its_own(tmp_path: Path) -> None:
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        run = q_learning(tmp_path / "run", client=client, torch_threads=2)
        with pytest.raises(
            errors.ConfigError, match=r"torch_threads=2 needs a learner in a process of its own.*--nthreads"
        ):
            run.wait()
        assert client.run_on_scheduler(lambda dask_scheduler: dict(dask_scheduler.tasks)) == {}
        assert not run.store.promise_off()


@pytest.mark.parametrize(
    ("threads", "others", "refused"),
    [(1, [], False), (4, [], True), (1, [("h", 1)], True), (1, [("h", 2), ("g", 1)], False)],
    ids=["alone", "four threads", "shared process", "beside others"],
)
def test_a_learners_worker_with_other_tasks_beside_it_is_refused(
    threads: int, others: list[tuple[str, int]], refused: bool
) -> None:
    everyone, roster = members.Workers(), members.Roster(members.Terms("run", torch_threads=2), None, tuple)
    everyone.begin(roster)
    infos = {"a": INFO, **{str(i): {**INFO, "host": host, "pid": pid} for i, (host, pid) in enumerate(others)}}
    found = {address: {"name": address, "nthreads": threads} for address in infos}
    everyone.present({**found, "a": {"name": "one", "nthreads": threads, "resources": {"learner": 1}}})
    for address, worker in everyone.there.items():
        everyone.introduced(worker, infos[address])
        roster.joined(worker, infos[address])
    told = election.Election(roster).hold(0.0)
    if refused:
        (failed,) = told
        assert isinstance(failed, instructions.Fail)
        assert isinstance(failed.error, errors.ConfigError)
        assert "worker one runs other tasks beside it" in str(failed.error)
    else:
        assert roster.learners == {"": "a"}


def test_code_in_a_session_is_seen(tmp_path: Path) -> None:
    run = q_learning(tmp_path / "run")

    def factory() -> Any:
        raise AssertionError

    def packed(factory: Any) -> bytes:
        return session.pickled("t", run.store.layout, run.algorithm, factory, run.options)

    assert session.carries_code(packed(factory))
    assert not session.carries_code(packed(dict))
