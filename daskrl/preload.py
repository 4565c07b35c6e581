"""Imports what takes seconds, so that a worker has it when it arrives: ``dask worker ... --preload daskrl.preload``."""

# ruff: noqa: F401
import gymnasium.envs
import safetensors.numpy
import torch._dynamo  # which Adam imports
import zarr

import daskrl.algorithms.dqn
import daskrl.learner
import daskrl.rollout
