"""Runs in an object store, on a real SeaweedFS: the bits of a run in a directory, whoever dies and whatever is lost."""

from __future__ import annotations

import itertools
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pytest
from distributed import Client

import daskrl
from daskrl import clusters
from daskrl.cli.commands import main
from daskrl.errors import ConfigError, StoreLockedError, StoreMismatchError, StoreUnreachableError
from daskrl.store.objects import Objects
from daskrl.store.places import place
from tests import objects
from tests.promise import SETTINGS, Once, Troubled, TroubledDQN, kill_self, start
from tests.typed import Here

COUNT = itertools.count()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> daskrl.Store:
    """The run in a directory, in this process."""
    return start(tmp_path_factory.mktemp("plain") / "run").wait().store


@pytest.fixture(scope="module")
def digest(plain: daskrl.Store) -> str:
    return plain.digest()


@pytest.fixture
def url(s3: objects.SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> str:
    """A place for a run, with what a process needs to reach it in the environment."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{objects.BUCKET}/runs/{os.getpid()}-{next(COUNT)}"


@pytest.fixture(scope="module")
def cluster(s3: objects.SeaweedFS) -> Iterator[Client]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.environment.items():
            patch.setenv(name, value)
        with clusters.local(2) as made, Client(made) as client:
            yield client


@pytest.fixture(scope="module")
def done(s3: objects.SeaweedFS) -> Iterator[daskrl.Store]:
    """A finished run, to read."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.environment.items():
            patch.setenv(name, value)
        yield start(f"s3://{objects.BUCKET}/done/run").wait().store  # type: ignore[arg-type]


def go_on(url: str, **given: Any) -> str:
    return daskrl.resume(url, progress=False, **given).wait().store.digest()


def stop_at(run: daskrl.Run, version: int) -> None:
    for report in run:
        if report.weights_version == version:
            run.stop()


# -- the same bits ----------------------------------------------------------------------------------------


def test_a_run_in_memory_has_the_digest_of_one_in_a_directory(digest: str) -> None:
    assert start("memory://object-stores/run").wait().store.digest() == digest  # type: ignore[arg-type]


@pytest.mark.s3
def test_a_run_on_s3_has_the_digest_of_one_in_a_directory_and_is_found_again(
    url: str, plain: daskrl.Store, digest: str
) -> None:
    made = start(url).wait().store  # type: ignore[arg-type]
    assert str(made.storage) == url
    assert made.digest() == digest
    opened = daskrl.Store.open(url)
    assert opened.digest() == digest
    mine, other = opened.summary(), plain.summary()
    assert {name for name in mine if mine[name] != other[name]} <= {"store"}
    with pytest.raises(StoreMismatchError, match="already holds a run"):
        start(url)  # type: ignore[arg-type]
    assert start(url, overwrite=True).wait().store.digest() == digest  # type: ignore[arg-type]


@pytest.mark.s3
def test_a_run_on_workers_of_which_rollout_worker_and_learner_are_killed(
    url: str, cluster: Client, digest: str, tmp_path: Path
) -> None:
    once, algorithm = Once(tmp_path / "killed"), TroubledDQN(**SETTINGS)
    object.__setattr__(algorithm, "kills", (5, 150))
    object.__setattr__(algorithm, "once_in", str(tmp_path))
    run = start(url, lambda: Troubled(70, once, kill_self), algorithm, client=cluster).wait()  # type: ignore[arg-type]
    assert Path(once.path).exists()
    assert {path.name for path in tmp_path.glob("update-*")} == {"update-5", "update-150"}
    assert run.store.digest() == digest
    left = obstore.list(objects.client(os.environ["AWS_ENDPOINT_URL"]), place(url).url.split("/", 3)[3])  # type: ignore[attr-defined]
    assert not [meta["path"] for page in left for meta in page if meta["path"].endswith(".partial")]


DRIVER = """
import os, signal, sys
from daskrl.store import lease, log
from tests.promise import start

append, calls = log.CommitLog.append, []
count, moment, lease.SECONDS = int(sys.argv[2]), sys.argv[3], 2.0

def counted(self, number, records):
    calls.append(number)
    if len(calls) == count and moment == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    made = append(self, number, records)
    if len(calls) == count:
        os.kill(os.getpid(), signal.SIGKILL if moment == "after" else signal.SIGSTOP)
    return made

if __name__ == "__main__":
    log.CommitLog.append = counted
    start(sys.argv[1]).wait()
"""


def driver(folder: Path, url: str, count: int, moment: str) -> subprocess.Popen[str]:
    (folder / "driver.py").write_text(DRIVER)
    return subprocess.Popen(
        [sys.executable, str(folder / "driver.py"), url, str(count), moment],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.s3
@pytest.mark.parametrize(("count", "moment"), [(5, "before"), (24, "after")])
def test_sigkill_to_the_driver_and_another_takes_over(
    url: str, digest: str, tmp_path: Path, count: int, moment: str
) -> None:
    died = driver(tmp_path, url, count, moment)
    died.communicate()
    assert died.returncode == -signal.SIGKILL
    assert go_on(url) == digest
    assert list(daskrl.Store.open(url).records("driver")) == [{"kind": "driver"}]


@pytest.mark.s3
def test_a_driver_that_was_asleep_finds_that_another_took_over_and_stops(url: str, digest: str, tmp_path: Path) -> None:
    asleep = driver(tmp_path, url, 20, "asleep")
    os.waitid(os.P_PID, asleep.pid, os.WSTOPPED | os.WNOWAIT)
    run = daskrl.resume(url, progress=False)
    for number, _ in enumerate(run):
        if number == 0:
            asleep.send_signal(signal.SIGCONT)
            _, said = asleep.communicate()
    assert asleep.returncode == 1
    assert "StoreLockedError" in said
    assert "another driver" in said
    assert "nothing is lost" in said
    assert run.store.digest() == digest


@pytest.mark.s3
def test_of_two_drivers_at_once_one_goes_on_and_the_other_stops(url: str, digest: str) -> None:
    run = start(url)  # type: ignore[arg-type]
    stop_at(run, 3)
    together, stopped, said, digests = threading.Barrier(2), threading.Event(), list[str](), list[str]()

    def drive() -> None:
        mine = daskrl.resume(url, progress=False)
        together.wait(30)
        try:
            for _ in mine:
                assert stopped.wait(60)  # whoever has the store has it until the other one was told
            digests.append(mine.store.digest())
        except StoreLockedError as error:
            said.append(str(error))
            stopped.set()

    both = [threading.Thread(target=drive) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert digests == [digest]
    assert len(said) == 1
    assert "is being written by process" in said[0]


@pytest.mark.s3
def test_sigkill_to_the_server_while_a_run_goes_on(url: str, s3: objects.SeaweedFS, digest: str) -> None:
    run, killed = start(url), 0  # type: ignore[arg-type]
    for report in run:
        if report.weights_version in (2, 6):
            s3.kill()
            threading.Timer(1.5, s3.start).start()
            killed += 1
    assert killed == 2
    assert run.store.digest() == digest


# -- answers that are lost --------------------------------------------------------------------------------


@pytest.mark.s3
@pytest.mark.parametrize("fault", ["lose", "503", "done 503", "409"])
def test_answers_that_are_lost_and_servers_that_are_busy(
    url: str, s3: objects.SeaweedFS, digest: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: dict[str, int] = {}

    def every_few(method: str, path: str) -> str:
        if method not in ("PUT", "GET"):
            return ""
        kind = f"{method} {'commit' if '/.commits/0' in path else 'other'}"
        counts[kind] = counts.get(kind, 0) + 1
        if fault == "409" and (method != "PUT" or "/.commits/" not in path):
            return ""  # S3 says it of conditions alone
        return fault if counts[kind] % 17 == 3 else ""

    proxy = objects.Proxy(s3)
    try:
        proxy.fault = every_few
        for name, value in proxy.environment.items():
            monkeypatch.setenv(name, value)
        assert start(url).wait().store.digest() == digest  # type: ignore[arg-type]
        assert counts["PUT commit"] > 30
    finally:
        proxy.close()
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    assert daskrl.Store.open(url).digest() == digest


@pytest.mark.s3
def test_a_commit_of_another_driver_is_not_taken_for_ones_own_though_its_records_are_the_same(url: str) -> None:
    store = start(url).store  # type: ignore[arg-type]
    mine, other = daskrl.Store.open(url).log, daskrl.Store.open(url).log
    number = store.log.head()
    mine.append(number, [{"kind": "driver"}])
    mine.append(number, [{"kind": "driver"}])  # as after an answer that was lost
    with pytest.raises(StoreLockedError, match="another driver committed"):
        other.append(number, [{"kind": "driver"}])


@pytest.mark.s3
def test_who_was_driver_once_does_not_write_over_what_the_next_one_wrote(url: str) -> None:
    storage = place(f"{url}/x")
    old, new = dict[str, Any](), dict[str, Any]()
    storage.rewrite("index/c.0", b"old", old)
    storage.rewrite("index/c.0", b"new", new)
    with pytest.raises(StoreLockedError, match="another driver wrote"):
        storage.rewrite("index/c.0", b"old again", old)
    assert storage.get("index/c.0") == b"new"


# -- reading ----------------------------------------------------------------------------------------------


@pytest.mark.s3
def test_a_run_under_another_prefix_is_the_same_run(url: str, s3: objects.SeaweedFS, digest: str) -> None:
    run = start(url)  # type: ignore[arg-type]
    stop_at(run, 5)
    bucket, old, new = objects.client(s3.endpoint), url.split("/", 3)[3], f"elsewhere/{next(COUNT)}/deep"
    for page in obstore.list(bucket, old):
        for meta in page:
            moved = meta["path"].replace(old, new, 1)
            obstore.put(bucket, moved, obstore.get(bucket, meta["path"]).bytes())
            obstore.delete(bucket, meta["path"])
    assert go_on(f"s3://{objects.BUCKET}/{new}") == digest
    with pytest.raises(StoreMismatchError, match="is not a daskrl store"):
        daskrl.Store.open(url)


@pytest.mark.s3
def test_all_that_reads_a_store_reads_one_on_s3(
    done: daskrl.Store, url: str, plain: daskrl.Store, digest: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    where = str(done.storage)

    def said(*arguments: str) -> Any:
        capsys.readouterr()
        with pytest.raises(SystemExit, match="0"):
            main([*arguments, "--json"])
        return json.loads(capsys.readouterr().out.strip().splitlines()[-1])

    assert said("digest", where)["digest"] == digest
    assert said("info", where)["store"] == where
    assert said("evaluate", where, "--episodes", "2")["returns"] == list(daskrl.evaluate(plain, episodes=2).returns)
    assert said("reproduce", where, "--fragment", "9")["differs"] == []
    assert said("watch", where)["env_steps"] == plain.summary()["env_steps"]
    assert Path(said("export", where, "--format", "safetensors")["path"]).absolute().parent == tmp_path
    exported = next(tmp_path.glob("run-version-*"))
    assert exported.read_bytes()
    observation = np.zeros(4, np.float32)
    assert done.policy().predict(observation)[0] == plain.policy().predict(observation)[0]
    begun = start(url, init=where, init_replay=True)  # type: ignore[arg-type]
    begun_plain = start(tmp_path / "begun", init=plain, init_replay=True)
    assert begun.wait().store.digest() == begun_plain.wait().store.digest()


@pytest.mark.s3
def test_zarr_and_xarray_read_it_without_daskrl(done: daskrl.Store, s3: objects.SeaweedFS, plain: daskrl.Store) -> None:
    import xarray
    import zarr
    from zarr.storage import ObjectStore

    bucket = obstore.store.S3Store(
        objects.BUCKET, prefix="done/run", endpoint=s3.endpoint, region="us-east-1", access_key_id=objects.KEY,
        secret_access_key=objects.SECRET, client_options={"allow_http": True},
    )  # fmt: skip
    group = zarr.open_group(ObjectStore(bucket, read_only=True), mode="r")
    assert {name for name, _ in group.members()} == {name for name, _ in plain.zarr().members()}
    slots = len(plain.fragments())
    for name in ("reward", "observation", "fragment.round", "fragment.stream"):
        assert np.array_equal(group[name][:slots], plain.zarr()[name][:slots])
    expected = plain.to_xarray()
    for data in (
        done.to_xarray(),
        xarray.open_zarr(ObjectStore(bucket, read_only=True), consolidated=False).isel(fragment=slice(0, slots)),
    ):
        assert np.array_equal(data.observation.values, expected.observation.values)


@pytest.mark.s3
def test_the_command_line_takes_urls(url: str, here: Here, tmp_path: Path) -> None:
    settings = ["CartPole-v1", "--store", url, "--env-steps", "512", "--streams", "2", "--workers", "0", "--json"]
    begun = json.loads(here("train", *settings, cwd=tmp_path).stdout.splitlines()[-1])
    assert begun["store"] == url
    assert [path.name for path in tmp_path.iterdir()] == [f"{url.rpartition('/')[2]}.png"]  # in the current directory
    on = json.loads(
        here("resume", url, "--env-steps", "1024", "--workers", "0", "--json", cwd=tmp_path).stdout.splitlines()[-1]
    )
    assert on["env_steps"] == 1024
    assert f"daskrl resume {url}" in here("train", *settings, cwd=tmp_path, code=2).stderr
    assert "no bucket" in here("info", "s3://no-such-bucket/run", cwd=tmp_path, code=2).stderr


# -- refused before anything is queued --------------------------------------------------------------------


@pytest.mark.s3
@pytest.mark.parametrize("verb", ["train", "resume"])
def test_a_bucket_that_is_not_there(url: str, verb: str) -> None:
    with pytest.raises(StoreUnreachableError, match=r"no bucket .no-such-bucket.*daskrl makes no buckets"):
        start("s3://no-such-bucket/run") if verb == "train" else daskrl.resume("s3://no-such-bucket/run")  # type: ignore[arg-type]


@pytest.mark.s3
@pytest.mark.parametrize("verb", ["train", "resume"])
def test_wrong_credentials(url: str, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "another-secret")
        with pytest.raises(StoreUnreachableError, match=r"refuses .*Check the credentials") as raised:
            start(url) if verb == "train" else daskrl.resume(url)  # type: ignore[arg-type]
        assert "another-secret" not in str(raised.value)
    if verb == "train":  # mended in the same process
        assert not daskrl.Store.exists(url)
        assert start(url).store.summary()["fragments"] == 0  # type: ignore[arg-type]


def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    from daskrl.store import client

    monkeypatch.setattr(client, "FIRST", 0.3)
    for name, value in objects.environment("http://127.0.0.1:9").items():
        monkeypatch.setenv(name, value)
    for call in (lambda: start("s3://daskrl/run"), lambda: daskrl.resume("s3://daskrl/run")):  # type: ignore[arg-type, return-value]
        with pytest.raises(StoreUnreachableError, match=r"does not answer .*Check the address of the server"):
            call()


@pytest.mark.s3
def test_a_worker_without_credentials_is_named_and_gets_no_task(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "another-secret")
        made = clusters.local(1)
    # A warning, which is an error here: the run goes on with the other workers.
    with made, Client(made) as client, pytest.raises(UserWarning, match=r"gets no rollouts.*Check the credentials"):
        start(url, client=client, learner_timeout=0.0).wait()  # type: ignore[arg-type]
    assert daskrl.Store.open(url).summary()["fragments"] == 0


@pytest.mark.parametrize(
    ("store", "says"),
    [
        ("s3://bucket", "a run has a prefix of its own"),
        ("s3://KEY:HIDDEN@bucket/run", "belong in the environment"),
        ("s3://bucket/run?token=HIDDEN", "belong in the environment"),
        ("s3://bucket/a//b", "an empty part"),
        ("s3://bucket/../b", "of dots alone"),
        (Path("s3://bucket/run"), "was a URL before it was made a path"),
        ("ftp://KEY:HIDDEN@host/run", "one of s3://, gs://, az://, memory://"),
        (7, "expected the directory of a run's store, or a URL"),
    ],
)
def test_urls_that_are_none(store: Any, says: str) -> None:
    for call in (start, daskrl.resume, daskrl.Store.open):
        with pytest.raises(ConfigError, match=says) as raised:
            call(store)
        assert "HIDDEN" not in str(raised.value)


def test_a_password_in_the_address_of_the_server_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://someone:HIDDEN@127.0.0.1:9")
    with pytest.raises(ConfigError, match="AWS_ENDPOINT_URL: expected an address without") as raised:
        start("s3://bucket/run")  # type: ignore[arg-type]
    assert "HIDDEN" not in str(raised.value)


@pytest.mark.parametrize(("url", "kind"), [("gs://bucket/run", "GCSStore"), ("az://container/run", "AzureStore")])
def test_other_clouds_go_through_the_same_code(url: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "someone")
    storage = place(url)
    assert isinstance(storage, Objects)
    assert type(storage.zarr().store).__name__ == kind


def test_without_obstore_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(ConfigError, match=r"pip install 'daskrl\[s3\]'"):
        start("memory://without-obstore/run")  # type: ignore[arg-type]


# -- secrets ----------------------------------------------------------------------------------------------


def from_a_provider() -> dict[str, Any]:
    """Credentials, as a provider of obstore gives them."""
    return {"access_key_id": objects.KEY, "secret_access_key": objects.SECRET, "token": None, "expires_at": None}


@pytest.mark.s3
@pytest.mark.parametrize("source", ["environment", "provider"])
def test_a_secret_is_in_no_pickle_no_object_no_key_and_no_log(
    url: str, s3: objects.SeaweedFS, source: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str], digest: str,
) -> None:  # fmt: skip
    if source == "provider":
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.setenv("DASKRL_CREDENTIALS", f"{__name__}:from_a_provider")
    caplog.set_level(logging.DEBUG)
    run = start(url).wait()  # type: ignore[arg-type]
    assert run.store.digest() == digest
    print(run, run.store, run.store.storage, repr(run.store.storage), vars(run.store.storage))
    from daskrl.tasks import session

    pickled = [
        pickle.dumps(run.store.storage),
        pickle.dumps(run.store.layout),
        pickle.dumps(run.store.to_xarray()),
        pickle.dumps(run.store.to_xarray().reward.data),
        session.pickled("token", run.store.layout, run.algorithm, run.source.factory, run.options),
    ]
    bucket = objects.client(s3.endpoint)
    stored = b""
    for page in obstore.list(bucket, url.split("/", 3)[3]):
        for meta in page:
            stored += meta["path"].encode() + bytes(obstore.get(bucket, meta["path"]).bytes())
    said = "".join(capfd.readouterr()) + caplog.text
    for hidden in (objects.SECRET.encode(), objects.KEY.encode()):
        assert not any(hidden in data for data in pickled)
        assert hidden not in stored
    assert objects.SECRET not in said
    again = pickle.loads(pickled[2])
    assert float(again.reward.mean()) == 1.0
