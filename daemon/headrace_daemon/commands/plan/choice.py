"""Which plan: a name with options, or the map that stands for a plan in a configuration.

What a user types is text.  It becomes the same plain data that a configuration would hold, and the
plan checks it as it checks that; nothing here knows what a plan does with an option.
"""

from __future__ import annotations

import json
import tomllib
from typing import TYPE_CHECKING, Any, Final, get_args

from headrace.errors import PlanError
from headrace.plans import Drawn, FromSampler, Plan, registry
from headrace.plans.base import FixedBatches

from ...errors import SettingsError
from ...settings import parse_size, part

if TYPE_CHECKING:
    import argparse

SHORTCUTS: Final = ("batch_size", "global_batch_size", "seed", "tail")
"""Options of plans that are options of the command too."""

_SIZES: Final = ("max_bytes",)
"""Options that may be written as sizes, ``8MiB``, at any depth."""

_DEFAULT_BATCH_SIZE: Final = 32
_KINDS: Final[dict[str, type]] = {
    kind.__name__: kind for kind in get_args(Plan) if kind is not Drawn
}


def chosen_plan(options: argparse.Namespace) -> Plan:
    """Return the plan of ``--plan``, ``--option`` and the shortcuts.

    Raises:
        PlanError: If the plan refuses its options, or runs in the trainer only.
        SettingsError: If the text is no plan.
    """
    text = options.plan or "Shuffled"
    facts: dict[str, Any] = table(text, "--plan") if _is_map(text) else {"type": text}
    if "type" not in facts:
        raise SettingsError(f"--plan {text}: say which one it is: type = 'Shuffled', say")
    kind = _KINDS.get(str(facts["type"]))
    for name in SHORTCUTS:
        value = getattr(options, name)
        if value is None:
            continue
        if kind is not None and name not in kind.__struct_fields__:  # type: ignore[attr-defined]
            raise SettingsError(
                f"--{name.replace('_', '-')} does not belong to --plan {facts['type']}: its "
                f"options are {', '.join(kind.__struct_fields__)}"  # type: ignore[attr-defined]
            )
        facts[name] = value
    for written in options.option:
        _set(facts, written)
    has_size = "batch_size" in facts or "global_batch_size" in facts
    is_simple = kind is not None and issubclass(kind, FixedBatches) and not _is_map(text)
    if is_simple and not has_size:
        facts["batch_size"] = _DEFAULT_BATCH_SIZE
    return to_plan(facts)


def to_plan(facts: dict[str, Any]) -> Plan:
    """Make a plan of the map that stands for it.

    Raises:
        PlanError: If it refuses an option, or runs in the trainer only.
        SettingsError: If it has no such option, or not such a value.
    """
    name = facts.get("type")
    if name == "FromSampler":
        raise PlanError(
            "plan FromSampler holds a sampler of the training process and cannot run here: iterate "
            "over the sampler there, or give a plan that is made of options"
        )
    if isinstance(name, str) and name not in _KINDS:
        return _announced(name, {key: facts[key] for key in facts if key != "type"})
    plan: Plan = part(_with_sizes(facts), Plan, origin="--plan")
    return plan


def table(text: str, origin: str) -> dict[str, Any]:
    """Return a map that is written as JSON, as a TOML document, or as an inline table of TOML.

    Raises:
        SettingsError: Naming the origin.
    """
    try:
        if not text.lstrip().startswith("{"):
            return tomllib.loads(text)
        try:
            found = json.loads(text)
        except ValueError:
            found = tomllib.loads(f"table = {text.strip()}")["table"]
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{origin} is neither JSON nor TOML: {error}") from None
    assert isinstance(found, dict), "braces enclose a map"
    return found


def _announced(name: str, options: dict[str, Any]) -> Plan:
    """Return a plan that an installed package announces, if it can run here."""
    if name not in registry.names():
        raise PlanError(
            f"--plan {name!r} is no plan: known are {', '.join([*_KINDS, *_foreign_names()])}"
        )
    made = registry.create(name, **options)
    if isinstance(made, FromSampler) or made.is_local:
        raise PlanError(
            f"plan {name!r} runs a sampler in the training process and cannot run here: iterate "
            "over it there"
        )
    return made


def _foreign_names() -> list[str]:
    return [name for name in registry.names() if name not in _KINDS and name != "FromSampler"]


def _is_map(text: str) -> bool:
    return text.lstrip().startswith("{")


def _set(facts: dict[str, Any], written: str) -> None:
    """Set an option that is written ``name=value`` or ``name.of.a.field=value``."""
    name, equals, text = written.partition("=")
    path = name.strip().split(".")
    if not equals or not all(path):
        raise SettingsError(
            f"--option {written!r}: write name=value, such as max_bytes=8MiB or scales.height=224"
        )
    for key in path[:-1]:
        inner = facts.setdefault(key, {})
        if not isinstance(inner, dict):
            raise SettingsError(
                f"--option {written!r}: {key} is {inner!r} already, which has no fields"
            )
        facts = inner
    facts[path[-1]] = _value(text.strip())


def _value(text: str) -> Any:  # noqa: ANN401 - of TOML or JSON
    """Return a value that is written as in TOML or JSON; a string may lack its quotes."""
    try:
        found = tomllib.loads(f"value = {text}")
        if list(found) == ["value"]:
            return found["value"]
    except (ValueError, RecursionError):
        pass
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _with_sizes(value: Any, key: str = "") -> Any:  # noqa: ANN401 - plain data
    """Return plain data in which sizes such as ``"8MiB"`` are numbers of bytes."""
    if isinstance(value, dict):
        return {name: _with_sizes(item, name) for name, item in value.items()}
    if isinstance(value, str) and key in _SIZES:
        try:
            return parse_size(value)
        except ValueError as error:
            raise PlanError(f"{key}: {error}") from None
    return value
