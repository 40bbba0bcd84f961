"""Files that options name: what is wrong with one, in one line."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from ...errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def reading(file: str, wrong: str) -> Iterator[None]:
    """Turn what goes wrong while a file is read into an error for the user.

    Args:
        file: The option and the file.
        wrong: What is said of a file that holds something else.

    Raises:
        SettingsError: If the file is missing, unreadable, or holds something else.
    """
    try:
        yield
    except FileNotFoundError:
        raise SettingsError(f"{file} does not exist: check the path") from None
    except OSError as error:
        raise SettingsError(f"{file} cannot be read: {error.strerror or error}") from None
    except (ValueError, EOFError, RecursionError) as error:
        raise SettingsError(f"{file} {wrong} ({error})") from None
