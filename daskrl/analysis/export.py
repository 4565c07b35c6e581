"""Policies as files for other programs, each read back and compared before it counts as written."""

from __future__ import annotations

import copy
import errno
import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from daskrl import extras, seeding
from daskrl.algorithms.base import Algorithm, Moment, Setup
from daskrl.algorithms.greedy import ActingModule, GreedyModule, tensors
from daskrl.arithmetic import aligned_all, pinned, undrawn
from daskrl.envs.actions import Action
from daskrl.envs.spaces import by_leaf
from daskrl.errors import ConfigError, ExportError
from daskrl.records import Array
from daskrl.store.posix import write_atomic
from daskrl.store.weights import safetensors

FORMATS = {"onnx": ".onnx", "torchscript": ".pt", "safetensors": ".safetensors"}
"""Formats, and how their files' names end."""

_COMPARED = 64  # stored observations
_TOLERANCE = 1e-4  # of the largest output: other libraries add in another order


class Exportable(Protocol):
    """What is written to a file: a `daskrl.Policy`."""

    algorithm: Algorithm
    setup: Setup
    weights: dict[str, Array]
    about: dict[str, str]
    bounds: Any
    network: Any

    @property
    def module(self) -> GreedyModule: ...

    @property
    def state_shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def seen(self, count: int) -> Mapping[str, Array]: ...

    def taken(self, chosen: Action) -> Action: ...


Run = Callable[[Mapping[str, Array]], Sequence[Array]]
"""Inputs by name to what the file gives: the action, what was decided by, and states."""


@dataclass(frozen=True)
class Exported:
    """A file, and how it compared when it was read back.

    Attributes
    ----------
    path, format : the file.
    inputs, outputs : names; of each the first axis is the batch, of any length. Empty of weights alone.
    compared : observations that both acted on; those stored by the run.
    same_actions : how many of their actions were the same: of a Box, within ``tolerance``. Others are ties.
    largest_difference : of any output, to that of the run's policy.
    tolerance : how large it may be.
    """

    path: Path
    format: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    compared: int
    same_actions: int
    largest_difference: float
    tolerance: float

    def rows(self) -> dict[str, Any]:
        """What tables show, name -> value."""
        rows: dict[str, Any] = {
            "format": self.format,
            "same actions": f"{self.same_actions} of {self.compared} stored observations",
            "largest difference": self.largest_difference,
        }
        if self.inputs:
            rows |= {"inputs": ", ".join(self.inputs), "outputs": ", ".join(self.outputs)}
        return rows

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "path": str(self.path), "inputs": list(self.inputs), "outputs": list(self.outputs)}


def export(policy: Exportable, path: Path, format: str | None = None) -> Exported:
    """Write a policy to a file, read it back, and compare what it does with the run's policy.

    Parameters
    ----------
    path : of the file; it is written over.
    format : ``"onnx"`` and ``"torchscript"`` have the whole greedy policy, from observations (and recurrent states) to
        ``action``, what it was decided by (``output``), and states (``after.NAME``), for batches of any size;
        ``"safetensors"`` has the weights by name, as the store has them. By the name of ``path`` where left out.

    Raises
    ------
    ConfigError
        The algorithm cannot be exported so; the message says what can. Or there can be no file at ``path``.
    ExportError
        The file acts otherwise than the run's policy; it is removed.
    """
    if format is None:
        format = {suffix: name for name, suffix in FORMATS.items()}.get(path.suffix)
    if format not in FORMATS:
        raise ConfigError(f"format: expected one of {', '.join(FORMATS)}, got {format or path.suffix!r}.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        return _weights(policy, path) if format == "safetensors" else _module(policy, path, format)
    except OSError as error:
        why = error.strerror or error
        raise ConfigError(f"export: expected a path where a file can be written, got {str(path)!r}: {why}.") from error


def _module(policy: Exportable, path: Path, format: str) -> Exported:
    """The whole greedy policy."""
    module = policy.module
    acting = copy.deepcopy(ActingModule(module, policy.setup, policy.bounds)).eval().requires_grad_(False)
    inputs = _inputs(policy)
    outputs = ["action", "output", *(f"after.{name}" for name in module.states)]
    write, read = (_write_onnx, _read_onnx) if format == "onnx" else (_write_torchscript, _read_torchscript)
    about = {**policy.about, "inputs": json.dumps(module.inputs), "outputs": json.dumps(outputs)}
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with pinned(), torch.no_grad():
            write(acting, tensors(inputs, module.inputs), module.inputs, outputs, about, beside)
            compared = _compare(policy, acting, inputs, read(beside, module.inputs))
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return Exported(path, format, tuple(module.inputs), tuple(outputs), **compared)


def _inputs(policy: Exportable) -> dict[str, Array]:
    """Observations that the run stored and recurrent states, by the names of the module's inputs."""
    inputs = dict(policy.seen(_COMPARED))
    count = len(next(iter(inputs.values())))
    if count == 1:  # so that no axis of length 1 is taken for a fixed one
        inputs = {name: np.repeat(array, 2, axis=0) for name, array in inputs.items()}
        count = 2
    random = seeding.generator(0, "evaluate")
    for name, shape in policy.state_shapes.items():
        states = random.uniform(-0.5, 0.5, (count, *shape)).astype(np.float32)
        states[: count // 2] = 0
        inputs[name] = states
    return inputs


def _compare(policy: Exportable, acting: ActingModule, inputs: Mapping[str, Array], run: Run) -> dict[str, Any]:
    """Compare a file with the run's policy, in batches of one, of two and of all."""
    count = len(next(iter(inputs.values())))
    for rows in (slice(count - 1, count), slice(0, 2), slice(0, count)):
        compared = _compare_batch(policy, acting, {name: array[rows] for name, array in inputs.items()}, run)
    return compared


def _compare_batch(policy: Exportable, acting: ActingModule, inputs: Mapping[str, Array], run: Run) -> dict[str, Any]:
    given = run(inputs)
    expected = [output.numpy() for output in acting(*tensors(inputs, acting.greedy.inputs))]
    for place, (one, other) in enumerate(zip(given, expected, strict=True)):
        if one.shape != other.shape or one.dtype != other.dtype:
            raise ExportError(
                f"output {place} of the file is {one.dtype}{list(one.shape)}, the policy's {other.dtype}"
                f"{list(other.shape)}. The file was not written."
            )
    scale = max(1.0, *(float(np.abs(np.nan_to_num(x, neginf=0)).max(initial=0)) for x in expected[1:]))
    tolerance, largest = _TOLERANCE * scale, 0.0
    for one, other in zip(given[1:], expected[1:], strict=True):
        differs = one != other  # what is infinite in both does not
        largest = max(largest, float(np.abs(one[differs] - other[differs]).max(initial=0)))
    actions = _actions(policy, policy.network, inputs)
    same = np.array([_alike(one, other, tolerance) for one, other in zip(given[0], actions, strict=True)])
    if not largest <= tolerance or not (same | _ties(policy, expected[1], tolerance)).all():
        raise ExportError(
            f"read back, the policy acts otherwise: {int((~same).sum())} of {len(same)} actions differ, outputs by up "
            f"to {largest:.3g}, expected at most {tolerance:.3g}. The file was not written. Does act() of "
            f"{type(policy.algorithm).__name__} decide by what its outputs() gives?"
        )
    return {
        "compared": len(same), "same_actions": int(same.sum()), "largest_difference": largest, "tolerance": tolerance,
    }  # fmt: skip


def _actions(policy: Exportable, network: Any, inputs: Mapping[str, Array]) -> Action:
    """What the run's algorithm itself does greedily."""
    observation = aligned_all({leaf.name: inputs[leaf.name] for leaf in policy.setup.spec.observation})
    state = aligned_all({name: inputs[name].copy() for name in policy.state_shapes})
    moment = Moment(observation, seeding.generator(1, "evaluate"), greedy=True, state=state)
    with torch.inference_mode():
        chosen = policy.algorithm.act(network, moment)
    return policy.taken(chosen[0] if isinstance(chosen, tuple) else chosen)


def _alike(one: Any, other: Any, tolerance: float) -> bool:
    return bool(np.all(np.abs(np.subtract(one, other, dtype=np.float64)) <= (tolerance if np.ndim(one) else 0)))


def _ties(policy: Exportable, decided: Array, tolerance: float) -> Array:
    """Where two discrete actions are as good as each other: which is the largest is then decided by the last bits."""
    if policy.setup.action.kind != "discrete" or decided.shape[1] < 2:
        return np.zeros(len(decided), np.bool_)
    best = np.sort(decided, axis=1)[:, -2:]
    ties: Array = best[:, 1] - best[:, 0] <= tolerance
    return ties


# -- weights ------------------------------------------------------------------------------------------------


def _weights(policy: Exportable, path: Path) -> Exported:
    from safetensors.numpy import load

    data = safetensors(policy.weights, policy.about)
    back = load(data)
    inputs = _inputs(policy)
    with pinned(), undrawn():
        network = policy.algorithm.policy(policy.setup)
        policy.algorithm.load(network, aligned_all(back))
        actions, read = _actions(policy, policy.network, inputs), _actions(policy, network, inputs)
    leaves = policy.setup.spec.action
    both = [(one, other) for (_, one), (_, other) in zip(by_leaf(leaves, actions), by_leaf(leaves, read), strict=True)]
    same = [all(np.array_equal(one[n], other[n]) for one, other in both) for n in range(len(both[0][0]))]
    if not all(same):
        raise ExportError(
            f"read back, {len(same) - sum(same)} of {len(same)} actions differ. Nothing was written. Does act() of "
            f"{type(policy.algorithm).__name__} use anything but its weights?"
        )
    write_atomic(path, data)
    return Exported(path, "safetensors", (), (), len(same), len(same), 0.0, 0.0)


# -- TorchScript --------------------------------------------------------------------------------------------


def _write_torchscript(
    acting: ActingModule, arguments: tuple[torch.Tensor, ...], inputs: Sequence[str], outputs: Sequence[str],
    about: Mapping[str, str], path: Path,
) -> None:  # fmt: skip
    with warnings.catch_warnings():
        # torch advises its newer formats, and says of each constant that it is one.
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(acting, arguments, check_trace=False)
        buffer = io.BytesIO()
        torch.jit.save(traced, buffer, _extra_files={"daskrl.json": json.dumps(about)})
    path.write_bytes(buffer.getvalue())


def _read_torchscript(path: Path, inputs: Sequence[str]) -> Run:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = torch.jit.load(io.BytesIO(path.read_bytes()))

    def run(given: Mapping[str, Array]) -> Sequence[Array]:
        return [output.numpy() for output in loaded(*tensors(given, inputs))]

    return run


# -- ONNX ---------------------------------------------------------------------------------------------------


def _write_onnx(
    acting: ActingModule, arguments: tuple[torch.Tensor, ...], inputs: Sequence[str], outputs: Sequence[str],
    about: Mapping[str, str], path: Path,
) -> None:  # fmt: skip
    with extras.needed("export", "format onnx needs onnx, onnxscript and onnxruntime"):
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it tells of packages that nobody needs here
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                acting, arguments, dynamo=True, input_names=list(inputs), output_names=list(outputs), verbose=False,
                dynamic_shapes=(tuple({0: torch.export.Dim.DYNAMIC} for _ in arguments),),
            )  # fmt: skip
    finally:
        logger.setLevel(level)
    assert program is not None
    model = program.model_proto
    for name, value in about.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = f"daskrl.{name}", value
    path.write_bytes(model.SerializeToString())


def _read_onnx(path: Path, inputs: Sequence[str]) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    known = {one.name for one in session.get_inputs()}  # what the network does not look at is no input

    def run(given: Mapping[str, Array]) -> Sequence[Array]:
        outputs: Sequence[Array] = session.run(None, {name: given[name] for name in inputs if name in known})
        return outputs

    return run
