"""What a plan file may hold, as JSON Schema, and the check against it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trivium._errors import InvalidArgument
from trivium.eval.subject import DTYPES, Subject
from trivium.eval.tasks import GROUPS, TASKS

DRAFT = "https://json-schema.org/draft/2020-12/schema"
_NAMES = {"array": "a list", "string": "text", "integer": "a whole number", "boolean": "true or false", "null": "nothing"}
_TYPES = {"array": (list, tuple), "string": str, "integer": int, "boolean": bool, "null": type(None)}


def schema() -> dict[str, Any]:
    """The JSON Schema of a plan file: the plan's keys and the subject's."""
    return {
        "$schema": DRAFT,
        "title": "A plan of trivium eval",
        "type": "object",
        "properties": {**_plan(), **_subject()},
        "required": ["arms", "tasks", "lengths"],
        "additionalProperties": False,
        "$defs": _definitions(),
    }


def check(data: Mapping[str, Any], where: str) -> None:
    """Refuse keys that there are not and values of another type; the error names the key and what is allowed.

    What an arm may be is checked where arms are read.
    """
    known = schema()["properties"]
    unknown = sorted(str(key) for key in set(data) - set(known))
    if unknown:
        raise InvalidArgument(f"{where}: unknown keys {unknown}: want the keys {', '.join(known)}")
    for key, value in data.items():
        _check(value, known[key], f"{where}: {key}")


def _check(value: Any, want: Mapping[str, Any], where: str) -> None:
    types = _listed(want.get("type", []))
    if types and not any(_is(value, name) for name in types):
        raise InvalidArgument(f"{where} {value!r}: want {' or '.join(_NAMES[name] for name in types)}")
    if "enum" in want and value not in want["enum"]:
        raise InvalidArgument(f"{where} {value!r}: want one of {', '.join(map(str, want['enum']))}")
    if "minimum" in want and value is not None and value < want["minimum"]:
        raise InvalidArgument(f"{where} {value}: want {want['minimum']} or more")
    if "items" in want:
        for number, item in enumerate(value):
            _check(item, want["items"], f"{where}[{number}]")


def _is(value: Any, name: str) -> bool:
    """Whether a value has a type of JSON's; true and false are no numbers."""
    return isinstance(value, _TYPES[name]) and (name != "integer" or not isinstance(value, bool))  # type: ignore[arg-type]


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _plan() -> dict[str, Any]:
    count = {"type": "integer", "minimum": 0}
    return {
        "arms": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/arm"}, "description": "the first is the baseline"},
        "tasks": {"type": "array", "minItems": 1, "items": {"type": "string", "enum": sorted({*TASKS, *GROUPS})}},
        "lengths": {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 64}, "description": "tokens of a prompt"},
        "samples": {"type": "integer", "minimum": 1, "default": 20, "description": "prompts of each task and length"},
        "seed": {"type": "integer", "default": 0},
        "probe_rows": {**count, "default": 0, "description": "random rows of each head that measure coverage; 0: not measured"},
        "new_tokens": {**count, "default": 0, "description": "most tokens of a generated answer; 0: RULER's number for each task"},
        "chat": {"type": ["boolean", "null"], "description": "RULER in the chat template; null: where the model has one"},
    }


def _subject() -> dict[str, Any]:
    default = Subject()
    text = {"type": "string"}
    return {
        "model": {**text, "default": default.model, "description": "smollm2, a Hugging Face folder or a GGUF file"},
        "text": {**text, "default": default.text, "description": "emma, or a UTF-8 file"},
        "device": {**text, "default": default.device, "pattern": "^(cpu|cuda(:[0-9]+)?)$"},
        "dtype": {**text, "default": default.dtype, "enum": list(DTYPES)},
        "threads": {"type": ["integer", "null"], "minimum": 1, "description": "torch's threads; null: as torch is set"},
    }


def _definitions() -> dict[str, Any]:
    named = {"type": "object", "properties": {"strategy": {"type": "string"}}, "required": ["strategy"]}
    choice = {"$ref": "#/$defs/choice"}
    several = {"anyOf": [choice, {"type": "array", "items": choice}]}
    arm = {"name": {"type": "string"}, "attention": choice, "position": {"anyOf": [choice, {"type": "null"}]}}
    pairs = {"attention": several, "position": several}
    return {
        "choice": {"anyOf": [{"type": "string"}, named], "description": "a strategy, or a strategy and its parameters"},
        "arm": {
            "anyOf": [
                {"type": "string", "description": "attention[:param=value,..][+position[:param=value,..]]"},
                {"type": "object", "properties": arm, "required": ["attention"], "additionalProperties": False},
                {
                    "type": "object",
                    "properties": {"grid": {"type": "object", "properties": pairs, "required": ["attention"], "additionalProperties": False}},
                    "required": ["grid"],
                    "additionalProperties": False,
                },
            ]
        },
    }
