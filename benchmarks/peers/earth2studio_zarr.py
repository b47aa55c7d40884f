"""Writes one lead with earth2studio's ZarrBackend; runs in the peer's own environment, without fengwu_ghr.

`python earth2studio_zarr.py FIELDS.npy CHANNELS OUTPUT.zarr none|blosc` prints the seconds of wall clock and
of CPU that `write` took.
"""

import sys
import time
from collections import OrderedDict

import numpy as np
import torch
from earth2studio.io import ZarrBackend
from zarr.codecs import BloscCodec


def main(fields: str, channels: int, output: str, codec: str) -> None:
    values = torch.from_numpy(np.load(fields))
    _, rows, columns = values.shape
    coordinates = OrderedDict(
        time=np.array(["2024-01-01"], "datetime64[ns]"),
        lead_time=np.array([6], "timedelta64[h]"),
        lat=np.linspace(90, -90, rows),
        lon=np.arange(columns) * (360 / columns),
    )
    names = [f"channel{index}" for index in range(channels)]
    compression = BloscCodec(cname="lz4", clevel=5, shuffle="shuffle", typesize=4)
    backend = ZarrBackend(output, zarr_codecs=compression if codec == "blosc" else None)
    backend.add_array(coordinates, names)
    tensors = [values[index % len(values)][None, None] for index in range(channels)]
    start = time.perf_counter(), time.process_time()
    backend.write(tensors, coordinates, names)
    print(time.perf_counter() - start[0], time.process_time() - start[1])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4])
