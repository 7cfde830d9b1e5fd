"""How loops over rows are compiled: by numba, without the interpreter's lock, kept on disk between runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

_F = TypeVar("_F", bound=Callable[..., Any])

kernel: Callable[[_F], _F] = njit(nogil=True, cache=True)
"""Decorates a free function over NumPy arrays; it is compiled at its first call."""

inlined: Callable[[_F], _F] = njit(nogil=True, cache=True, inline="always")
"""As ``kernel``, for a few lines used inside other kernels."""
