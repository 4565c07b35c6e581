"""What learners that use torch share: networks as flat vectors, optimizers, and their state by name."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from daskrl import arithmetic
from daskrl.algorithms import networks
from daskrl.algorithms.base import Setup, Weights
from daskrl.algorithms.networks import CONVOLUTIONS, LSTM, Encoder, Flat
from daskrl.config import require_types
from daskrl.envs.planes import CHANNELS
from daskrl.errors import ConfigError
from daskrl.names import Suggesting, suggests
from daskrl.records import Array

_COMPILED = 1 << 16  # sizes and networks that may be compiled in a process
_NEGLIGIBLE = 1e-36  # of a running average: beside an Adam's epsilon of 1e-10 or more it moves no weight
_SETTLE = 16  # updates; in them a running average that falls by a tenth in each does not get from there to 1e-38

MakeOptimizer = Callable[[list[torch.Tensor]], torch.optim.Optimizer]


@suggests
@dataclass(frozen=True)
class TorchSettings(Suggesting):
    """Settings of networks, and of how a learner computes them.

    Parameters
    ----------
    convolutions : of images and other grids, ``"nature"`` or ``"impala"``, see `daskrl.networks.Convolutions`.
    precision : ``"float32"`` (on a GPU torch computes convolutions in TF32), or ``"bfloat16"``: the learner's matrix
        products and convolutions are computed in bfloat16, while what networks return, losses, weights and optimizers
        are float32 (Micikevicius et al. 2018, https://arxiv.org/abs/1710.03740). Acting is always in float32.
    compiled : the learner's networks go through ``torch.compile``. It needs a compiler on the learner's machine (on a
        GPU torch's own, of 2.11 or newer), and another one may give other bits: learn on machines with the same.
    channels : which observations are convolved, and which of their axes is the channels': ``"auto"`` by the rule of
        `daskrl.envs.planes.planes`, ``"first"``, ``"last"``, or ``"none"`` for vectors alone.
    """

    convolutions: str = "nature"
    precision: str = "float32"
    compiled: bool = False
    channels: str = "auto"

    def __post_init__(self) -> None:
        require_types(self)
        for name, known in (
            ("convolutions", CONVOLUTIONS), ("precision", ("float32", "bfloat16")), ("channels", CHANNELS)
        ):  # fmt: skip
            if getattr(self, name) not in known:
                raise ConfigError(f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}.")

    def encoder(self, setup: Setup) -> Encoder:
        """What observations pass through first; a module of your own with ``out_features`` does as well."""
        return Encoder(setup.spec, setup.frame_stack, self.convolutions, self.channels)


_OPTIMIZER = "optimizer."  # before the names of what optimizers keep, in a checkpoint


class TorchLearner:
    """Networks and optimizers of a learner.

    Parameters
    ----------
    settings : how to compute.
    random : the first weights are drawn from it.
    online : what is learned. ``policy``, itself or a part of it, is what is published.
    target : a slowly following copy of ``follows`` (``online`` by default), where there is one.

    Attributes
    ----------
    online, target : the networks; ``flat_online``, ``flat_target`` hold their parameters.
    updates : gradient updates made so far.
    optimizers : by name: the optimizer, the weights that it moves, their gradient, and the parameters that they are.
    """

    def __init__(
        self,
        settings: TorchSettings,
        setup: Setup,
        random: np.random.Generator,
        online: nn.Module,
        *,
        policy: nn.Module | None = None,
        target: nn.Module | None = None,
        follows: nn.Module | None = None,
    ) -> None:
        self.setup, self.device = setup, torch.device(setup.device)
        networks.initialise(online, random)
        self.online, self.policy = online, policy if policy is not None else online
        self.flat_online = Flat(online.to(self.device), self.device)
        self.target, self.flat_target = target, None
        self._follows = self.flat_online.part(follows if follows is not None else online)
        if target is not None:
            self.flat_target = Flat(target.to(self.device), self.device)
            self.follow()
        self._plain: dict[nn.Module, nn.Module] = {}  # of each compiled network one that is not, with its parameters
        if settings.compiled:
            for module in filter(None, (online, target)):
                self._compile(module)
        self._mixed = settings.precision == "bfloat16"
        self.optimizers: dict[str, tuple[torch.optim.Optimizer, torch.Tensor, torch.Tensor, list[nn.Parameter]]] = {}
        self.updates = 0

    def optimize(self, make: MakeOptimizer, part: nn.Module | None = None, name: str = "") -> None:
        """Have an optimizer for the online network or a part of it; ``name`` it where there are several."""
        module = part if part is not None else self.online
        where = self.flat_online.part(module)
        weights, gradient = self.flat_online.weights[where], self.flat_online.gradient[where]
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.optimizers[name] = (make([weights]), weights, gradient, parameters)

    def _compile(self, module: nn.Module) -> None:
        self._plain[module] = copy.deepcopy(module)
        for its, parameter in zip(self._plain[module].parameters(), module.parameters(), strict=True):
            its.data = parameter.data
        # Each batch size is compiled by itself: else the compiled code, and with it the bits, would depend on which
        # batch size came first. The bits would also change if torch met its limit of recompilations, which counts all
        # networks of a process together.
        config = torch._dynamo.config
        for limit in ("recompile_limit", "accumulated_recompile_limit"):
            if hasattr(config, limit):
                get, put = functools.partial(getattr, config, limit), functools.partial(setattr, config, limit)
                arithmetic.also(arithmetic.Switch(limit, get, put, (_COMPILED,)))
        for part in module.modules():
            if isinstance(part, LSTM):  # the steps between two episodes' ends are any number
                part.forward = torch.compiler.disable(part.forward)  # type: ignore[method-assign]
        options: dict[str, Any] | None = None
        if self.device.type == "cuda":
            from torch import _inductor

            if "deterministic" not in _inductor.list_options():
                raise ConfigError(f"compiled: on a GPU it needs torch 2.11 or newer, got {torch.__version__}.")
            options = {"deterministic": True}  # it would else choose among kernels by their time, and so the bits
        for part in (module, *module.children()):  # some children are called by themselves
            part.compile(dynamic=False, options=options)

    def uncompiled(self, module: nn.Module) -> nn.Module:
        """``online`` or ``target`` for batches of any size, each of which would be compiled anew."""
        return self._plain.get(module, module)

    def precision(self) -> AbstractContextManager[object]:
        """The precision of what is computed under it; ``minimise`` goes back to float32."""
        if not self._mixed:
            return nullcontext()  # autocast takes its time for nothing, too
        # No cache: it would keep the weights of before an update.
        return torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False)

    def minimise(
        self,
        loss: torch.Tensor,
        name: str = "",
        *,
        max_grad_norm: float | None = None,
        learning_rate: float | None = None,
    ) -> None:
        """One step of an optimizer on the gradient of ``loss`` with respect to its part, and to nothing else."""
        optimizer, weights, gradient, parameters = self.optimizers[name]
        gradient.zero_()
        with torch.autocast(self.device.type, enabled=False) if self._mixed else nullcontext():
            loss.backward(inputs=parameters)
        if max_grad_norm is not None:
            norm = torch.linalg.vector_norm(gradient)
            gradient.mul_(torch.clamp(max_grad_norm / (norm + 1e-6), max=1.0))
        if learning_rate is not None:
            self.set_learning_rate(name, learning_rate)
        weights.grad = gradient
        optimizer.step()

    def count_update(self) -> None:
        """An update was made: count it.

        Running averages of gradients that became 0, as those of units that are never active do, fall for good: below
        1e-38, where x86 takes many times longer for a number. On a CPU those that fell to 1e-36 are set to 0 therefore,
        after every 16th update.
        """
        self.updates += 1
        if self.device.type == "cpu" and self.updates % _SETTLE == 0:
            for optimizer, weights, *_ in self.optimizers.values():
                for kept in optimizer.state.get(weights, {}).values():
                    if isinstance(kept, torch.Tensor) and kept.shape == weights.shape and kept.is_floating_point():
                        torch.hardshrink(kept, _NEGLIGIBLE, out=kept)

    def set_learning_rate(self, name: str, learning_rate: float) -> None:
        """Of one optimizer, from its next step on."""
        for group in self.optimizers[name][0].param_groups:
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(learning_rate)
            else:
                group["lr"] = learning_rate

    def follow(self, share: float = 1.0) -> None:
        """Move the target this share of the way to the online network (Polyak averaging; 1 copies it)."""
        assert self.flat_target is not None
        source, target = self.flat_online.weights[self._follows], self.flat_target.weights
        if share == 1.0:
            target.copy_(source)
        else:
            target.lerp_(source, share)

    def weights(self) -> Weights:
        return self.flat_online.named(self.policy)

    def not_finite(self) -> list[str]:
        """Names of the parameters, also of those not published, that hold NaN or infinite values."""
        if self.flat_online.weights.sum().isfinite():  # a fortieth of the time of each by itself
            return []
        return [name for name, value in self.online.named_parameters() if not value.isfinite().all()]

    def begin_with(self, weights: Weights, others: Mapping[str, Array]) -> None:
        """Begin with another run's weights; with its critics and the like where ``others``, its checkpoint, has them.

        What neither holds stays as it was drawn. The target is a copy of what is learned; optimizers begin anew where
        ``others`` has nothing of them, else they go on with this run's settings.
        """
        if "online" in others:
            online = torch.from_numpy(np.array(others["online"]))
            if online.shape != self.flat_online.weights.shape:
                raise ConfigError(
                    f"init: the checkpoint of these weights has {online.numel()} parameters, the learner of this run "
                    f"{self.flat_online.weights.numel()}. Give the algorithm the settings of that run."
                )
            with torch.no_grad():
                self.flat_online.weights.copy_(online)
        networks.load_named(self.policy, weights)
        if self.target is not None:
            with torch.no_grad():
                self.follow()
        if any(name.startswith(_OPTIMIZER) for name in others):
            self._restore_optimizers(others)

    def state(self) -> dict[str, Array]:
        tensors = {"online": self.flat_online.weights}
        if self.flat_target is not None:
            tensors["target"] = self.flat_target.weights
        for name, (optimizer, *_) in self.optimizers.items():
            for key, value in optimizer.state_dict()["state"].get(0, {}).items():
                tensors[f"{_OPTIMIZER}{name}.{key}"] = value
        arrays = {name: np.array(value.detach().cpu().numpy()) for name, value in tensors.items()}
        return {**arrays, "updates": np.array(self.updates)}

    def restore(self, state: Mapping[str, Array]) -> None:
        self.flat_online.weights.copy_(torch.tensor(state["online"]))
        if self.flat_target is not None:
            self.flat_target.weights.copy_(torch.tensor(state["target"]))
        self.updates = int(state["updates"])
        self._restore_optimizers(state)

    def _restore_optimizers(self, state: Mapping[str, Array]) -> None:
        for name, (optimizer, *_) in self.optimizers.items():
            prefix = f"{_OPTIMIZER}{name}."
            kept = {key.removeprefix(prefix): torch.tensor(state[key]) for key in state if key.startswith(prefix)}
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": {0: kept} if kept else {}, "param_groups": groups})


class _Adam(torch.optim.Adam):
    """torch's fused Adam of one vector on a CPU, whose step is the fused operation alone.

    What torch's own does around it, for any number of parameters, options and hooks, takes about as long as the
    operation for a hundred thousand weights.
    """

    def __init__(self, weights: torch.Tensor, learning_rate: float, eps: float) -> None:
        super().__init__([weights], lr=learning_rate, eps=eps, fused=True)

    def step(self, closure: Any = None) -> Any:
        (group,) = self.param_groups
        (weights,) = group["params"]
        state = self.state.get(weights)
        if not state or closure is not None:  # the state is made at the first step
            return super().step(closure)
        state["step"] += 1
        torch._fused_adam_(
            [weights], [weights.grad], [state["exp_avg"]], [state["exp_avg_sq"]], [], [state["step"]],
            lr=group["lr"], beta1=group["betas"][0], beta2=group["betas"][1], eps=group["eps"],
            weight_decay=0.0, amsgrad=False, maximize=False,
        )  # fmt: skip
        return None

    step.hooked = True  # type: ignore[attr-defined]  # torch wraps no step that says it is


def adam(learning_rate: float, eps: float = 1e-8, **given: Any) -> MakeOptimizer:
    """Adam (Kingma and Ba 2015, https://arxiv.org/abs/1412.6980) in one fused operation; ``given`` goes to torch's."""

    def make(weights: list[torch.Tensor]) -> torch.optim.Optimizer:
        on_gpu = weights[0].device.type == "cuda"  # there the learning rate is a tensor, which a CUDA graph reads anew
        if len(weights) == 1 and not on_gpu and not given:
            return _Adam(weights[0], learning_rate, eps)
        rate = torch.tensor(learning_rate, device=weights[0].device) if on_gpu else learning_rate
        return torch.optim.Adam(weights, lr=rate, eps=eps, fused=True, **given)

    return make
