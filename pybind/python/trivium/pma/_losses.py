"""Loss of a checkpoint on held-out text, sequence by sequence."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Union

import numpy as np
import numpy.typing as npt

from trivium._errors import InvalidArgument

Array = npt.NDArray[np.float64]
Evaluate = Union[str, Callable[[str], Any]]


class Losses:
    """Mean cross-entropy of each sequence, in nats a token, by transformers in float32.

    Parameters
    ----------
    tokens : array of int [sequences, length], optional
        The loss is of tokens 1.. given those before.
    text : path, optional
        A text file instead, cut into sequences with the checkpoint's own tokenizer.
    length : int
        Tokens of a sequence of ``text``.
    limit : int, optional
        Use the first so many sequences.
    batch : int
        Sequences at a time.
    device : str
        Of torch.
    """

    def __init__(
        self,
        tokens: Any = None,
        *,
        text: str | PathLike[str] | None = None,
        length: int = 512,
        limit: int | None = None,
        batch: int = 16,
        device: str = "cpu",
    ) -> None:
        if (tokens is None) == (text is None):
            raise InvalidArgument("want either tokens= or text=")
        self._tokens = None if tokens is None else np.asarray(tokens)[:limit].astype(np.int64)
        self._text, self._length, self._limit, self._batch, self._device = text, length, limit, batch, device

    def __call__(self, path: str) -> Array:
        """Evaluate the checkpoint in ``path``."""
        import torch
        from transformers import AutoModelForCausalLM

        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        model = model.to(self._device).eval()
        tokens = torch.from_numpy(self._sequences(path))
        losses = []
        with torch.inference_mode():
            for first in range(0, len(tokens), self._batch):
                part = tokens[first : first + self._batch].to(self._device)
                logits = model(part[:, :-1], use_cache=False).logits.float()
                each = torch.nn.functional.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="none")
                losses.append(each.view(len(part), -1).double().mean(1).cpu())
        return np.asarray(torch.cat(losses).numpy())

    def _sequences(self, path: str) -> npt.NDArray[np.int64]:
        if self._tokens is not None:
            return self._tokens
        from transformers import AutoTokenizer

        assert self._text is not None
        tokenizer = AutoTokenizer.from_pretrained(path)
        ids = np.asarray(tokenizer(Path(self._text).read_text(encoding="utf-8"))["input_ids"], dtype=np.int64)
        count = len(ids) // self._length
        if count == 0:
            raise InvalidArgument(f"{self._text}: {len(ids)} tokens, want at least one sequence of {self._length}")
        self._tokens = ids[: count * self._length].reshape(count, self._length)[: self._limit]
        return self._tokens


def measure(evaluate: Evaluate, path: str) -> Array:
    """Run an evaluation: a callable, or a command that prints a number or a JSON list last."""
    result = _command(evaluate, path) if isinstance(evaluate, str) else evaluate(path)
    losses = np.atleast_1d(np.asarray(result, dtype=np.float64))
    if losses.ndim != 1 or not np.isfinite(losses).all():
        raise InvalidArgument(f"evaluating {path} gave {result!r}: want a finite loss, or one for each sequence")
    return losses


def _command(command: str, path: str) -> Any:
    parts = shlex.split(command)
    words = [p.replace("{}", path) for p in parts] if any("{}" in p for p in parts) else [*parts, path]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InvalidArgument(f"{shlex.join(words)} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    lines: Sequence[str] = done.stdout.strip().splitlines()
    try:
        return json.loads(lines[-1])
    except (IndexError, json.JSONDecodeError) as error:
        raise InvalidArgument(f"{shlex.join(words)} printed {done.stdout[-200:]!r}: want a number or a JSON list at the end") from error


def interval(differences: Array, *, seed: int = 0, resamples: int = 2000, level: float = 0.95) -> tuple[float, float]:
    """Bootstrap interval of the mean of paired differences; NaN for fewer than two."""
    n = len(differences)
    if n < 2:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    means = np.concatenate([differences[rng.integers(0, n, (100, n))].mean(1) for _ in range(-(-resamples // 100))])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
