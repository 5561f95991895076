"""Load argv[1] with the reference library and save it again as argv[2]."""
import sys

import torch  # noqa: F401  (bfloat16 and float8)
from safetensors import safe_open
from safetensors.torch import save_file

with safe_open(sys.argv[1], "pt") as source:
    tensors = {name: source.get_tensor(name) for name in source.keys()}
    save_file(tensors, sys.argv[2], metadata=source.metadata())
