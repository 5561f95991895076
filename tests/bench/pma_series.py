"""Trains a small model with a constant rate and keeps its checkpoints: a second series to merge, next to pma-tiny.

    python pma_series.py out/pma-bytes
    python pma_tiny.py out/pma-bytes --sizes 2 3 4 6 8 12 --intervals 100 200 --individuals

A byte-level Llama (64 wide, 3 layers, context 128, 0.18 M parameters) on the sources of Python's standard library, with
other files held out; AdamW, warm-up, then a constant rate (warm-up - stable - decay), a checkpoint each ``--every``
steps in bfloat16, and from two of them a branch whose rate falls to zero. A few minutes on two cores.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

CONTEXT, BATCH, RATE, WARM_UP = 128, 16, 4e-3, 100


def texts() -> tuple[torch.Tensor, torch.Tensor]:
    """Bytes to train on and, from every twentieth file, bytes to evaluate on."""
    files = sorted(Path(os.__file__).parent.glob("*.py")) + sorted((Path(os.__file__).parent / "asyncio").glob("*.py"))
    parts: tuple[bytearray, bytearray] = (bytearray(), bytearray())
    for i, path in enumerate(files):
        parts[i % 20 == 7].extend(path.read_bytes() + b"\0")
    return torch.frombuffer(parts[0], dtype=torch.uint8).long(), torch.frombuffer(parts[1], dtype=torch.uint8).long()


def train(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, text: torch.Tensor, draw: torch.Generator, rate: float) -> float:
    """One step."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    starts = torch.randint(0, len(text) - CONTEXT - 1, (BATCH,), generator=draw)
    batch = torch.stack([text[s : s + CONTEXT + 1] for s in starts])
    logits = model(batch[:, :-1], use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss)


def keep(model: LlamaForCausalLM, folder: Path) -> None:
    """Save in bfloat16 and go on in float32."""
    state = {k: v.detach().to(torch.bfloat16).contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    model.config.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--first", type=int, default=1000, help="step of the first checkpoint")
    parser.add_argument("--decay", type=int, default=300, help="steps of an annealed branch")
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    text, held_out = texts()
    config = LlamaConfig(vocab_size=256, hidden_size=64, intermediate_size=192, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4,
                         max_position_embeddings=CONTEXT, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0)  # fmt: skip
    config.architectures = ["LlamaForCausalLM"]
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.1)
    draw = torch.Generator().manual_seed(args.seed)
    count = len(held_out) // (CONTEXT + 1)
    tokens = held_out[: count * (CONTEXT + 1)].view(count, CONTEXT + 1)[torch.randperm(count, generator=torch.Generator().manual_seed(1))[:512]]
    args.out.mkdir(parents=True, exist_ok=True)
    save_file({"tokens": tokens.int().contiguous()}, args.out / "eval.safetensors")
    log, begin = [], time.perf_counter()
    for step in range(1, args.steps + 1):
        loss = train(model, optimizer, text, draw, RATE * min(1, step / WARM_UP))
        if step % 100 == 0:
            log.append((step, round(loss, 4)))
            print(step, f"{loss:.4f}", f"{time.perf_counter() - begin:.0f} s", flush=True)
        if step >= args.first and step % args.every == 0:
            keep(model, args.out / f"step-{step:05d}")
        if step in ((args.first + args.steps) // 2, args.steps):
            anneal(args, model, optimizer, text, draw, step)
    (args.out / "training.json").write_text(json.dumps({"parameters": sum(p.numel() for p in model.parameters()), "loss": log}))


def anneal(args: argparse.Namespace, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, text: torch.Tensor, draw: torch.Generator, step: int) -> None:
    """Train a copy on while the rate falls to zero; the run itself goes on as if nothing had been."""
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    moments, position = copy.deepcopy(optimizer.state_dict()), draw.get_state()
    for i in range(args.decay):
        train(model, optimizer, text, draw, RATE * (1 - i / args.decay))
    keep(model, args.out / f"annealed-{step:05d}")
    model.load_state_dict(weights)
    optimizer.load_state_dict(moments)
    draw.set_state(position)


if __name__ == "__main__":
    main()
