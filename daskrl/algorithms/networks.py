"""Networks: what observations pass through, and their parameters as one flat vector."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from daskrl import arithmetic
from daskrl.envs.planes import planes
from daskrl.envs.spaces import ACTION_MASK, Leaf, SpaceSpec
from daskrl.errors import ConfigError
from daskrl.records import Array

# Every parameter begins at a multiple of 64 bytes, so that a matrix product meets the same alignment, and
# gives the same bits, wherever it runs.
_ALIGN = 16


class Flat:
    """A module whose parameters are views of one vector, and whose gradients are views of another.

    An optimizer step is then one operation instead of one for each parameter, and a copy of all of them another.

    Attributes
    ----------
    weights, gradient : ``[P]`` float32.
    """

    def __init__(self, module: nn.Module, device: torch.device | str = "cpu") -> None:
        require_flat(module)
        sizes = [-(-parameter.numel() // _ALIGN) * _ALIGN for parameter in module.parameters()]
        self.weights = torch.zeros(sum(sizes), dtype=torch.float32, device=device)
        self.gradient = torch.zeros(sum(sizes), dtype=torch.float32, device=device)
        self._places: dict[int, slice] = {}
        offset = 0
        for size, parameter in zip(sizes, module.parameters(), strict=True):
            here = slice(offset, offset + parameter.numel())
            self.weights[here] = parameter.detach().reshape(-1).to(device)
            parameter.data = self.weights[here].view(parameter.shape)
            if parameter.requires_grad:
                parameter.grad = self.gradient[here].view(parameter.shape)
            self._places[id(parameter)] = slice(offset, offset + size)
            offset += size
        self.module = module

    def named(self, module: nn.Module) -> dict[str, Array]:
        """Every parameter of a submodule by name, in one copy of them all."""
        weights = self.weights.to("cpu", copy=True).numpy()
        found = {}
        for name, parameter in module.named_parameters():
            first = self._places[id(parameter)].start
            found[name] = weights[first : first + parameter.numel()].reshape(parameter.shape)
        return found

    def part(self, module: nn.Module) -> slice:
        """Where the parameters of a submodule are; they lie together."""
        places = [self._places[id(parameter)] for parameter in module.parameters()]
        if any(one.stop != other.start for one, other in itertools.pairwise(places)):
            raise ValueError(f"the parameters of {type(module).__name__} do not lie together")
        return slice(places[0].start, places[-1].stop)


def require_flat(module: nn.Module) -> None:
    """Raise `ConfigError` unless float32 parameters are all that decides what a module computes."""
    if any(True for _ in module.buffers()):
        raise ConfigError(
            f"{type(module).__name__} has buffers (batch normalisation, running statistics); they are not "
            "part of the published weights. Use layer normalisation, or parameters without gradient."
        )
    for name, parameter in module.named_parameters():
        if parameter.dtype != torch.float32:
            raise ConfigError(f"parameter {name} is {parameter.dtype}; expected torch.float32.")
    for name, part in module.named_modules():
        drops = part.p if isinstance(part, _DropoutNd) else 0.0
        drops = part.dropout if isinstance(part, nn.RNNBase | nn.MultiheadAttention) else drops
        if drops:
            raise ConfigError(
                f"{name} drops out with p = {drops}, drawn from torch's own generator, which is the whole process's "
                "and not the run's. Set it to 0, or leave it out."
            )


def load_named(module: nn.Module, values: Mapping[str, Array]) -> None:
    """Take every parameter by name, as `Flat.named` returned them."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            value = np.asarray(values[name], order="C")  # ascontiguousarray gives () an axis
            parameter.copy_(torch.from_numpy(value))


def initialise(module: nn.Module, random: np.random.Generator) -> nn.Module:
    """Draw the weights and biases of all layers from ``U(-b, b)``, ``b = fan_in**-0.5`` (an LSTM's: its features).

    Torch's own default, but from a derived generator: torch's global one belongs to the whole process. A module
    with a method ``initialise(random)`` draws its own parameters, those of its layers included.
    """
    with torch.no_grad():
        _initialise(module, random)
    return module


def _initialise(module: nn.Module, random: np.random.Generator) -> None:
    own = getattr(module, "initialise", None)
    if own is not None:
        own(random)
        return
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        bound = (module.weight[0].numel()) ** -0.5
    elif isinstance(module, nn.LSTM):
        bound = module.hidden_size**-0.5
    else:
        for child in module.children():
            _initialise(child, random)
        return
    for parameter in module.parameters():
        uniform(parameter, bound, random)


def uniform(parameter: torch.Tensor, bound: float, random: np.random.Generator) -> None:
    """Draw the values of a parameter from ``U(-bound, bound)``."""
    drawn = random.uniform(-bound, bound, size=tuple(parameter.shape))
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(drawn.astype(np.float32)))


def orthogonal(parameter: torch.Tensor, gain: float, random: np.random.Generator) -> None:
    """Draw a weight as an orthogonal matrix times ``gain`` (Saxe et al. 2014, https://arxiv.org/abs/1312.6120)."""
    rows, columns = parameter.shape[0], parameter[0].numel()
    drawn = random.standard_normal((max(rows, columns), min(rows, columns)))
    q, r = np.linalg.qr(drawn)
    q = q * np.sign(np.diag(r))
    matrix = (q.T if rows < columns else q) * gain
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(matrix.astype(np.float32)).view(parameter.shape))


class Vector(nn.Module):
    """Anything that is not convolved, as one float vector. ``[B, ...] -> [B, F]``.

    Discrete values become one-hot; others are taken as they are, whatever their bounds.
    """

    def __init__(self, leaf: Leaf, frame_stack: int) -> None:
        super().__init__()
        self.leaf = leaf
        self.out_features = leaf.flat_size * frame_stack

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.leaf.kind not in ("discrete", "multi_discrete"):
            return x.reshape(x.shape[0], -1).to(torch.float32)
        lead = x.shape[: x.dim() - len(self.leaf.shape)]
        values = x.reshape(*lead, -1).to(torch.int64)  # [B, (K,) elements]
        parts = [
            nn.functional.one_hot(values[..., i] - start, n)
            for i, (n, start) in enumerate(zip(self.leaf.sizes, self.leaf.start, strict=True))
        ]
        return torch.cat(parts, dim=-1).reshape(x.shape[0], -1).to(torch.float32)


CONVOLUTIONS = ("nature", "impala")


class Convolutions(nn.Module):
    """Images and other grids to features. ``[B, (K,) H, W(, C)]`` or ``[B, (K,) C, H, W]`` numbers ``-> [B, F]``.

    Parameters
    ----------
    kind : ``"nature"``, the three layers of Mnih et al. (2015, https://doi.org/10.1038/nature14236), or for images
        smaller than 36 x 36 one layer of 16 filters of 3 x 3 (Young and Tian 2019,
        https://arxiv.org/abs/1903.03176); ``"impala"``, the residual network of Espeholt et al. (2018,
        https://arxiv.org/abs/1802.01561, figure 3 right): sections of 16, 32 and 32 filters.
    channels : see `daskrl.envs.planes.planes`; how values are scaled, too.
    """

    def __init__(self, leaf: Leaf, frame_stack: int, kind: str = "nature", channels: str = "auto") -> None:
        super().__init__()
        found = planes(leaf, channels)
        if found is None:
            raise ConfigError(
                f"{leaf.name} of shape {leaf.shape} and dtype {leaf.dtype} is a vector and not convolved. Say which of "
                "its three axes is the channels': channels='first' or channels='last'."
            )
        depth, height, width = found.image
        self.channels_last = found.channels_last
        self.image = (depth * frame_stack, height, width)
        self.low, self.scale = (_of_frames(values, frame_stack) for values in (found.low, found.scale))
        layers: Sequence[nn.Module]
        if kind == "impala":
            sizes = itertools.pairwise((self.image[0], 16, 32, 32))
            layers = [*(Section(inputs, filters) for inputs, filters in sizes), nn.ReLU()]
        elif min(height, width) >= 36:
            layers = [
                nn.Conv2d(self.image[0], 32, 8, 4), nn.ReLU(),
                nn.Conv2d(32, 64, 4, 2), nn.ReLU(),
                nn.Conv2d(64, 64, 3, 1), nn.ReLU(),
            ]  # fmt: skip
        else:
            layers = [nn.Conv2d(self.image[0], 16, 3, 1), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Flatten())
        with torch.no_grad():
            self.out_features = self.layers(torch.zeros(1, *self.image)).shape[1]

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> nn.Module:
        """Take the bounds along to another device. They are no parameters, which would be published."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.low, self.scale = (fn(x) if isinstance(x, torch.Tensor) else x for x in (self.low, self.scale))
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.channels_last:
            x = x.movedim(-1, -3)
        x = x.reshape(x.shape[0], *self.image).to(torch.float32)
        if isinstance(self.low, torch.Tensor) or self.low:
            x = x - self.low
        features: torch.Tensor = self.layers(x * self.scale)
        return features


def _of_frames(values: float | Array, count: int) -> float | torch.Tensor:
    """Of one frame those of several; one number stays one."""
    return values if isinstance(values, float) else torch.tensor(np.tile(values, (count, 1, 1)), dtype=torch.float32)


class Section(nn.Module):
    """A convolution, a max-pooling that halves height and width, and two residual blocks (figure 3 of IMPALA)."""

    def __init__(self, inputs: int, filters: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, filters, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.ReLU(), nn.Conv2d(filters, filters, 3, padding=1),
                nn.ReLU(), nn.Conv2d(filters, filters, 3, padding=1),
            )
            for _ in range(2)
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(self.first(x), 3, stride=2, padding=1)
        for block in self.blocks:
            x = x + block(x)
        return x


def masked(values: torch.Tensor, observation: Mapping[str, torch.Tensor], low: float = -math.inf) -> torch.Tensor:
    """Values ``[..., A]`` of actions, those that may not be taken set to ``low``.

    Where none may be taken, as at the end of some games, the values stay as they are: a truncated episode bootstraps
    from its last observation, and must not from ``low``.
    """
    mask = observation.get(ACTION_MASK)
    if mask is None:
        return values
    if mask.dim() > values.dim():  # stacked frames: the newest counts
        mask = mask[..., -1, :]
    forbidden = mask == 0
    return values.masked_fill(forbidden & ~forbidden.all(dim=-1, keepdim=True), low)


def require_mask(spec: SpaceSpec) -> None:
    """Raise `ConfigError` where an action mask has not one element for each action of a ``Discrete`` space.

    Or where it is all there is to observe.
    """
    actions = spec.one_action.sizes[0]
    if all(leaf.name == ACTION_MASK for leaf in spec.observation):
        raise ConfigError(f"{ACTION_MASK}: expected an observation beside it, got the mask alone. Add a constant one.")
    for leaf in spec.observation:
        if leaf.name == ACTION_MASK and leaf.shape != (actions,):
            raise ConfigError(
                f"{ACTION_MASK}: expected shape ({actions},), a number for each of the {actions} actions, got "
                f"{leaf.shape}. Mend it in a wrapper, or give the key another name."
            )


class Encoder(nn.Module):
    """All leaves of an observation but `ACTION_MASK` to one feature vector. ``{leaf: [B, ...]} -> [B, F]``.

    Parameters
    ----------
    convolutions : see `Convolutions`; what images and other planes pass through.
    channels : see `daskrl.envs.planes.planes`; what is convolved, and along which axes.

    Attributes
    ----------
    out_features : F.
    """

    def __init__(self, spec: SpaceSpec, frame_stack: int, convolutions: str = "nature", channels: str = "auto") -> None:
        super().__init__()
        leaves = [leaf for leaf in spec.observation if leaf.name != ACTION_MASK]
        self.names = [leaf.name for leaf in leaves]
        self.parts = nn.ModuleList(
            Convolutions(leaf, frame_stack, convolutions, channels)
            if planes(leaf, channels)
            else Vector(leaf, frame_stack)
            for leaf in leaves
        )
        self.out_features = sum(part.out_features for part in self.parts)  # type: ignore[misc]

    def forward(self, observation: Mapping[str, torch.Tensor]) -> torch.Tensor:
        features = [part(observation[name]) for name, part in zip(self.names, self.parts, strict=True)]
        return features[0] if len(features) == 1 else torch.cat(features, dim=1)


def mlp(inputs: int, hidden: Sequence[int], outputs: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers with an activation between them. ``[B, inputs] -> [B, outputs]``."""
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(inputs, size), activation()]
        inputs = size
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


@dataclass
class States:
    """Recurrent states of B sequences of T steps, at the S steps where a state is needed again.

    A state is kept after each step whose next step begins an episode in any of the sequences, and after the last step.

    Attributes
    ----------
    steps : ``[S]`` int64, rising. states : ``[S, B, 2, H]``.
    """

    steps: torch.Tensor
    states: torch.Tensor

    @property
    def last(self) -> torch.Tensor:
        """After the last step, ``[B, 2, H]``."""
        return self.states[-1]

    def at(self, step: torch.Tensor, lane: torch.Tensor) -> torch.Tensor:
        """After ``[M]`` of the steps of as many sequences, ``[M, 2, H]``."""
        return self.states[torch.searchsorted(self.steps, step), lane]


class LSTM(nn.Module):
    """An LSTM (Hochreiter and Schmidhuber 1997, https://doi.org/10.1162/neco.1997.9.8.1735) over T steps.

    ``forward(features [T, B, F], state [B, 2, H], begins [T, B])``: ``state`` holds h and c before the first step; they
    are zeros again at steps that begin an episode. Without ``begins`` none does. Steps between such are one call of
    torch's LSTM.

    Returns
    -------
    outputs ``[T, B, H]``, and `States`.
    """

    def __init__(self, inputs: int, features: int) -> None:
        super().__init__()
        self.layer = nn.LSTM(inputs, features)

    def forward(
        self, features: torch.Tensor, state: torch.Tensor, begins: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, States]:
        h, c = state.transpose(0, 1).unsqueeze(1).contiguous()  # [1, B, H] each
        anew = set() if begins is None else set(begins.any(dim=1).nonzero().flatten().tolist())
        edges = sorted({0, *anew, len(features)})
        outputs, states = [], []
        for first, stop in itertools.pairwise(edges):
            if begins is not None and first in anew:
                goes_on = (~begins[first]).to(h.dtype).unsqueeze(1)
                h, c = h * goes_on, c * goes_on
            output, (h, c) = self.layer(features[first:stop], (h, c))
            outputs.append(output)
            states.append(torch.stack((h[0], c[0]), dim=1))
        steps = torch.tensor(edges[1:], device=features.device) - 1
        return torch.cat(outputs), States(steps, torch.stack(states))


def convolved(spec: SpaceSpec, channels: str) -> bool:
    """Whether any leaf of an observation passes convolutions."""
    return any(planes(leaf, channels) for leaf in spec.observation if leaf.name != ACTION_MASK)


def normalised(spec: SpaceSpec, channels: str) -> list[Leaf]:
    """Leaves that `Normalise` shifts and scales: those with values on a scale, what is convolved not among them."""
    return [
        leaf
        for leaf in spec.observation
        if leaf.kind == "box" and planes(leaf, channels) is None and leaf.name != ACTION_MASK
    ]


class Normalise(nn.Module):
    """Observations less their mean over their deviation, clipped to [-10, 10]; both are parameters without gradient."""

    def __init__(self, spec: SpaceSpec, channels: str = "auto") -> None:
        super().__init__()
        self.shapes = {leaf.name: leaf.shape for leaf in normalised(spec, channels)}
        self.means, self.deviations = (
            nn.ParameterList(nn.Parameter(fill(shape), requires_grad=False) for shape in self.shapes.values())
            for fill in (torch.zeros, torch.ones)
        )

    def set(self, name: str, mean: Array, deviation: Array) -> None:
        """Take the moments of one leaf."""
        place = list(self.shapes).index(name)
        for parameter, value in ((self.means[place], mean), (self.deviations[place], deviation)):
            parameter.copy_(torch.from_numpy(value.astype(np.float32)).view(parameter.shape))

    def forward(self, observation: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        result = dict(observation)
        for name, mean, deviation in zip(self.shapes, self.means, self.deviations, strict=True):
            x = observation[name]
            if x.dtype != torch.float64:
                x = x.to(torch.float32)  # bits know no subtraction
            result[name] = ((x - mean) / deviation).clamp(-10, 10)
        return result


class QNetwork(nn.Module):
    """Action values of a discrete space. ``{leaf: [B, ...]} -> [B, A]``.

    With ``dueling``: ``q = v + a - mean(a)`` (Wang et al. 2016, https://arxiv.org/abs/1511.06581, equation 9).

    Parameters
    ----------
    encoder : an `Encoder`, or any module that takes what it takes and has ``out_features``.
    """

    def __init__(self, encoder: Encoder, actions: int, hidden: Sequence[int], dueling: bool = False) -> None:
        super().__init__()
        self.encoder, features = encoder, encoder.out_features
        self.advantage = mlp(features, hidden, actions)
        self.value = mlp(features, hidden, 1) if dueling else None

    def forward(self, observation: Mapping[str, torch.Tensor]) -> torch.Tensor:
        features = self.encoder(observation)
        advantage: torch.Tensor = self.advantage(features).float()
        if self.value is None:
            return advantage
        value: torch.Tensor = self.value(features).float()
        return value + advantage - advantage.mean(dim=1, keepdim=True)


def tensors(observation: Mapping[str, Array]) -> dict[str, torch.Tensor]:
    """Observations as tensors.

    Copies: torch aligns its memory to 64 bytes, NumPy to 16, and a matrix product's bits may depend on it.
    """
    return {name: torch.tensor(array) for name, array in observation.items()}


Normal = Callable[..., torch.Tensor]
"""Standard normal numbers, float32: ``normal(2, 3)`` is ``[2, 3]``."""


def normals(random: np.random.Generator) -> Normal:
    """Standard normal numbers of a generator, on the CPU."""
    return lambda *shape: torch.from_numpy(random.standard_normal(shape, np.float32))


def fingerprint(device: str = "cpu") -> str:
    """A hash of what fixed networks give on this machine: the arithmetic of acting and of learning.

    Two machines with the same fingerprint take part in the same run. It covers matrix products and
    convolutions forwards and backwards, an optimizer step, the functions that policies use, and what NumPy adds.
    """
    import hashlib

    from daskrl.seeding import generator

    sha = hashlib.sha256()
    random = generator(0, "initialise", 0)
    with arithmetic.pinned(device=device), arithmetic.undrawn():
        for image in (False, True):
            leaf = Leaf("x", "box", (40, 40), "uint8") if image else Leaf("x", "box", (8,), "float32")
            network = QNetwork(Encoder(SpaceSpec((leaf,), ()), 1), 4, [256, 256], dueling=True)
            flat = Flat(initialise(network, random), device)
            optimizer = torch.optim.Adam([flat.weights], lr=1e-3, fused=True)
            for batch in (1, 4, 32, 64, 256):
                values = random.random((batch, 1, *leaf.shape)) * (255 if image else 1)
                x = torch.from_numpy(values.astype(leaf.dtype)).to(device)
                q = network({"x": x})
                nn.functional.smooth_l1_loss(q, torch.ones_like(q)).backward()
                flat.weights.grad = flat.gradient
                optimizer.step()
                flat.gradient.zero_()
                sha.update(q.detach().cpu().numpy().tobytes())
            sha.update(flat.weights.cpu().numpy().tobytes())
        x = torch.from_numpy(random.standard_normal(1000).astype(np.float32)).to(device)
        for value in (x.tanh(), x.exp(), nn.functional.softplus(x), x.view(10, 100).log_softmax(1), x.sigmoid()):
            sha.update(value.cpu().numpy().tobytes())
        x64 = random.random(1000)
        sha.update((x64**0.6).tobytes() + (x64**-0.4).tobytes())
        weight = torch.empty(64, 100)
        orthogonal(weight, 1.0, random)
        sha.update(weight.numpy().tobytes())
    return sha.hexdigest()


def arithmetic_settings() -> dict[str, Any]:
    """The settings that decide which instructions torch uses, for messages."""
    import os

    names = ("ATEN_CPU_CAPABILITY", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
    found: dict[str, Any] = {name: os.environ[name] for name in names if name in os.environ}
    found["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    found["mkl"] = torch.backends.mkl.is_available()
    return found
