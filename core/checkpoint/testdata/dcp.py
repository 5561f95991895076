"""Writes testdata/dcp with torch.distributed.checkpoint: two ranks, a mesh of one axis, and what torch's loader reads of it."""
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.multiprocessing.spawn import spawn


def rank(number, out):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29533")
    dist.init_process_group("gloo", rank=number, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    g = torch.Generator().manual_seed(7)
    model = {
        "model.rows": distribute_tensor(torch.randn(5, 3, generator=g), mesh, [Shard(0)]),
        "model.columns": distribute_tensor(torch.randn(4, 6, generator=g).bfloat16(), mesh, [Shard(1)]),
        "model.one_row": distribute_tensor(torch.randn(1, 4, generator=g).half(), mesh, [Shard(0)]),
        "lm_head": torch.arange(6).reshape(2, 3),
    }
    dcp.save({"app": {"model": model, "optim": {"exp_avg": torch.ones(3)}}, "step": 3}, checkpoint_id=out)
    dist.destroy_process_group()


if __name__ == "__main__":
    out = sys.argv[1]
    shutil.rmtree(out, ignore_errors=True)
    spawn(rank, args=(out,), nprocs=2)
    state = {}
    _load_state_dict(state, storage_reader=dcp.FileSystemReader(out), planner=_EmptyStateDictLoadPlanner(), no_dist=True)
    found = {
        name: {"shape": list(t.shape), "sha256": hashlib.sha256(bytes(t.contiguous().reshape(-1).view(torch.uint8).tolist())).hexdigest()}
        for name, t in state["app"]["model"].items()
    }
    Path(out, "read.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
