"""The protocol between a daemon and its clients, sans-I/O; `sdk/PROTOCOL.md` describes it."""

from __future__ import annotations

from . import messages
from .connection import Connection, Event, Payload, Role
from .messages import VERSION
from .states import State

__all__ = ["VERSION", "Connection", "Event", "Payload", "Role", "State", "messages"]
