"""Every exception Millstream raises on purpose.

The tree answers two questions: whose fault is it, and does trying again make sense::

    MillstreamError
    ├── JobError              the job as written cannot work (user; never retried)
    │   ├── SchemaError       unknown column, wrong type
    │   └── StateMismatch     the checkpoint does not fit this job
    ├── DataError             the input broke its own contract (data; never retried)
    ├── UserCodeError         a function of the user's raised (user; retried: it may call the outside world)
    ├── ExternalError         a disk, a server, a file let us down (outside; retried)
    │   └── StoreError        the checkpoint store could not be read or written
    │       └── StoreCorrupt  the store contradicts itself or its witness (never retried)
    ├── TooManyDeadLetters    more was put aside than is allowed (data or user; never retried)
    ├── StoreLocked           another process runs this job (user; never retried)
    ├── JobFailed             the job gave up after its retries; the cause is chained
    │   ├── JobHangs          something in it does not come back; a new process may go on
    │   └── MemoryExceeded    its state has outgrown what it may hold; it goes on with more
    └── InternalError         a bug of Millstream's
"""

from __future__ import annotations


class MillstreamError(Exception):
    """Base of every error raised on purpose. ``restartable`` says whether trying again can help."""

    restartable = False


class JobError(MillstreamError):
    """The job as written cannot work; the message says what to write instead."""


class SchemaError(JobError):
    """A column is unknown or has a type the expression cannot take."""


class StateMismatch(JobError):
    """The checkpoint was written by a job whose operators or types differ from this one's."""


class DataError(MillstreamError):
    """Input that is not what its source promised: a corrupt file, a bad line, a missing column."""


class UserCodeError(MillstreamError):
    """A function handed to ``map``, ``flat_map`` or ``map_batches`` raised, or returned what it must not."""

    restartable = True


class ExternalError(MillstreamError):
    """A disk, server or file outside Millstream failed; the job restarts from its last checkpoint."""

    restartable = True


class StoreError(ExternalError):
    """The checkpoint store could not be read or written (disk full, read-only, gone)."""


class StoreCorrupt(StoreError):
    """The store contradicts its own manifest or the witness beside it; it is never half-read."""

    restartable = False


class TooManyDeadLetters(MillstreamError):
    """More rows or lines were put aside than is allowed: a job that puts everything aside must not look healthy."""


class StoreLocked(MillstreamError):
    """Another process holds the store: the job is already running."""


class JobFailed(MillstreamError):
    """The job gave up; ``__cause__`` is the error that ended it."""


class JobHangs(JobFailed):
    """A function or a sink does not come back: only a new process can go on."""


class MemoryExceeded(JobFailed):
    """The job's state has outgrown its ``memory``; it ended at a checkpoint and goes on when it may hold more."""


class InternalError(MillstreamError):
    """An invariant of Millstream's own was broken: please report it."""
