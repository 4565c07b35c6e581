"""FORMAT.md is kept: a reader written from it alone, without daskrl and without zarr, reads every bit."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import pickletools
import re
import shutil
import typing
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr
from gymnasium import spaces
from numcodecs.zstd import Zstd
from safetensors.numpy import load

import daskrl
from daskrl import records
from daskrl.errors import StoreMismatchError
from daskrl.store.store import Store
from daskrl.study import log as study_log
from tests.data.make_store import FRAGMENTS, STORE
from tests.oracles import Sampled, reset_seed

FORMAT = (Path(__file__).parents[1] / "FORMAT.md").read_text()

# Kind -> the keys of its records, and whether they may be absent.
RECORDS = {
    typing.get_args(hints["kind"])[0]: hints
    for record in typing.get_args(records.Record)
    for hints in (typing.get_type_hints(record, include_extras=True),)
}


# -- a reader made from FORMAT.md -------------------------------------------------------------------------


def crc(data: bytes) -> int:
    return int(google_crc32c.value(data))


def log(root: Path) -> list[dict[str, Any]]:
    """Every record of a store, oldest first."""
    records: list[dict[str, Any]] = []
    number = 0
    while (path := root / ".commits" / f"{number:08d}.json").exists():
        data = path.read_bytes()
        body = data[data.index(b"[") : data.rindex(b"]") + 1]
        assert json.loads(data)["crc32c"] == f"{crc(body):08x}"
        records += json.loads(body)
        number += 1
    return records


def attributes(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "zarr.json").read_text())["attributes"]
    return found


def chunk(root: Path, column: dict[str, Any], record: dict[str, Any]) -> np.ndarray:
    """One column of one fragment."""
    nbytes, checksum = record["columns"][column["name"]]
    if nbytes == 0:
        assert column["optional"]
        return np.zeros(column["shape"], column["dtype"])
    file = ".".join(["c", str(record["slot"]), *["0"] * len(column["shape"])])
    data = (root / column["name"] / file).read_bytes()
    assert len(data) == nbytes
    assert crc(data[:-4]) == int.from_bytes(data[-4:], "little") == checksum
    plain = np.dtype(column["dtype"]).kind == "f" and not column["optional"]
    body = data[:-4] if plain else Zstd().decode(data[:-4])
    return np.frombuffer(body, np.dtype(column["dtype"]).newbyteorder("<")).reshape(column["shape"])


def checked(root: Path, written: list[Any]) -> bytes:
    data = (root / written[0]).read_bytes()
    assert (len(data), crc(data)) == tuple(written[1:])
    return data


def digest(root: Path) -> str:
    """Section 7."""
    sha, records = hashlib.sha256(), log(root)
    columns = sorted(attributes(root)["columns"], key=lambda column: column["name"])
    for record in sorted((r for r in records if r["kind"] == "fragment"), key=lambda r: r["slot"]):
        sha.update(f"fragment {record['round']} {record['stream']} {record['weights_version']}\n".encode())
        for column in columns:
            values = chunk(root, column, record)
            sha.update(f"{column['name']} {values.dtype.str} {tuple(column['shape'])}\n".encode())
            sha.update(values.tobytes())
    kept = {r["version"]: r["weights"] for r in records if r["kind"] == "learn" and r["weights"]}
    if kept:
        sha.update(f"weights {max(kept)}\n".encode())
        for name, value in sorted(load(checked(root, kept[max(kept)])).items()):
            sha.update(f"{name} {value.dtype.str} {value.shape}\n".encode() + value.tobytes())
    return sha.hexdigest()


# -- stores to read ---------------------------------------------------------------------------------------

OBSERVATION = spaces.Dict(
    {"image": spaces.Box(0, 255, (8, 8), np.uint8), "rest": spaces.Tuple((spaces.Discrete(3), spaces.MultiBinary(4)))}
)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run with a Dict space, stacked frames and prioritised replay."""
    root = tmp_path_factory.mktemp("format") / "run"
    algorithm = daskrl.DQN(
        hidden=(8,), learning_starts=0, batch_size=4, replay_ratio=0.5, window=100, priority_alpha=0.6, n_step=2
    )
    daskrl.train(
        algorithm, lambda: Sampled(OBSERVATION), store=root, env_steps=100, seed=4, streams=2, envs_per_stream=2,
        fragment_steps=4, frame_stack=3, weights_every=3, checkpoint_every=3, progress=False,
    ).wait()  # fmt: skip
    return root


@pytest.fixture(params=["made now", "checked in"])
def root(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue("made") if request.param == "made now" else STORE


def test_the_digest_of_a_reader_made_from_format_md_is_daskrls(root):
    assert digest(root) == Store.open(root).digest()


def test_every_chunk_read_by_hand_is_what_zarr_reads(root):
    group = zarr.open_group(root, mode="r")
    for record in log(root):
        if record["kind"] == "fragment":
            for column in attributes(root)["columns"]:
                values = chunk(root, column, record)
                assert values.tobytes() == group[column["name"]][record["slot"]].tobytes()


def test_the_arrays_are_as_format_md_says(root):
    group, known = zarr.open_group(root, mode="r"), {c["name"]: c for c in attributes(root)["columns"]}
    for name, array in group.arrays():
        metadata = json.loads((root / name / "zarr.json").read_text())
        codecs = [codec["name"] for codec in metadata["codecs"]]
        plain = array.dtype.kind == "f" and not known.get(name, {"optional": False})["optional"]
        assert codecs == (["bytes", "crc32c"] if plain else ["bytes", "zstd", "crc32c"])
        assert metadata["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "."}}
        assert array.shape[0] % 1024 == 0
        if name in known:
            assert array.chunks == (1, *known[name]["shape"])
            assert list(array.metadata.dimension_names) == ["fragment", *known[name]["dims"]]
            assert array.fill_value == 0
        else:
            assert array.chunks[0] == 4096
            row = next(line for line in FORMAT.splitlines() if line.startswith(f"| `{name}` "))
            assert f"| `{array.dtype}` | `{', '.join(array.metadata.dimension_names)}` |" in row
            fill = {"-1": -1, "false": False, "NaN": np.nan}[row.split("|")[-2].strip()]
            np.testing.assert_equal(array.fill_value, fill)


def test_columns_have_the_shapes_of_section_2(made):
    t, n, k = 4, 2, 3
    shapes = {column["name"]: tuple(column["shape"]) for column in attributes(made)["columns"]}
    assert shapes == {
        "observation.image": (t + k, n, 8, 8),
        "observation.rest.0": (t + k, n),
        "observation.rest.1": (t + k, n, 4),
        "final_observation.image": (t * n, 8, 8),
        "final_observation.rest.0": (t * n,),
        "final_observation.rest.1": (t * n, 4),
        "action": (t, n),
        "reward": (t, n),
        "terminated": (t, n),
        "truncated": (t, n),
    }
    dims = {column["name"]: column["dims"] for column in attributes(made)["columns"]}
    assert dims["final_observation.image"] == ["final", "observation.image_0", "observation.image_1"]


def test_neighbouring_fragments_share_a_frame(made):
    records = sorted((r for r in log(made) if r["kind"] == "fragment"), key=lambda r: (r["stream"], r["round"]))
    column = next(c for c in attributes(made)["columns"] if c["name"] == "observation.image")
    for before, after in itertools.pairwise(records):
        if before["stream"] == after["stream"]:
            assert (chunk(made, column, before)[-1] == chunk(made, column, after)[2]).all()


def test_reset_seeds_are_those_of_section_4(root):
    seed = attributes(root)["config"]["seed"]
    for record in log(root):
        if record["kind"] == "fragment":
            assert record["environment_seed"] == [
                reset_seed(seed, record["stream"], env, episode) for env, episode in enumerate(record["first_episode"])
            ]


def test_the_attributes_have_the_checksum_of_the_first_record(root):
    first = log(root)[0]
    names = re.findall(r"^\| `(\w+)` \| ", FORMAT.partition("A *leaf* is")[0], re.MULTILINE)
    kept = {name: attributes(root)[name] for name in names}
    assert len(kept) == 8
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"))
    assert first == {"kind": "created", "attributes_crc32c": crc(text.encode())}


def test_every_file_a_record_names_is_there_or_an_old_checkpoint(made):
    for record in log(made):
        if record["kind"] == "learn":
            if record["weights"]:
                assert load(checked(made, record["weights"]))
            if record["checkpoint"] and record["version"] >= 6:
                assert checked(made, record["checkpoint"])


def test_format_md_names_every_key_of_every_record(root):
    words = set(re.findall(r"[A-Za-z_0-9]+", FORMAT))
    for record in log(root):
        assert {record["kind"], *record} <= words
    options = next(record for record in log(root) if record["kind"] == "budget")["options"]
    assert set(options) <= words


def test_format_md_names_every_key_of_the_attributes(root):
    words = set(re.findall(r"[A-Za-z_0-9]+", FORMAT))
    found = attributes(root)
    for keys in (found, found["config"], found["config"]["schedule"], found["spec"], found["columns"][0]):
        assert set(keys) <= words
    assert set(found["spec"]["action"][0]) <= words


def _named(text):
    return re.findall(r"^\*\*`(\w+)`\*\*:", text, re.MULTILINE)


def test_format_md_names_every_kind_of_record_the_code_makes():
    of_a_run, of_a_study = FORMAT.split("\n## 12. A study\n")
    assert sorted(_named(of_a_run)) == sorted(RECORDS)
    kinds = {typing.get_args(typing.get_type_hints(record)["kind"])[0] for record in typing.get_args(study_log.Entry)}
    assert set(_named(of_a_study)) == kinds
    for record in (*typing.get_args(study_log.Entry), study_log.Asked):
        for key in typing.get_type_hints(record):
            assert f"`{key}`" in FORMAT, key
    words = set(re.findall(r"\w+", FORMAT))
    assert {key for hints in RECORDS.values() for key in hints} <= words


def test_every_record_of_a_run_has_the_keys_of_its_type(made):
    for record in [*log(made), *log(STORE)]:
        hints = RECORDS[record["kind"]]
        required = {key for key, hint in hints.items() if typing.get_origin(hint) is not typing.NotRequired}
        assert required <= record.keys() <= hints.keys(), record["kind"]


def test_a_store_holds_json_chunks_and_safetensors_only(made):
    allowed = re.compile(
        r"zarr\.json|[\w.]+/zarr\.json|[a-z_0-9.]+/c(\.\d+)+|\.commits/(\d{8}\.json|driver\.lock)|"
        r"\.(weights|checkpoints)/\d{8}\.safetensors"
    )
    names = [path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()]
    assert [name for name in names if not allowed.fullmatch(name)] == []
    assert len(names) > 100


def test_nothing_in_a_store_is_pickled(made):
    assert is_pickle(b"\x80\x04N.")
    assert [path for path in made.rglob("*") if path.is_file() and is_pickle(path.read_bytes())] == []


def is_pickle(data: bytes) -> bool:
    """Whether some bytes are a pickle from their first to their last."""
    try:
        *_, (opcode, _, place) = pickletools.genops(data)
    except Exception:  # whatever a parser of bytes that are no pickle raises
        return False
    return opcode.name == "STOP" and place == len(data) - 1


# -- the store of version 1 -------------------------------------------------------------------------------


def test_the_checked_in_store_of_version_1_is_read_and_has_its_digest():
    store = Store.open(STORE)
    assert store.digest() == DIGEST
    assert [record["slot"] for record in store.fragments()] == list(range(FRAGMENTS))
    assert store.weights()[0] == FRAGMENTS
    assert store.promise_off() == []


def test_the_checked_in_store_is_read_by_zarr():
    group = zarr.open_group(STORE, mode="r")
    assert group.attrs["format_version"] == 1
    assert group["observation"][0, 0, 0].tolist() == FIRST_OBSERVATION
    assert group["fragment.round"][: FRAGMENTS + 1].tolist() == [*range(FRAGMENTS), -1]
    assert float(group["reward"][:].sum()) == 4 * FRAGMENTS


def test_the_checked_in_store_is_small_and_holds_no_path_of_the_machine_that_made_it():
    files = [path for path in STORE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 100_000
    assert not any(str(Path.home()).encode() in path.read_bytes() for path in files if path.suffix == ".json")


# What `python -m tests.data.make_store` printed.
DIGEST = "e9b18609a094f4ca25b398cb788b0e6206a44aff6ddd5a55e865162adc9cf27a"
FIRST_OBSERVATION = [0.03029589168727398, 0.004252856131643057, 0.02396821603178978, -0.04443350434303284]


def test_settings_that_came_after_a_store_may_be_left_at_their_default(tmp_path: Path) -> None:
    root = tmp_path / "store"
    shutil.copytree(STORE, root)
    kept = Store.open(root).config.algorithm["settings"]
    assert "cuda_graphs" not in kept
    same = daskrl.DQN(**{**kept, "hidden": tuple(kept["hidden"])})
    assert daskrl.resume(root, algorithm=same, progress=False) is not None
    with pytest.raises(StoreMismatchError, match=r"^algorithm: .* cuda_graphs: True \(store: not there\)"):
        daskrl.resume(root, algorithm=dataclasses.replace(same, cuda_graphs=True), progress=False)
