"""Samples that were made once are kept: every arm, run and worker reads the same."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trivium._files import replace
from trivium.eval.tasks import make_sample
from trivium.eval.tasks.chat import Chat, choose
from trivium.eval.tasks.sample import Sample

EDITION = 2  # of the generators: another one makes other prompts of the same seed


class Prompts:
    """The samples of one tokenizer, text and seed.

    Parameters
    ----------
    folder : Path, optional
        Where they are kept; None: they are made anew.
    chat : bool, optional
        Whether generated tasks go into the chat template; default: where there is one.
    """

    def __init__(self, tokenizer: Any, text: list[int], seed: int, folder: Path | None = None, chat: bool | None = None) -> None:
        self.chat = choose(tokenizer, chat)
        self._tokenizer = Chat(tokenizer) if self.chat else tokenizer
        self._text, self._seed = text, seed
        self._folder = None if folder is None else folder / _fingerprint(text, seed, self.chat)
        self._last: tuple[Any, Sample] | None = None

    def get(self, task: str, length: int, index: int) -> Sample:
        """Sample ``index`` of a task at a length."""
        key = (task, length, index)
        if self._last is None or self._last[0] != key:
            self._last = (key, self._read(*key) or self._make(*key))
        return self._last[1]

    def _path(self, task: str, length: int, index: int) -> Path | None:
        return None if self._folder is None else self._folder / f"{task}-{length}-{index}.json"

    def _read(self, task: str, length: int, index: int) -> Sample | None:
        path = self._path(task, length, index)
        if path is None or not path.exists():
            return None
        return Sample.from_json(json.loads(path.read_text(encoding="utf-8")))

    def _make(self, task: str, length: int, index: int) -> Sample:
        sample = make_sample(task, self._tokenizer, self._text, length, index, self._seed)
        path = self._path(task, length, index)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace(path, json.dumps(asdict(sample)))
        return sample


def name_of(sample: Sample) -> str:
    """A short name for the tokens of a prompt; equal names mean equal prompts."""
    return hashlib.sha256(json.dumps(sample.ids).encode()).hexdigest()[:12]


def _fingerprint(text: list[int], seed: int, chat: bool) -> str:
    """The text's tokens tell tokenizers apart too."""
    return hashlib.sha256(json.dumps([EDITION, seed, list(text), chat]).encode()).hexdigest()[:16]
