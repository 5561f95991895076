"""FlashPrefill's and XAttention's selections on the device against float32 references, and against masks of the CPU strategies."""
import json
import os
import random
import sys

import torch

import flexindex
import inputs
import selections


def random_cases(count=24, seed=5, longest=6000):
    r, kernels, worst, bad = random.Random(seed), {}, 1.0, 0
    for i in range(count):
        n = r.choice([r.randint(130, 1500), 128 * r.randint(2, 30), r.randint(1500, 6000)])
        n = min(n, longest)
        offset = min(r.choice([0, 0, r.randint(1, 2000)]), longest)
        hkv, g = r.choice([(1, 4), (2, 4), (2, 1)])
        dt = r.choice([torch.bfloat16, torch.bfloat16, torch.float16])
        d = 128
        if r.random() < 0.6:
            q, k, _ = inputs.make_qkv(n + offset, seed=i, dtype=dt, hq=hkv * g, hkv=hkv)
            q, k = q.transpose(1, 2)[:, :, offset:], k.transpose(1, 2)
        else:
            d, b = r.choice([64, 96, 128]), r.choice([1, 2])
            q, k = torch.randn(b, hkv * g, n, d, device="cuda").to(dt), torch.randn(b, hkv, n + offset, d, device="cuda").to(dt)
        window = r.choice([0, 0, 0, r.randint(100, 3000)])
        if i % 2:
            args, key = dict(alpha=r.choice([0.05, 0.12, 0.5, 1.0]), fewest=r.choice([0, 0, 3]), last=r.choice([2, 8]), sinks=r.choice([1, 2]), near=r.choice([1, 4]),
                             softcap=r.choice([0.0, 0.0, 2.0])), ("f", selections.driver.compiled_dim(d), dt)
        else:
            args, key = dict(threshold=r.choice([0.5, 0.9, 0.95])), ("x", r.choice([8, 16]), dt)
        key += (r.random() < 0.3,)  # the kernel of older devices
        if key not in kernels:
            kernels[key] = (selections.FlashPrefill if key[0] == "f" else selections.XAttention)(key[1], dt == torch.float16, key[3])
        go, w = kernels[key].prepare(q, k, offset=offset, window=window, **args)
        go()
        h, qb, kb = q.shape[1], -(-(offset % 128 + n) // 128), -(-(n + offset) // 128)
        got = selections.dense_mask(w, q.shape[0] * h, qb, kb)
        go()  # again over used buffers: the same blocks
        repeat = bool((selections.dense_mask(w, q.shape[0] * h, qb, kb) == got).all())
        reference = selections.flashprefill_reference if i % 2 else lambda *x, **y: selections.xattention_reference(*x, stride=key[1], **y)
        want = torch.cat([reference(q[b], k[b], offset=offset, window=window, **args) for b in range(q.shape[0])])
        j = flexindex.jaccard(got, want)
        worst = min(worst, j)
        if j < 0.999 or not repeat:
            bad += 1
            print("selector case", i, key, dict(n=n, offset=offset, d=d, window=window, **args), "jaccard %.5f repeat %s density %.3f"
                  % (j, repeat, want.float().mean().item()), flush=True)
    print("selectors: %d random cases, worst jaccard %.5f" % (count, worst), flush=True)
    return bad == 0


def strategies(folder, kernel=True):
    """Masks that the CPU strategies chose: kernel = False compares the references here, without a GPU."""
    ok, path = True, os.path.join(folder, "index.json")
    if not os.path.exists(path):
        print("no masks of the CPU strategies in this checkout", flush=True)
        return True
    for case in json.load(open(path)):
        raw = lambda name: open(os.path.join(folder, case[name]), "rb").read()
        device = "cuda" if kernel else "cpu"
        load = lambda name, *s: torch.frombuffer(bytearray(raw(name)), dtype=torch.bfloat16).view(*s).to(device)
        h, hkv, n, m, d = (case[x] for x in ("heads", "kv_heads", "n", "m", "d"))
        q, k = load("q", h, n, d), load("k", hkv, m, d)
        qb, kb = case["q_blocks"], case["k_blocks"]
        want = torch.frombuffer(bytearray(raw("mask")), dtype=torch.uint8).view(h, qb, kb).bool().to(device)
        args, x = case["args"], case["strategy"] == "xattention"
        if case["strategy"] == "flexprefill":
            if kernel:
                go, w = flexindex.Index(head_dim=d).prepare(q[None], k[None], poison=True, **args)
                go()
                got = flexindex.masks(w, h, kb, kb - qb)
            elif args["rule"] == 0:
                got, _ = flexindex.reference(q, k, **{x: y for x, y in args.items() if x != "rule"})
            else:
                continue
        elif kernel:
            s = selections.XAttention(case["stride"]) if x else selections.FlashPrefill(d)
            go, w = s.prepare(q[None], k[None], **args)
            go()
            got = selections.dense_mask(w, h, qb, kb)
        elif x:
            got = selections.xattention_reference(q, k, stride=case["stride"], **args)
        else:
            got = selections.flashprefill_reference(q, k, **args)
        j = flexindex.jaccard(got, want)
        ok &= j >= 0.999
        print("%s as the CPU chose, %d x %d tokens, %s: jaccard %.5f, density %.3f"
              % (case["strategy"], n, m, args, j, want.float().mean().item()), flush=True)
    return ok


if __name__ == "__main__":
    ok = strategies(sys.argv[1], torch.cuda.is_available()) if len(sys.argv) > 1 else True
    raise SystemExit(0 if (not torch.cuda.is_available() or random_cases()) and ok else 1)
