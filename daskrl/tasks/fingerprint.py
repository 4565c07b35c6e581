"""Fingerprints: the results of fixed computations. Processes with the same fingerprint compute a run alike.

A fingerprint shows differences that versions do not show (another processor, another instruction set). Where two
fingerprints are the same, other versions of packages make no difference.

Import-light: functions import torch when they are called.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from daskrl import arithmetic
from daskrl.errors import WorkerMismatchError
from daskrl.records import ArithmeticRecord, Array, Introduction, VersionsRecord

# package -> the probe that sees whatever a version of it may change in a run. Of a package that is not here, the code
# of an environment above all, every version is another computation.
_SEEN_BY = {"python": "python", "numpy": "numpy", "torch": "torch", "numcodecs": "zstd"}

_WHAT = {
    "python": "Python's and the C library's functions (math.sin, math.exp, sum, random, ...)",
    "numpy": "NumPy's functions, sums, products, type promotion or generators",
    "torch": "torch's functions, networks or optimizers",
    "zstd": "compressed bytes, which checksums are of",
}


def probes() -> dict[str, str]:
    """Hashes of what this process computes, by what computes it; beside `daskrl.networks.fingerprint`."""
    with arithmetic.pinned(), arithmetic.undrawn():
        return {name: probe() for name, probe in _PROBES.items()}


def _python() -> str:
    """Functions of the C library, which environments use, and what versions of Python compute otherwise.

    The sum of floats is one: from 3.12 on it is compensated.
    """
    found: list[Any] = []
    drawn = random.Random(0)
    numbers = [drawn.uniform(-3, 3) for _ in range(200)] + [1e-300, 1e6, 12345.678, math.pi]
    for function in (
        math.sin,
        math.cos,
        math.tan,
        math.atan,
        math.tanh,
        math.sinh,
        math.exp,
        math.expm1,
        math.erf,
        math.gamma,
    ):
        found += [function(x) if abs(x) < 100 else 0.0 for x in numbers]
    found += [f(abs(x)) for f in (math.log, math.log1p, math.log2, math.log10, math.sqrt) for x in numbers]
    found += [f(x / 3.1) for f in (math.asin, math.acos) for x in numbers if abs(x) < 3]
    found += [f(x, y) for f in (math.atan2, math.hypot, math.fmod) for x, y in zip(numbers, numbers[::-1], strict=True)]
    found += [pow(abs(x), y) for x, y in zip(numbers[:100], numbers[100:200], strict=True)]
    found += [
        sum(numbers[:200]),
        sum([0.1] * 10),
        math.fsum(numbers),
        round(2.675, 2),
        7.5 // 0.1,
        -7.5 % 0.1,
        float("0.1e-5"),
    ]
    found += [
        drawn.random(),
        drawn.gauss(0, 1),
        drawn.normalvariate(0, 1),
        drawn.betavariate(1, 2),
        drawn.getrandbits(70),
    ]
    found += [drawn.randint(0, 10**6), drawn.randrange(7), drawn.choice(range(99)), drawn.choices(range(99), k=5)]
    order = list(range(50))
    drawn.shuffle(order)
    found += [order, drawn.sample(range(1000), 20), random.Random("seed").random(), random.Random(2**70).random()]
    return _sha(repr(found).encode())


def _numpy() -> str:
    found: list[Array] = []
    drawn = np.random.Generator(np.random.PCG64(0))
    kinds = ("float32", "float64")
    with np.errstate(all="ignore"):
        for kind in kinds:
            x = (drawn.standard_normal(1003) * 3).astype(kind)  # odd: vectors have a rest
            y = np.abs(x) + np.asarray(0.01, kind)
            found += [
                f(x) for f in (np.exp, np.sin, np.cos, np.tan, np.tanh, np.arctan, np.expm1, np.exp2, np.sinh, np.cbrt)
            ]
            found += [f(y) for f in (np.log, np.sqrt, np.log1p, np.log2, np.log10, np.reciprocal)]
            found += [f(x / np.asarray(40, kind)) for f in (np.arcsin, np.arccos, np.arctanh)]
            found += [
                np.power(y, x),
                y**0.6,
                y**-0.4,
                y**2,
                x**3,
                np.arctan2(x, y),
                np.hypot(x, y),
                np.fmod(x, y),
                x % y,
                x // y,
            ]
            found += [
                np.round(x, 2),
                np.clip(x, -1, 1),
                np.logaddexp(x, y),
                np.sign(x),
                x.astype("int32"),
                x.astype("float16"),
            ]
            found += [
                np.asarray(f(x))
                for f in (np.sum, np.mean, np.std, np.var, np.prod, np.cumsum, np.linalg.norm, np.median)
            ]
            for rows, inner, columns in ((1, 17, 6), (3, 11, 4), (4, 8, 8), (64, 17, 33), (17, 100, 1), (5, 5, 5)):
                a, b = (drawn.standard_normal(shape).astype(kind) for shape in ((rows, inner), (inner, columns)))
                found += [a @ b, a @ b[:, 0], a.sum(axis=0), a.sum(axis=1), a.mean(axis=0), np.einsum("ij,jk->k", a, b)]
            square = drawn.standard_normal((7, 7)).astype(kind)
            found += [
                np.linalg.inv(square),
                np.linalg.solve(square, square[0]),
                np.linalg.qr(square)[0],
                np.linalg.det(square),
            ]
            ties = drawn.integers(0, 9, 1003).astype(kind)
            found += [
                np.argsort(ties),
                np.argsort(ties, kind="stable"),
                np.argpartition(ties, 9),
                np.asarray(ties.argmax()),
            ]
    found += promoted()
    sequence = np.random.SeedSequence([7, 1, 2])
    found += [sequence.generate_state(9), sequence.spawn(2)[1].generate_state(3, np.uint64)]
    for draws in (np.random.Generator(np.random.PCG64(sequence)), np.random.default_rng(3), np.random.RandomState(3)):
        some: Any = draws
        found += [
            some.uniform(-1, 1, 9),
            some.normal(0, 2, 9),
            some.standard_normal(99),
            some.exponential(2, 99),
            some.gamma(0.7, 1, 99),
        ]
        found += [some.choice(50, 9), some.choice(50, 9, replace=False), some.choice(4, 9, p=[0.1, 0.2, 0.3, 0.4])]
        found += [
            some.permutation(40),
            some.poisson(3, 99),
            some.beta(0.5, 2, 99),
            some.binomial(9, 0.3, 99),
            some.dirichlet([1, 2, 3]),
        ]
        found += [some.multivariate_normal([0, 1], [[2, 0.3], [0.3, 1]], 5)]
        if isinstance(some, np.random.Generator):
            found += [
                some.random(9),
                some.random(9, np.float32),
                some.standard_normal(99, np.float32),
                some.integers(0, 10**12, 9),
            ]
            found += [
                some.integers(0, 7, 9),
                some.integers(0, 250, 99, np.uint8),
                some.integers(2, size=9),
                some.permuted(np.arange(9)),
            ]
        else:
            found += [some.rand(9), some.randint(0, 7, 9), some.randn(9)]
    return sha_of(found)


def promoted() -> list[Array]:
    """Of types that NumPy 2 promotes by what they are, and NumPy 1 by their values as well."""
    third, three = np.float32(1) / np.float32(3), np.array([1, 2, 3], np.float32) / np.float32(7)
    values: list[Any] = [
        third + 0.1, third * 3, np.float64(0.1) * third, np.int8(3) + 4, np.clip(third, -2.0, 2.0), three.mean() + 1e-9,
        three + np.float64(0.1), three * np.int64(3), three * 0.1, three + np.array(0.1),
    ]  # fmt: skip
    return [np.asarray(value) for value in values]


def _torch() -> str:
    """Functions, layers and optimizers, forwards and backwards, on the CPU; products of odd sizes among them."""
    import torch
    from torch import nn

    drawn = np.random.Generator(np.random.PCG64(1))
    found: list[Any] = []

    def tensor(*shape: int) -> torch.Tensor:
        return torch.from_numpy(drawn.standard_normal(shape).astype(np.float32)).requires_grad_()

    learned = [x, y] = [tensor(1003), tensor(1003)]
    near = x.clamp(-0.99, 0.99)
    found += [
        f(x)
        for f in (
            torch.exp,
            torch.expm1,
            torch.tanh,
            torch.sigmoid,
            torch.sin,
            torch.cos,
            torch.tan,
            torch.atan,
            torch.erf,
            nn.functional.softplus,
            nn.functional.logsigmoid,
            nn.functional.gelu,
            nn.functional.silu,
            nn.functional.elu,
            nn.functional.mish,
            torch.square,
            torch.digamma,
            torch.lgamma,
        )
    ]
    found += [
        f(x.abs() + 0.01) for f in (torch.sqrt, torch.rsqrt, torch.log, torch.log1p, torch.log2, torch.reciprocal)
    ]
    found += [f(near) for f in (torch.asin, torch.acos, torch.atanh)]
    found += [
        torch.atan2(x, y),
        x.abs() ** y,
        x**2,
        x**3,
        torch.hypot(x, y),
        x / y,
        torch.lerp(x, y, 0.005),
        x.cumsum(0),
    ]
    found += [f(x) for f in (torch.sum, torch.mean, torch.std, torch.var, torch.linalg.vector_norm)]
    table = x[:1000].view(40, 25)
    found += [
        f(table, dim)
        for f in (torch.softmax, torch.log_softmax, torch.logsumexp, torch.cumsum, torch.sum)
        for dim in (0, 1)
    ]
    found += [nn.functional.smooth_l1_loss(x, y), nn.functional.mse_loss(x, y), nn.functional.huber_loss(x, y)]
    found += [nn.functional.cross_entropy(table, torch.arange(40) % 25), table.std(0), table.mean(1)]
    index = torch.from_numpy(drawn.integers(0, 40, 300))
    found += [table.detach().index_select(0, index), torch.zeros(40).index_add(0, index, y[:300].detach())]
    found += [torch.topk(table, 5).values, table.argmax(1), torch.sort(table).indices, (table > 0).sum(1)]
    for rows, inputs, outputs in (
        (1, 17, 6),
        (2, 11, 4),
        (3, 17, 6),
        (8, 11, 4),
        (33, 17, 64),
        (256, 64, 64),
        (16, 300, 7),
    ):
        found.append(nn.functional.linear(tensor(rows, inputs), tensor(outputs, inputs), tensor(outputs)))
    found.append(torch.bmm(tensor(5, 7, 9), tensor(5, 9, 3)))
    found.append(nn.functional.conv2d(tensor(3, 4, 12, 12), tensor(8, 4, 3, 3), tensor(8)))
    found.append(nn.functional.max_pool2d(tensor(2, 3, 9, 9), 3, stride=2, padding=1))
    found.append(nn.functional.layer_norm(tensor(9, 33), (33,)))
    for layer in (nn.LSTM(9, 16), nn.GRU(9, 16)):
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.copy_(tensor(*parameter.shape) * 0.2)
        found.append(layer(tensor(5, 4, 9))[0])
        learned += layer.parameters()
    torch.stack([value.sum() for value in found if value.requires_grad]).sum().backward()
    found += [value.grad for value in learned]
    for optimizer in (torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.SGD):
        weights = nn.Parameter(tensor(1003).detach())
        steps: Any = optimizer
        rule = steps([weights], lr=1e-2)
        for _ in range(3):
            weights.grad = weights.detach().sin()
            rule.step()
        found.append(weights)
    return sha_of([value.detach().numpy() for value in found])


def _zstd() -> str:
    """Bytes of some columns as `daskrl.store.columns` compresses them, and the version of the library that does."""
    import numcodecs.zstd

    codec = numcodecs.zstd.Zstd(level=0)
    drawn = np.random.Generator(np.random.PCG64(2))
    walk = np.cumsum(drawn.integers(-1, 2, (300, 84)), axis=0)
    columns = [
        np.zeros(100_000, np.uint8),
        drawn.integers(0, 4, 4096),
        drawn.random(4096) < 0.02,
        drawn.integers(0, 256, 30_000, np.uint8),
        walk.astype(np.uint8),
        walk.astype(np.int64),
        np.repeat(walk.astype(np.uint8), 30, axis=0),
        np.arange(1, dtype=np.int64),
    ]
    version = str(getattr(numcodecs.zstd, "VERSION_STRING", ""))
    return _sha(version.encode(), *(codec.encode(np.ascontiguousarray(column)) for column in columns))


_PROBES: Mapping[str, Callable[[], str]] = {"python": _python, "numpy": _numpy, "torch": _torch, "zstd": _zstd}


def sha_of(arrays: list[Any]) -> str:
    return _sha(*(f"{a.dtype} {a.shape}".encode() + np.ascontiguousarray(a).tobytes() for a in map(np.asarray, arrays)))


def _sha(*parts: bytes) -> str:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part)
    return sha.hexdigest()


# -- comparing -----------------------------------------------------------------------------------------------------


def other_versions(info: Introduction, run: ArithmeticRecord) -> tuple[list[str], list[str]]:
    """Packages of other versions than the run's, as ``name version (run: version)``: those that may matter, and others.

    Others are those whose differences a probe would see, and which gave the same: of Python and NumPy versions with the
    same first number, of torch another build of the same release (``2.13.0+cpu``, ``2.13.0+cu130``), and
    numcodecs. A record of a run made before there were probes has none, and there every version counts.
    """
    matter: list[str] = []
    others: list[str] = []
    for name, version in run["versions"].items():
        here = info["versions"].get(name)
        if here != version:
            seen = _SEEN_BY.get(name)
            same = seen is not None and _probe(info, seen) is not None and _probe(info, seen) == _probe(run, seen)
            tolerated = same and here is not None and _alike(name, here, version)
            (others if tolerated else matter).append(f"{name} {here} (run: {version})")
    return matter, others


def other_results(info: Introduction, run: ArithmeticRecord) -> list[str]:
    """What gives other bits here than in the run, in words."""
    known = {*(info.get("probes") or {}), *(run.get("probes") or {})}
    both = [name for name in sorted(known) if _probe(info, name) is not None and _probe(run, name) is not None]
    return [_WHAT.get(name, name) for name in both if _probe(info, name) != _probe(run, name)]


def _probe(record: Introduction | ArithmeticRecord, name: str) -> str | None:
    return (record.get("probes") or {}).get(name)


def _alike(name: str, one: str, other: str) -> bool:
    """Whether versions are so near each other that a probe tells them apart, if a run could."""
    if name == "torch":
        return one.partition("+")[0] == other.partition("+")[0]
    return name == "numcodecs" or one.partition(".")[0] == other.partition(".")[0]


def reference(info: Introduction, device: str) -> ArithmeticRecord:
    """The arithmetic of a run, from what its first learner said when it joined."""
    if device == "auto":
        device = "cuda" if info["cuda"] else "cpu"
    if device == "cuda" and not info["cuda"]:
        raise WorkerMismatchError(
            f"device='cuda' was asked for, but torch finds no CUDA device where the learner runs ({info['host']}). "
            "Start the learner's worker on a GPU node, or pass device='cpu'."
        )
    return {
        "kind": "arithmetic",
        "device": device,
        "device_name": info["cuda_name"] if device == "cuda" else "cpu",
        "cpu": info["cpu"],
        "cuda": info["cuda"],
        "probes": info["probes"],
        "versions": info["versions"],
        "settings": info["settings"],
    }


def mismatch(info: Introduction, run: ArithmeticRecord, *, learns: bool) -> str | None:
    """How a process differs from what the run computes with, and what would align it; None where it does not."""
    changed, alike = other_versions(info, run)
    if changed:
        return f"other packages: {', '.join(changed)}. Install the run's versions there."
    differs = ["its fixed network"] * (info["cpu"] != run["cpu"]) + other_results(info, run)
    if differs:
        versions = f" It has {', '.join(alike)}." if alike else ""
        return (
            f"other arithmetic: {', and '.join(differs)} gives other bits.{versions} It has "
            f"{_as_text(info['settings'])}; the run has {_as_text(run['settings'])}. Start it with the run's "
            f"settings and versions; between processors of different kinds, start all with {_ALIGNING} and a new run."
        )
    if learns and run["device"] == "cuda" and info["cuda"] != run["cuda"]:
        return (
            f"another GPU computation: it has {info['cuda_name']}, the run learned on {run['device_name']}. Start "
            "the learner on the same kind of GPU."
        )
    return None


# What has processors of different kinds compute the same: torch, MKL and oneDNN; OpenBLAS and NumPy.
_ALIGNING = (
    "ATEN_CPU_CAPABILITY=avx2 MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=AVX2 OPENBLAS_CORETYPE=Haswell "
    "NPY_DISABLE_CPU_FEATURES='X86_V4 AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR'"
)


def note_on(info: Introduction, run: ArithmeticRecord, who: str) -> VersionsRecord | None:
    """The record of a process whose versions are not the run's and whose bits are; None where they are the run's."""
    _, alike = other_versions(info, run)
    if not alike:
        return None
    return {
        "kind": "versions",
        "who": who,
        "host": info.get("host"),
        "versions": dict(info["versions"]),
        "alike": alike,
    }


def _as_text(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in sorted(settings.items()))
