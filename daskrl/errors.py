"""Every error daskrl raises on purpose.

DaskrlError
├── ConfigError(ValueError)                an argument that cannot work; nothing was created or queued
│   ├── UnknownEnvironmentError            no such environment id, or its package is not installed
│   ├── UnknownNameError(TypeError)        a setting or argument of a name that there is not
│   └── UnsupportedSpaceError(TypeError)   a space that the store or the algorithm cannot hold or act in
├── StoreError
│   ├── StoreMismatchError(ValueError)     a store of another environment, format or config
│   ├── DamagedError(ValueError)           a chunk, a commit or a checkpoint fails its checksum
│   ├── StoreLockedError(BlockingIOError)  another driver writes this store
│   ├── StorePackedError(PermissionError)  a run in one file, which is read only; unpack it, or resume
│   ├── StoreUnreachableError(ConnectionError)  an object store has no such bucket, refuses, or does not answer
│   └── StoreFullError(OSError)            the disk is full, or the quota used up
├── EnvironmentFailure(RuntimeError)
│   ├── EnvironmentRaisedError             reset() or step() raised
│   ├── NonFiniteError(ArithmeticError)    NaN or infinite reward, observation or action
│   ├── NondeterministicError              the same seed and actions gave something else
│   └── EnvironmentTimeoutError(TimeoutError)  a fragment took longer than allowed
├── DivergedError(ArithmeticError)         a loss, a TD error or a weight is NaN or infinite
├── ExportError(RuntimeError)              what was exported, read back, acts otherwise than the policy
├── WorkerMismatchError(RuntimeError)      workers with other packages or other arithmetic
└── SchedulerLostError(ConnectionError)    the Dask scheduler is gone; resume from the store

Warnings of their own, to be filtered by class, are FewSeedsWarning, FailedTrialsWarning, EarlyRungsWarning and
DamagedWarning, each a UserWarning.

Each message says what was expected, what came, and what to type. All of them survive pickling.
"""


class DaskrlError(Exception):
    """The root of all errors daskrl raises on purpose."""


class ConfigError(DaskrlError, ValueError):
    """An argument that cannot work. Nothing was created or queued."""


class UnknownEnvironmentError(ConfigError):
    """No environment of that id, or the package that registers it is not installed."""


class UnknownNameError(ConfigError, TypeError):
    """A setting or argument of a name that there is not; the message has the one that may be meant."""


class UnsupportedSpaceError(ConfigError, TypeError):
    """A space the store cannot hold or the algorithm cannot act in."""


class StoreError(DaskrlError):
    """Something is wrong with a store."""


class StoreMismatchError(StoreError, ValueError):
    """The store belongs to another environment, format or config."""


class DamagedError(StoreError, ValueError):
    """A file of the store is missing, short, or fails its checksum."""


class StoreLockedError(StoreError, BlockingIOError):
    """Another driver has this store open for writing."""


class StorePackedError(StoreError, PermissionError):
    """A packed run: one file that is read, not written. Resuming its run unpacks it."""


class StoreUnreachableError(StoreError, ConnectionError):
    """An object store has no such bucket, does not let this process in, or does not answer."""


class StoreFullError(StoreError, OSError):
    """The file system refused to take more bytes."""


class EnvironmentFailure(DaskrlError, RuntimeError):
    """An environment did what no environment may do."""


class EnvironmentRaisedError(EnvironmentFailure):
    """``reset`` or ``step`` raised."""


class NonFiniteError(EnvironmentFailure, ArithmeticError):
    """A reward, an observation, or what the policy gave for an action is NaN or infinite."""


class NondeterministicError(EnvironmentFailure):
    """The same seed and the same actions led to other observations or rewards."""


class EnvironmentTimeoutError(TimeoutError, EnvironmentFailure):
    """A fragment took longer than ``rollout_timeout``."""

    # TimeoutError first: as an OSError it has the memory layout, and unpickling takes ``__new__`` of the first base.


class DivergedError(DaskrlError, ArithmeticError):
    """The learner's loss, a TD error of it, or a weight is NaN or infinite."""


class ExportError(DaskrlError, RuntimeError):
    """A policy that was exported and read back acts otherwise than the run's. The file was not written."""


class WorkerMismatchError(DaskrlError, RuntimeError):
    """Workers whose packages or arithmetic differ from the run's."""


class SchedulerLostError(DaskrlError, ConnectionError):
    """The Dask scheduler, or the connection to it, is gone. Resume from the store."""


class FewSeedsWarning(UserWarning):
    """A conclusion rests on fewer than five seeds."""


class FailedTrialsWarning(UserWarning):
    """Runs that failed are left out of statistics."""


class EarlyRungsWarning(UserWarning):
    """A study's search compares runs when they have hardly learned."""


class DamagedWarning(UserWarning):
    """Something of a run cannot be read, and what is made of the rest goes without it."""
