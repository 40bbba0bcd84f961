"""Plans by name: the built-in ones, and those that users bring.

A user plan is a factory.  It returns a plan of this package, or any sampler or batch sampler, which
then runs in the trainer as `headrace.plans.FromSampler` does: the daemon executes no code of users.
A package announces its factories with an entry point in the group ``headrace.plans``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

from ..errors import PlanError
from .base import Described
from .composite import Chain, Interleaved
from .from_sampler import FromSampler
from .scaled import MultiScale, VariableBatch, VideoVariable
from .spec import ByteBudget, Sequential, ShardShuffled, Shuffled

if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.metadata import EntryPoints

    from .composite import Plan

GROUP: Final = "headrace.plans"
_Factory = TypeVar("_Factory", bound="Callable[..., Any]")
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")

_BUILT_IN: Final[dict[str, type]] = {
    kind.__name__: kind
    for kind in (
        Sequential,
        Shuffled,
        ShardShuffled,
        ByteBudget,
        MultiScale,
        VariableBatch,
        VideoVariable,
        Chain,
        Interleaved,
        FromSampler,
    )
}
# What `register` was given in this process.
_registered: dict[str, Callable[..., Any]] = {}


@overload
def register(name: str) -> Callable[[_Factory], _Factory]: ...


@overload
def register(name: str, factory: _Factory) -> _Factory: ...


def register(name: str, factory: Any = None) -> Any:
    """Make a plan of your own known by a name; also a decorator, ``@register("name")``.

    Args:
        name: What `create` calls it, in this process; not for a configuration of the daemon,
            which executes no code of users.
        factory: Called with the options; returns a plan, or a sampler or batch sampler, or yields
            batches when iterated.

    Raises:
        PlanError: If the name is taken by another one, or is no name.
    """
    if factory is None:
        return lambda function: register(name, function)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise PlanError(
            f"name={name!r} is no name of a plan: use 1..64 letters, digits, '_', '-' and '.', a "
            "letter first"
        )
    if not callable(factory):
        raise PlanError(f"factory={factory!r} of plan {name!r} cannot be called: give a function")
    if name in _BUILT_IN or _registered.get(name, factory) is not factory:
        raise PlanError(f"name={name!r} is taken by another plan: choose another name")
    _registered[name] = factory
    return factory


def create(name: str, **options: Any) -> Plan | FromSampler:  # noqa: ANN401 - of the factory
    """Return the plan that a name stands for.

    Args:
        name: A built-in plan, a registered one, or one that an installed package announces.
        **options: Arguments of the plan.

    Raises:
        PlanError: If there is none of that name, or it does not take these options.
    """
    factory = _factory(name)
    try:
        made = factory(**options)
    except TypeError as error:
        fields = getattr(factory, "__struct_fields__", ())
        known = f"; it takes {', '.join(sorted(fields))}" if fields else ""
        raise PlanError(f"plan {name!r} does not take these options: {error}{known}") from error
    if isinstance(made, Described | FromSampler):
        return made  # type: ignore[return-value]
    return FromSampler(made, name=name)


def names() -> list[str]:
    """Return the names that `create` knows."""
    announced = {point.name for point in _announced()}
    return sorted({*_BUILT_IN, *_registered, *announced})


def _announced() -> EntryPoints:
    # Not above: it takes as long as half of this package, and few name a plan of their own.
    from importlib.metadata import entry_points

    return entry_points(group=GROUP)


def _factory(name: str) -> Callable[..., Any]:
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    if name in _registered:
        return _registered[name]
    for point in _announced():
        if point.name == name:
            factory: Callable[..., Any] = point.load()
            return factory
    raise PlanError(f"name={name!r} is no plan: known are {', '.join(names())}")
