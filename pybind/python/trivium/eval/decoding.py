"""Greedy answers to one prompt under several arms, decoded side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from trivium.eval.tasks.sample import Sample

# What the caches of one batch may take up. Fixed, since another batch rounds sums in another order.
BATCH_BYTES = {"cpu": 1 << 30, "cuda": 8 << 30}


@dataclass
class Started:
    """A prefilled prompt: the likeliest next token [1, 1], and the keys and values so far."""

    token: torch.Tensor
    cache: Any
    seconds: float


@dataclass
class _Answer:
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    over: bool = False


def room(started: Started, device: str) -> int:
    """How many prompts like this one are decoded together."""
    held = sum(tensor.nbytes for pair in _pairs(started.cache) for tensor in pair)
    return max(1, BATCH_BYTES[device] // max(held, 1))


@torch.inference_mode()
def decode(model: Any, tokenizer: Any, sample: Sample, started: Sequence[Started], most: int) -> list[str]:
    """Go on from prefills of one prompt, at most so many tokens each.

    An answer ends early only where nothing can change its score: all was found, or the text ended.
    The caches are used up.
    """
    end = _end_tokens(model, tokenizer)
    answers = [_Answer() for _ in started]
    tokens = torch.cat([each.token for each in started])
    cache = _merge([each.cache for each in started])
    for step in range(most):
        for answer, token in zip(answers, tokens[:, 0].tolist()):
            _append(answer, token, end, tokenizer, sample)
        if step + 1 == most or all(answer.over for answer in answers):
            break
        at = torch.full_like(tokens, len(sample.ids) + step)
        result = model(input_ids=tokens, position_ids=at, past_key_values=cache, use_cache=True)
        cache, tokens = result.past_key_values, result.logits[:, -1:].argmax(dim=-1)
    return [answer.text for answer in answers]


def found_share(text: str, sample: Sample) -> float:
    """Share of the answers that a text holds, whatever their case; of any one where one is enough."""
    found = [answer.lower() in text.lower() for answer in sample.answers]
    return float(any(found)) if sample.any_answer else sum(found) / len(found)


def _append(answer: _Answer, token: int, end: set[int], tokenizer: Any, sample: Sample) -> None:
    if answer.over or token in end:
        answer.over = True
        return
    answer.tokens.append(token)
    answer.text = str(tokenizer.decode(answer.tokens))
    answer.over = found_share(answer.text, sample) == 1.0


def _merge(caches: list[Any]) -> Any:
    """One cache with a batch row for each; all hold equally many tokens, so nothing else of them differs."""
    first, *others = caches
    if not others:
        return first
    if hasattr(first, "layers"):
        for layer, *rest in zip(first.layers, *(cache.layers for cache in others)):
            layer.keys = torch.cat([layer.keys, *(other.keys for other in rest)])
            layer.values = torch.cat([layer.values, *(other.values for other in rest)])
            for other in rest:
                other.keys = other.values = None  # or the memory would be needed twice
        return first
    for name in ("key_cache", "value_cache"):  # before transformers 4.54
        for n, tensor in enumerate(getattr(first, name)):
            getattr(first, name)[n] = torch.cat([tensor, *(getattr(cache, name)[n] for cache in others)])
    return first


def _pairs(cache: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    if hasattr(cache, "layers"):
        return [(layer.keys, layer.values) for layer in cache.layers]
    return list(zip(cache.key_cache, cache.value_cache))


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    configured = getattr(model.generation_config, "eos_token_id", None)
    several = configured if isinstance(configured, list) else [configured]
    return {int(token) for token in (*several, getattr(tokenizer, "eos_token_id", None)) if token is not None}
