"""Decode with transformers' cache and with Trivium's: time and bytes copied for each token.

    python tests/bench/decode_cache.py [--tokens 4096] [--layers 4]

A random Llama of SmolLM2's shape: what is copied does not depend on the weights.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import trivium
import trivium.hf
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig


def copied() -> int:
    return int(trivium.stats()["bytes_copied"])


@torch.inference_mode()
def measure(model: Any, ids: torch.Tensor, cache: Any, steps: int) -> str:
    before, started = copied(), time.perf_counter()
    model(ids, past_key_values=cache, logits_to_keep=1)
    prefill, prefill_copied = time.perf_counter() - started, copied() - before
    times, before = [], copied()
    for _ in range(steps):
        started = time.perf_counter()
        model(ids[:, :1], past_key_values=cache)
        times.append(time.perf_counter() - started)
    token = (copied() - before) / steps
    return (
        f"prefill {prefill:.2f} s, {prefill_copied / 2**20:.1f} MiB copied; "
        f"decode {1e3 * statistics.median(times):.1f} ms, {token / 2**20:.3f} MiB copied a token"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000, hidden_size=576, intermediate_size=1536, num_hidden_layers=arguments.layers,
        num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=2 * arguments.tokens,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.randint(1, 1000, (1, arguments.tokens))
    caches: dict[str, Callable[[], Any]] = {
        "transformers.DynamicCache": lambda: DynamicCache(config=config),
        "trivium.hf.Cache": lambda: trivium.hf.Cache(config),
    }
    with trivium.patch(model, attention="streaming"):
        for name, make in caches.items():
            print(f"{name}: {measure(model, ids, make(), arguments.steps)}", flush=True)


if __name__ == "__main__":
    main()
