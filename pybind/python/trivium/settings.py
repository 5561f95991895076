"""``trivium.toml``: defaults for strategies, by dotted identifier.

    ["attention.flexprefill"]
    gamma = 0.95

What ``Info()`` says of a parameter is also its JSON schema, see :func:`schema`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from trivium._errors import InvalidArgument
from trivium.catalog import Info

VARIABLE = "TRIVIUM_SETTINGS"
NAMES = ("trivium.toml", "trivium.yaml", "trivium.yml", "trivium.json")

_TYPES = {"int": "integer", "float": "number", "bool": "boolean", "string": "string"}


def default_settings() -> Path | None:
    """Give the settings file in use: the one named by the environment, or this folder's."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    return next((Path(name) for name in NAMES if Path(name).is_file()), None)


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Read a settings file, TOML, YAML or JSON; the native side checks its values.

    Raises
    ------
    InvalidArgument
        When it cannot be read, or is not a table of tables.
    """
    try:
        data = _parse(path, path.read_text())
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"settings {path}: {error}") from error
    flat: dict[str, dict[str, Any]] = {}
    for name, table in (data or {}).items():
        if name in ("attention", "position", "merge") and isinstance(table, dict):  # [attention.flexprefill], without quotes
            flat.update({f"{name}.{strategy}": params for strategy, params in table.items()})
        else:
            flat[name] = table
    for name, params in flat.items():
        if not isinstance(params, dict):
            raise InvalidArgument(f"settings {path}: {name} is {params!r}: want a table of parameters")
    return flat


def _parse(path: Path, text: str) -> Any:
    if path.suffix == ".json":
        return json.loads(text)
    if path.suffix in (".yaml", ".yml"):
        try:
            import yaml
        except ModuleNotFoundError:
            raise InvalidArgument(f"{path} is YAML, and PyYAML is not installed", hint="pip install pyyaml, or write TOML") from None
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(str(error)) from error
    try:
        import tomllib
    except ModuleNotFoundError:  # before Python 3.11
        raise InvalidArgument(f"{path} is TOML, which this Python cannot read", hint="use Python 3.11, YAML or JSON") from None
    return tomllib.loads(text)


def schema(info: Info) -> dict[str, Any]:
    """Give the JSON schema of a strategy's parameters."""
    properties: dict[str, Any] = {}
    for p in info.parameters:
        number = {"type": "number"}
        entry: dict[str, Any] = {"type": "array", "items": number} if p.type == "floats" else {"type": _TYPES[p.type]}
        entry |= _bounds(p.range)
        if p.per_head:
            entry = {"anyOf": [entry, {"type": "array", "items": {k: v for k, v in entry.items()}}]}
        if p.choices:
            entry["enum"] = list(p.choices)
        properties[p.name] = entry | {"description": p.doc} | ({} if p.default is None else {"default": p.default})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": info.id,
        "description": info.summary,
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
    }


def _bounds(interval: str) -> dict[str, float]:
    """Read an interval in mathematical notation, as Info() writes it."""
    if not interval:
        return {}
    low, high = interval[1:-1].split(",")
    bounds: dict[str, float] = {}
    if "inf" not in low:
        bounds["minimum" if interval[0] == "[" else "exclusiveMinimum"] = float(low)
    if "inf" not in high:
        bounds["maximum" if interval[-1] == "]" else "exclusiveMaximum"] = float(high)
    return bounds
