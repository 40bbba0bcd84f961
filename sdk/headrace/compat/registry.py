"""Samplers by name, as the originals keep them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from ..errors import PlanError

_Class = TypeVar("_Class", bound=type[Any])


class Registry(Mapping[str, type[Any]]):
    """Classes by name.

    Args:
        what: What is registered, for errors.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._classes: dict[str, type[Any]] = {}

    def add(self, name: str, cls: type[Any]) -> None:
        """Register a class.

        Raises:
            PlanError: If the name is taken.
        """
        if name in self._classes:
            raise PlanError(f"{self._what} {name!r} is taken by {self._classes[name].__name__}")
        self._classes[name] = cls

    def named(self, name: str) -> Callable[[_Class], _Class]:
        """Return a decorator that registers a class by a name."""

        def decorate(cls: _Class) -> _Class:
            self.add(name, cls)
            return cls

        return decorate

    def __getitem__(self, name: str) -> type[Any]:
        try:
            return self._classes[name]
        except KeyError:
            known = ", ".join(sorted(self._classes))
            raise PlanError(f"{self._what} {name!r} is unknown: known are {known}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._classes

    def __iter__(self) -> Iterator[str]:
        return iter(self._classes)

    def __len__(self) -> int:
        return len(self._classes)
