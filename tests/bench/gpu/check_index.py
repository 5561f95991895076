"""The index against the golden cases (float32 path) and against the float32 reference of the released rule."""
import json
import os
import random
import sys

import torch

import flexindex
import inputs


def golden(folder):
    from safetensors.torch import load_file
    ok = True
    for case in json.load(open(os.path.join(folder, "index.json"))):
        path = os.path.join(folder, case["file"])
        if not os.path.exists(path):
            print("golden %s: not in this checkout" % case["file"], flush=True)
            continue
        t = load_file(path)
        q, k = t["q"].float().cuda(), t["k"].float().cuda()
        N, h = case["num_blocks"], case["q_heads"]
        want = torch.zeros(h, N * N, dtype=torch.bool)
        for i in range(h):
            want[i, t["blocks"][t["head_offsets"][i]:t["head_offsets"][i + 1]].long()] = True
        want = want.view(h, N, N)
        args = dict(gamma=case["gamma"], tau=case["tau"], min_budget=case["min_budget"], max_budget=case["max_budget"],
                    block=case["block_size"], interleave=case["gqa_interleave"])
        index = flexindex.Index(torch.float32, plain=True)
        go, w = index.prepare(q[None], k[None], poison=True, **args)
        go()
        got = flexindex.masks(w, h, N).cpu()
        js = (w["js"].cpu() - t["js_distance"]).abs().max().item()
        mine, _ = flexindex.reference(q, k, **args)
        same, ref_same = bool((got == want).all()), bool((mine.cpu() == want).all())
        ok &= same
        print("golden %s: blocks %s, jaccard %.5f, js error %.1e (torch reference %s)"
              % (case["file"], "identical" if same else "DIFFER", flexindex.jaccard(got, want), js, "identical" if ref_same else "differs"), flush=True)
    return ok


def random_cases(count=24, seed=3):
    """Structured inputs of random lengths, 16-bit, tensor-core path against the reference."""
    r, worst = random.Random(seed), 1.0
    kernels = {}
    for i in range(count):
        n = r.choice([r.randint(300, 3000), 128 * r.randint(3, 40), r.randint(3000, 9000)])
        hkv, g = r.choice([(1, 4), (2, 4), (2, 1)])
        dt = r.choice([torch.bfloat16, torch.float16])
        q, k, _ = inputs.make_qkv(n, seed=i, dtype=dt, hq=hkv * g, hkv=hkv)
        q, k = q.transpose(1, 2), k.transpose(1, 2)
        start = r.choice([0, 0, r.randint(1, n - 128)])  # a chunk: the queries from here on
        q, first = q[:, :, start:], start // 128
        plain, bands = r.random() < 0.3, r.random() < 0.4
        if (dt, plain, bands) not in kernels:
            kernels[dt, plain, bands] = flexindex.Index(dt, plain=plain, bands=bands)
        args = dict(gamma=r.choice([0.8, 0.9, 0.95]), tau=r.choice([0.0, 0.1, 0.3, 0.6]), min_budget=r.choice([None, 256, 1024]))
        if bands:  # as if turned
            args.update(q2=q.roll(1, -1) * 0.8, band=r.randint(1, n), window=r.choice([0, r.randint(300, n)]), softcap=r.choice([0.0, 4.0]))
            args["q2"][:, :, : max(0, args["band"] - start)] = float("nan")  # rows that have no such distance
        go, w = kernels[dt, plain, bands].prepare(q, k, poison=True, **args)
        go()
        N = -(-n // 128)
        got = flexindex.masks(w, hkv * g, N, first)
        shown = {x: y for x, y in args.items() if x != "q2"}
        want, js = flexindex.reference(q[0], k[0], **shown, q2=args["q2"][0].nan_to_num() if bands else None)
        go()  # again over used buffers: the same blocks
        again = flexindex.masks(w, hkv * g, N, first)
        j = flexindex.jaccard(got, want)
        worst = min(worst, j)
        if j < 0.999 or not bool((again == got).all()):
            print("index case", i, n, start, plain, hkv, g, dt, shown, "jaccard %.5f repeat %s js %.1e" % (j, bool((again == got).all()), (js - w["js"].cpu()).abs().max().item()), flush=True)
    print("index: %d random cases, worst jaccard %.5f" % (count, worst), flush=True)
    return worst >= 0.999


def main(folder=None):
    ok = random_cases()
    if folder:
        ok &= golden(folder)
    return ok


if __name__ == "__main__":
    raise SystemExit(0 if main(*sys.argv[1:2]) else 1)
