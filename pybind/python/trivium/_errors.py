"""The errors of Trivium: one class for each kind, the same kinds as in Go and on the wire."""

from __future__ import annotations

import json
from typing import ClassVar

# Starts the text of every error that comes from Go.
MARKER = "TRIVIUM"


class TriviumError(Exception):
    """The base of every error that Trivium raises.

    Attributes
    ----------
    message : str
        What was wrong and what would be right.
    hint : str
        The next thing to do, or "".
    plugin : str
        Name of the plugin it happened in, or "".
    strategy : str
        Dotted identifier of the strategy, or "".
    kind : str
        Name of the kind; each kind has a subclass.
    """

    kind: ClassVar[str] = "internal"

    def __init__(self, message: str, *, hint: str = "", plugin: str = "", strategy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.plugin = plugin
        self.strategy = strategy

    def __str__(self) -> str:
        where = f"{self.strategy}: " if self.strategy else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{where}{self.message}{hint}"

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, self.hint, self.plugin, self.strategy)


class InvalidArgument(TriviumError, ValueError):
    """An argument, shape, dtype or parameter that does not fit."""

    kind = "invalid_argument"


class UnknownStrategy(TriviumError, LookupError):
    """No strategy has this name; the hint has the nearest one."""

    kind = "unknown_strategy"


class Unsupported(TriviumError):
    """The strategy cannot do what was asked."""

    kind = "unsupported"


class PluginMissing(TriviumError):
    """The plugin's manifest or binary is not there."""

    kind = "plugin_missing"


class PluginCrashed(TriviumError):
    """The plugin process died during the call; the next call starts a new one."""

    kind = "plugin_crashed"


class PluginRefused(TriviumError):
    """The plugin is not what its manifest says, or speaks another protocol."""

    kind = "plugin_refused"


class DeadlineExceeded(TriviumError, TimeoutError):
    """The call outlasted its timeout."""

    kind = "deadline_exceeded"


class Cancelled(TriviumError):
    """The call was cancelled."""

    kind = "cancelled"


class ForkedProcessError(TriviumError):
    """Trivium was imported before the process forked; the child cannot use it."""

    kind = "forked_process"


class EngineClosed(TriviumError):
    """The engine, or something that belongs to it, was closed."""

    kind = "engine_closed"


class CheckpointError(TriviumError):
    """A checkpoint cannot be read or written."""

    kind = "checkpoint"


class DeviceUnavailable(TriviumError):
    """The device is not there or cannot be used."""

    kind = "device_unavailable"


class OutOfMemory(TriviumError, MemoryError):
    """There is not enough memory."""

    kind = "out_of_memory"


class InternalError(TriviumError):
    """A bug in Trivium; the log has the stack."""

    kind = "internal"


CLASSES: dict[str, type[TriviumError]] = {c.kind: c for c in TriviumError.__subclasses__()}


def decode(text: str) -> TriviumError:
    """Make the error that Go described in the text of an exception."""
    if not text.startswith(MARKER):
        return InternalError(text)
    fields = json.loads(text[len(MARKER) :])
    made = CLASSES.get(fields["kind"], InternalError)
    return made(
        fields["message"],
        hint=fields.get("hint", ""),
        plugin=fields.get("plugin", ""),
        strategy=fields.get("strategy", ""),
    )


def _rebuild(made: type[TriviumError], message: str, hint: str, plugin: str, strategy: str) -> TriviumError:
    return made(message, hint=hint, plugin=plugin, strategy=strategy)
