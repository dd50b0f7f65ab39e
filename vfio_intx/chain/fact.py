"""A fact: something read, with where it was read and, where reading failed, why. Unknown is not "no"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")
U = TypeVar("U")


class Fact(NamedTuple, Generic[T]):
    """A value with its source. ``value`` is None exactly when ``error`` says why nothing could be read.

    :ivar source: the file, command or query it came from.
    """

    value: T | None
    source: str
    error: str | None = None

    @classmethod
    def known(cls, value: T, source: str) -> Fact[T]:
        """Something that was read."""
        return cls(value, source)

    @classmethod
    def unknown(cls, source: str, error: str) -> Fact[T]:
        """Something that could not be read, and why."""
        return cls(None, source, error)

    @property
    def is_known(self) -> bool:
        """Whether there is a value."""
        return self.error is None

    def map(self, change: Callable[[T], U]) -> Fact[U]:
        """The fact with its value changed by a pure function; an unknown fact stays unknown, its reason kept."""
        if self.value is None:
            return Fact(None, self.source, self.error)
        return Fact(change(self.value), self.source)

    def get(self, otherwise: T) -> T:
        """The value, or *otherwise* where it is unknown: for display only, never to decide."""
        return otherwise if self.value is None else self.value
