"""Imports what takes seconds, so that a worker has it when it arrives.

For a worker of your own: ``DASK_DISTRIBUTED__WORKER__PRELOAD=daskrl.preload dask worker ...``
"""

# ruff: noqa: F401
import gymnasium.envs
import safetensors.numpy
import torch._dynamo  # which Adam imports
import zarr

import daskrl.algorithms.dqn
import daskrl.learner
import daskrl.rollout
