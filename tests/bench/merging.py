"""Speed and memory of merging: Trivium, mergekit and a streamed torch loop, in turn, on the same files.

    python merging.py --dir /some/where --mergekit /path/to/mergekit-yaml --output merging.json

Makes ``--checkpoints`` checkpoints of ``--parameters`` numbers (bfloat16, three shards each) below ``--dir``
unless they are there: 1.3 GB each by default. Each round runs every arm once, in turn, so that the ratios are
of runs seconds apart; the figures are medians over rounds. ``--cold`` takes the files out of the page
cache first. ``cpu`` is processor seconds of the processes that
merge, which other work on the machine does not add to.

``--method slerp`` merges the first two; ``ties`` and ``dare`` take the first as the base. ``--sweep 12`` makes
that many candidates in one pass, and times the bare writing of as many bytes beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HIDDEN, VOCAB, SHARDS = 1280, 32000, 3


def shapes(parameters: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Llama of about this size."""
    names: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    layer = {
        "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (HIDDEN, HIDDEN),
        "self_attn.v_proj": (HIDDEN, HIDDEN), "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (3 * HIDDEN, HIDDEN), "mlp.up_proj": (3 * HIDDEN, HIDDEN), "mlp.down_proj": (HIDDEN, 3 * HIDDEN),
        "input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,),
    }  # fmt: skip
    layers = max(1, round((parameters - 2 * VOCAB * HIDDEN) / (13 * HIDDEN * HIDDEN)))
    for i in range(layers):
        names.update({f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()})
    return {**names, "model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCAB, HIDDEN)}


def make(root: Path, count: int, parameters: int) -> list[Path]:
    """Write the checkpoints that are not there yet."""
    import torch
    from safetensors.torch import save_file

    names = shapes(parameters)
    layers = max(int(name.split(".")[2]) for name in names if ".layers." in name) + 1
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": 3 * HIDDEN,
        "num_hidden_layers": layers, "num_attention_heads": HIDDEN // 64, "num_key_value_heads": HIDDEN // 64,
        "vocab_size": VOCAB, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "rms_norm_eps": 1e-5,
    }  # fmt: skip
    pool = torch.randn(1 << 24, generator=torch.Generator().manual_seed(1)).mul_(0.02).to(torch.bfloat16)
    made = []
    for k in range(count):
        folder = root / f"step-{1000 * (k + 1)}"
        made.append(folder)
        if (folder / "model.safetensors.index.json").exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        shards: list[dict[str, torch.Tensor]] = [{} for _ in range(SHARDS)]
        for i, (name, shape) in enumerate(names.items()):
            numbers = torch.Size(shape).numel()
            start = (7919 * i + 104729 * k) % (pool.numel() // 2)
            repeats = -(-(start + numbers) // pool.numel())
            shards[i * SHARDS // len(names)][name] = pool.repeat(repeats)[start : start + numbers].view(shape)
        weight_map = {}
        for s, tensors in enumerate(shards):
            file = f"model-{s + 1:05d}-of-{SHARDS:05d}.safetensors"
            save_file({n: t.contiguous() for n, t in tensors.items()}, folder / file, metadata={"format": "pt"})
            weight_map.update(dict.fromkeys(tensors, file))
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return made


def drop(folders: list[Path]) -> None:
    """Take the files out of the page cache."""
    for folder in folders:
        for path in folder.glob("*.safetensors"):
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def warm(folders: list[Path]) -> None:
    """Read the files into the page cache."""
    buffer = bytearray(1 << 24)
    for folder in folders:
        for path in folder.glob("*.safetensors"):
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass


# What each arm runs, in a process of its own: {"seconds": of the merge alone, "cpu": of the plugin, "anonymous": its peak bytes}.
TRIVIUM = """
import json, os, sys, time, threading
from pathlib import Path
import trivium
sources, out, method, options = json.loads(sys.argv[1])
engine = trivium.Engine()
tiny = options.pop("warm_up")
trivium.merge(tiny, out + "-warm", method="sma", engine=engine, durable=False)
pids = [p.pid for p in engine.plugins()]
peak, over = 0, threading.Event()
def anonymous(pid):
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    return 0
def cpu(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
def watch():
    global peak
    while not over.wait(0.02):
        peak = max(peak, sum(anonymous(pid) for pid in pids))
watcher = threading.Thread(target=watch)
if options.pop("memory", False):
    watcher.start()
before, begin = sum(map(cpu, pids)), time.perf_counter()
if method == "sweep":
    series = trivium.series(*sources)
    many = options.pop("candidates")
    alphas = [("ema", {"alpha": (k + 1) / (many + 1)}) for k in range(many)]
    report = trivium.sweep(series, out, n=[len(sources)], method=alphas, engine=engine, **options)
    assert len(report.candidates) == many
else:
    report = trivium.merge(sources, out, method=method, engine=engine, **options)
seconds = time.perf_counter() - begin
over.set()
if watcher.ident: watcher.join()
print(json.dumps({"seconds": seconds, "cpu": sum(map(cpu, pids)) - before, "anonymous": peak}))
"""

# The bytes of so many results written from memory, a chunk at a time, by two threads: what no merge can avoid.
WRITES = """
import json, os, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
sources, out, many, options = json.loads(sys.argv[1])
sizes = [p.stat().st_size for p in Path(sources[-1]).glob("*.safetensors")]
chunk = os.urandom(1 << 16)
def write(k):
    folder = Path(out) / str(k)
    folder.mkdir(parents=True)
    for i, size in enumerate(sizes):
        with open(folder / str(i), "wb", buffering=0) as file:
            os.posix_fallocate(file.fileno(), 0, size)
            for at in range(0, size, len(chunk)):
                os.pwrite(file.fileno(), chunk, at)
begin = time.perf_counter()
with ThreadPoolExecutor(os.cpu_count()) as pool:
    list(pool.map(write, range(many)))
print(json.dumps({"seconds": time.perf_counter() - begin}))
"""

STREAMED = """
import json, sys, time
import torch
from collections import defaultdict
from pathlib import Path
from safetensors import safe_open
from safetensors.torch import save_file
sources, out, method, options = json.loads(sys.argv[1])
begin = time.perf_counter()
index = json.loads((Path(sources[-1]) / "model.safetensors.index.json").read_text())
shards = defaultdict(list)
for name, file in index["weight_map"].items():
    shards[file].append(name)
Path(out).mkdir()
for file, names in shards.items():
    opened = [safe_open(Path(s) / file, "pt") for s in sources]
    merged = {}
    for name in names:
        total = opened[0].get_tensor(name).float()
        for source in opened[1:]:
            total += source.get_tensor(name)
        merged[name] = (total / len(opened)).to(torch.bfloat16)
    save_file(merged, Path(out) / file)
print(json.dumps({"seconds": time.perf_counter() - begin}))
"""


def run_python(program: str, *arguments: object) -> dict[str, object]:
    done, cpu = timed([sys.executable, "-c", program, json.dumps(arguments)])
    return {"cpu": cpu, **json.loads(done.stdout.splitlines()[-1])}


def timed(command: list[str]) -> tuple[subprocess.CompletedProcess[str], float]:
    before = os.times()
    done = subprocess.run(command, capture_output=True, text=True)
    after = os.times()
    if done.returncode:
        sys.exit(done.stderr)
    return done, after.children_user + after.children_system - before.children_user - before.children_system


def recipe(method: str, sources: list[str]) -> dict[str, object]:
    """mergekit's configuration. Sums in float32, which round as the others do."""
    models: list[dict[str, object]] = [{"model": s} for s in sources]
    made: dict[str, object] = {"merge_method": method, "dtype": "float32", "out_dtype": "bfloat16", "models": models}
    if method == "linear":
        made["parameters"] = {"weight": 1.0}
    elif method == "slerp":
        made |= {"base_model": sources[0], "parameters": {"t": 0.5}}
    else:
        made |= {"merge_method": "dare_linear" if method == "dare" else method, "base_model": sources[0], "models": models[1:],
                 "parameters": {"weight": 0.3, "density": 0.5}}  # fmt: skip
    return made


def run_mergekit(binary: str, method: str, sources: list[str], out: str) -> dict[str, object]:
    """mergekit as a command. Its start counts: it has no other way to run."""
    with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
        json.dump(recipe(method, sources), file)  # JSON is YAML
        file.flush()
        begin = time.perf_counter()
        _, cpu = timed([binary, file.name, out, "--no-copy-tokenizer"])
    return {"seconds": time.perf_counter() - begin, "cpu": cpu}


def arms(args: argparse.Namespace, sources: list[str], tiny: list[str]) -> dict[str, Callable[[str], dict[str, object]]]:
    def ours(method: str, used: list[str] = sources, **options: object) -> Callable[[str], dict[str, object]]:
        full = {"warm_up": tiny, "durable": False, **options}
        return lambda out: run_python(TRIVIUM, used, out, method, full)

    weights = [(i + 1) / 36 for i in range(len(sources))] if len(sources) == 8 else [1 / len(sources)] * len(sources)
    found = {"trivium sma": ours("sma")}
    if not args.method and not args.sweep:
        found |= {
            "trivium ema": ours("ema"),
            "trivium wma": ours("wma"),
            "trivium linear": ours("linear", weights=weights),
            "trivium sma, memory": ours("sma", memory=True),
            "torch streamed": lambda out: run_python(STREAMED, sources, out, "sma", {}),
        }
        if args.durable:
            found["trivium sma, durable"] = ours("sma", durable=True)
        if args.mergekit:
            found["mergekit linear"] = lambda out: run_mergekit(args.mergekit, "linear", sources, out)
    for method in args.method:
        used = sources[:2] if method == "slerp" else sources[1:]
        options: dict[str, object] = {} if method == "slerp" else {"base": sources[0], "density": 0.5, "source_weights": [0.3] * len(used)}
        found[f"trivium {method}"] = ours(method, used, **options)
        if args.memory:
            found[f"trivium {method}, memory"] = ours(method, used, memory=True, **options)
        if args.mergekit:
            found[f"mergekit {method}"] = lambda out, m=method: run_mergekit(args.mergekit, m, sources[:2] if m == "slerp" else sources, out)  # type: ignore[misc]
    if args.sweep:
        found[f"trivium sweep of {args.sweep}"] = ours("sweep", candidates=args.sweep)
        found[f"writes of {args.sweep}"] = lambda out: run_python(WRITES, sources, out, args.sweep, {})
    return {name: arm for name, arm in found.items() if not args.only or name in args.only}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="folder for results, such as one in memory where the disk is slow; default: --dir")
    parser.add_argument("--parameters", type=float, default=0.63e9)
    parser.add_argument("--checkpoints", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--durable", action="store_true", help="also time a merge that waits for the disk")
    parser.add_argument("--mergekit", help="path of mergekit-yaml, in an environment of its own")
    parser.add_argument("--method", nargs="*", default=[], choices=["slerp", "ties", "dare"], help="time these instead of linear ones")
    parser.add_argument("--memory", action="store_true", help="also watch the anonymous memory of those")
    parser.add_argument("--sweep", type=int, default=0, help="time a sweep of so many candidates")
    parser.add_argument("--only", nargs="*", help="names of arms")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    folders = make(args.dir / "full", args.checkpoints, int(args.parameters))
    tiny = [str(f) for f in make(args.dir / "tiny", 2, 2 * VOCAB * HIDDEN)]
    sources, results = [str(f) for f in folders], args.out or args.dir
    results.mkdir(parents=True, exist_ok=True)
    target = results / "out"
    runs: dict[str, list[dict[str, object]]] = {}
    for _ in range(args.rounds):
        for name, arm in arms(args, sources, tiny).items():
            for left in results.glob("out*"):
                shutil.rmtree(left)
            (drop if args.cold else warm)(folders)
            if args.sweep:
                # A virtual machine gives free memory back to its host after two seconds, and gets it again
                # at several times the cost of a copy: what comes after a sweep must not find it still there.
                time.sleep(5)
            result = arm(str(target)) | {"load": os.getloadavg()[0]}
            runs.setdefault(name, []).append(result)
            print(name, json.dumps(result), flush=True)
    medians = {name: statistics.median(float(r["seconds"]) for r in rs) for name, rs in runs.items()}
    ours = medians.get("trivium sma", 0)
    result = {
        "machine": {"cpus": os.cpu_count(), "processor": platform.processor(), "kernel": platform.release()},
        "parameters": args.parameters, "checkpoints": args.checkpoints, "cold": args.cold,
        "median_seconds": medians, "median_cpu": {n: statistics.median(float(r["cpu"]) for r in rs) for n, rs in runs.items()}, "times_trivium_sma": {n: s / ours for n, s in medians.items()} if ours else {}, "runs": runs,
    }  # fmt: skip
    text = json.dumps(result, indent=1)
    if args.output:
        args.output.write_text(text + "\n")
    print(json.dumps({k: v for k, v in result.items() if k != "runs"}, indent=1))


if __name__ == "__main__":
    main()
