"""The reference reader as a filter: length-prefixed files in, a line of JSON out.

The line is null when the file is refused, else [[name, dtype, shape, crc32], ...].
"""
import json
import struct
import sys
import zlib

import safetensors

print(json.dumps(safetensors.__version__), flush=True)
while prefix := sys.stdin.buffer.read(8):
    file = sys.stdin.buffer.read(struct.unpack("<Q", prefix)[0])
    try:
        tensors = safetensors.deserialize(file)
    except safetensors.SafetensorError:
        print("null", flush=True)
        continue
    print(json.dumps(sorted([n, t["dtype"], t["shape"], zlib.crc32(t["data"])] for n, t in tensors)), flush=True)
