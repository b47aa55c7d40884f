"""Whether a GRIB2 data section holds as much as its header promises. ecCodes does not ask: it reads past the end.

Octets as in the WMO Manual on Codes, FM 92, templates 5.0 to 5.4 and 7.2, 7.3. The packings left out have decoders
that know where their data ends.
"""

import numpy as np

from fengwu_ghr.grib.sections import Bytes, sections

SIMPLE, COMPLEX, SPATIAL_DIFFERENCING, IEEE, LOG_PREPROCESSING = 0, 2, 3, 4, 61
_SECTION_HEADER = 5
_IEEE_BYTES = {1: 4, 2: 8, 3: 16}


def check_data(message: bytes) -> None:
    """Raises ValueError when the values of a single-field message need other bytes than its data section has."""
    if message[7] != 2:
        return
    parts = dict(sections(message))
    header, data = parts[5], parts[7][_SECTION_HEADER:]
    template = _number(header, 10, 11)
    if template in (SIMPLE, LOG_PREPROCESSING):
        _expect(len(data), -(-_number(header, 6, 9) * header[19] // 8))
    elif template == IEEE:
        _expect(len(data), _number(header, 6, 9) * _IEEE_BYTES.get(header[11], 0))
    elif template in (COMPLEX, SPATIAL_DIFFERENCING):
        _check_groups(header, data)


def _check_groups(header: Bytes, data: Bytes) -> None:
    """Complex packing: the widths and lengths of the groups, sent before the values, say what these take."""
    groups, values = _number(header, 32, 35), _number(header, 6, 9)
    if not groups:
        return
    at = _extra_descriptors(header) + -(-groups * header[19] // 8)
    widths, at = _bit_fields(data, at, groups, header[36])
    lengths, at = _bit_fields(data, at, groups, header[46])
    widths += header[35]
    lengths = _number(header, 38, 41) + header[41] * lengths
    lengths[-1] = _number(header, 43, 46)
    if int(lengths.sum()) != values:
        raise ValueError(f"its {groups} groups hold {int(lengths.sum())} values, not {values}")
    _expect(len(data), at + -(-int((widths * lengths).sum()) // 8))


def _extra_descriptors(header: Bytes) -> int:
    """Octets before the groups: the first values and the overall minimum of the differences."""
    if _number(header, 10, 11) == COMPLEX:
        return 0
    return (header[47] + 1) * header[48]


def _bit_fields(data: Bytes, at: int, count: int, bits: int) -> tuple[np.ndarray, int]:
    """So many numbers of so many bits from this byte on, and the byte at which the next part begins."""
    end = at + -(-count * bits // 8)
    _expect(len(data), end)
    stream = np.unpackbits(np.frombuffer(data[at:end], np.uint8))[: count * bits]
    weights = 1 << np.arange(bits, dtype=np.int64)[::-1]
    return stream.reshape(count, bits) @ weights, end


def _expect(there: int, needed: int) -> None:
    if needed > there:
        raise ValueError(f"its data section holds {there} bytes, its values need {needed}")


def _number(section: Bytes, first: int, last: int) -> int:
    """An unsigned number from its octets, counted from 1, both included."""
    return int.from_bytes(section[first - 1 : last], "big")
