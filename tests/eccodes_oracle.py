"""A process of its own that says what ecCodes itself makes of a GRIB file; it may crash, and then says nothing.

For each path on its input: `<path>.npz` with latitudes, longitudes and float32 values of every field that ecCodes
decodes, and one line of JSON: how many fields, and the error that ended the reading, if any.
"""

import json
import resource
import sys

import eccodes
import numpy as np

ADDRESS_SPACE = 6 << 30


def read(path: str) -> dict[str, object]:
    fields: list[np.ndarray] = []
    error = ""
    with open(path, "rb") as file:
        try:
            while (handle := eccodes.codes_grib_new_from_file(file)) is not None:
                fields.append(decoded(handle))
                eccodes.codes_release(handle)
        except (eccodes.CodesInternalError, ValueError, MemoryError) as failure:
            error = f"{type(failure).__name__}: {failure}"
        # Otherwise what it keeps of a half-read message may turn up in the next file.
        eccodes.codes_grib_multi_support_reset_file(file)
    np.savez(path + ".npz", *fields)
    return {"fields": len(fields), "error": error}


def decoded(handle: int) -> np.ndarray:
    """Latitude, longitude, value of each point, as float64 rows; values rounded to float32, NaN where missing."""
    eccodes.codes_set(handle, "missingValue", 1e34)
    values = eccodes.codes_get_values(handle)
    values = np.where(values == 1e34, np.nan, values).astype(np.float32)
    scanning = (
        eccodes.codes_get(handle, "scanningMode") if eccodes.codes_is_defined(handle, "scanningMode") else 0
    )
    try:
        if scanning & 0x10:
            # Its iterator leaves alternating rows as they were sent, at the wrong end of their latitude.
            raise ValueError
        where = [eccodes.codes_get_array(handle, key) for key in ("latitudes", "longitudes")]
        return np.stack([*where, values if scanning == 0 else in_iterator_order(handle)])
    except (eccodes.CodesInternalError, ValueError):
        nowhere = np.full(values.shape, np.nan)
        return np.stack([nowhere, nowhere, values])


def in_iterator_order(handle: int) -> np.ndarray:
    iterator = eccodes.codes_grib_iterator_new(handle, 0)
    found = []
    while point := eccodes.codes_grib_iterator_next(iterator):
        found.append(point[2])
    eccodes.codes_grib_iterator_delete(iterator)
    values = np.array(found)
    return np.where(values == 1e34, np.nan, values).astype(np.float32)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    eccodes.codes_grib_multi_support_on()
    for line in sys.stdin:
        print(json.dumps(read(line.strip())), flush=True)
