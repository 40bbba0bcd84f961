"""House rule: the public names of `headrace` are exactly those of `__all__`."""

from __future__ import annotations

from types import ModuleType

import headrace


def test_public_names_are_sorted_and_unique() -> None:
    assert list(headrace.__all__) == sorted(set(headrace.__all__))


def test_every_public_name_can_be_imported() -> None:
    missing = [name for name in headrace.__all__ if not hasattr(headrace, name)]
    assert missing == []


def test_names_that_load_on_first_use_are_listed() -> None:
    assert set(headrace.__all__) <= set(dir(headrace))


def test_nothing_else_is_public() -> None:
    others = {
        name
        for name, value in vars(headrace).items()
        if not name.startswith("_")
        and not is_submodule(value)
        and value is not annotations  # every module of ours has it from __future__
    }
    assert others - set(headrace.__all__) == set()


def is_submodule(value: object) -> bool:
    """Tell whether this is a module of ours: importing one sets it as an attribute."""
    return isinstance(value, ModuleType) and value.__name__.startswith("headrace.")
