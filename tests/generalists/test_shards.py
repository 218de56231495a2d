"""Shards: single slices out of a file, and files that lie."""

import io
import json
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tutelage.generalists import shards
from tutelage.generalists.base import Embedding

pytestmark = pytest.mark.files

RANDOM = np.random.default_rng(0)
EMBEDDINGS = {
    (axis, index): Embedding(RANDOM.standard_normal((4, 16, 16)).astype(np.float16), (31, 40 + index))
    for axis in (0, 2)
    for index in range(5)
}
DATA = shards.write(EMBEDDINGS, "fp16", 1, 0.4375)
HEADER_AT = len(b"tutelage embeddings 1\n") + 8


class Watched(io.BytesIO):
    """Counts what is read of it."""

    reads = 0
    bytes_read = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.reads, self.bytes_read = self.reads + 1, self.bytes_read + len(data)
        return data


def _header() -> tuple[dict[str, Any], bytes]:
    size, _ = struct.unpack_from("<II", DATA, HEADER_AT - 8)
    return json.loads(DATA[HEADER_AT : HEADER_AT + size]), DATA[HEADER_AT + size :]


def _claiming(change: Callable[[dict[str, Any]], object]) -> bytes:
    """The shard with another header, its checksum right."""
    header, bodies = _header()
    change(header)
    text = json.dumps(header).encode()
    return DATA[: HEADER_AT - 8] + struct.pack("<II", len(text), zlib.crc32(text)) + text + bodies


def test_wanted_slices_are_read_and_the_others_only_named() -> None:
    read = shards.read(io.BytesIO(DATA), [(0, 3), (2, 1), (1, 1), (0, 99)])
    assert read.keys == EMBEDDINGS.keys()
    assert read.found.keys() == {(0, 3), (2, 1)}
    assert read.seconds == 0.4375
    for key, embedding in read.found.items():
        assert embedding.shape == EMBEDDINGS[key].shape
        assert np.array_equal(embedding.features_CHW, EMBEDDINGS[key].features_CHW)


def test_one_slice_of_many_takes_one_slice_of_reading() -> None:
    embedding = Embedding(RANDOM.standard_normal((64, 32, 32)).astype(np.float16), (31, 47))
    data = shards.write({(0, index): embedding for index in range(32)}, "fp16", 1, None)
    stream = Watched(data)
    read = shards.read(stream, [(0, 17)])
    assert stream.bytes_read == read.bytes_read < len(data) / 20
    assert stream.reads == 2


def test_slices_that_lie_together_are_read_together() -> None:
    embedding = Embedding(RANDOM.standard_normal((64, 32, 32)).astype(np.float16), (31, 47))
    data = shards.write({(0, index): embedding for index in range(32)}, "fp16", 1, None)
    stream = Watched(data)
    assert len(shards.read(stream, [(0, index) for index in (3, 4, 5, 6, 20, 21)]).found) == 6
    assert stream.reads == 3


def test_a_header_longer_than_the_first_read_is_read_whole() -> None:
    one = EMBEDDINGS[0, 0]
    data = shards.write({(0, index): one for index in range(200)}, "fp16", 0, None)
    read = shards.read(io.BytesIO(data), [(0, 199)])
    assert len(read.keys) == 200
    assert np.array_equal(read.found[0, 199].features_CHW, one.features_CHW)


def test_the_same_embeddings_are_the_same_bytes() -> None:
    assert shards.write(dict(reversed(EMBEDDINGS.items())), "fp16", 1, 0.4375) == DATA


@pytest.mark.parametrize("at", range(0, len(DATA), 997))
def test_a_flipped_bit_is_never_believed(at: int) -> None:
    data = bytearray(DATA)
    data[at] ^= 16
    with pytest.raises(ValueError, match=r"checksum|do not begin|claims"):
        shards.read(io.BytesIO(bytes(data)), EMBEDDINGS)


@pytest.mark.parametrize("left", [0, 1, 21, 25, 30, 100, len(DATA) // 2, len(DATA) - 1])
def test_a_file_that_is_cut_short_is_refused(left: int) -> None:
    with pytest.raises(ValueError, match=r"do not begin|claims|ends at byte"):
        shards.read(io.BytesIO(DATA[:left]), EMBEDDINGS)


def test_a_damaged_slice_does_not_matter_to_who_wants_another() -> None:
    data = DATA[:-1] + bytes([DATA[-1] ^ 1])  # the last body
    assert shards.read(io.BytesIO(data), [(0, 0)]).found.keys() == {(0, 0)}
    with pytest.raises(ValueError, match=r"slice \(2, 4\) does not match its checksum"):
        shards.read(io.BytesIO(data), [(2, 4)])


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header["entries"][0].update(size=10**12),
        lambda header: header["entries"][0].update(start=10**12),
        lambda header: header["entries"][0].update(start=-5),
        lambda header: header["entries"][0]["form"].update(features=[10**6, 10**6]),
        lambda header: header["entries"][0]["form"].update(features=[400, 16, 16]),
        lambda header: header["entries"][0]["form"].update(precision="fp64"),
        lambda header: header["entries"][0].update(key=[0]),
        lambda header: header.update(entries="all"),
        lambda header: header.pop("entries"),
    ],
    ids=["size", "start", "before", "10^12 values", "shape", "precision", "key", "entries", "nothing"],
)
def test_a_header_that_lies_is_refused_before_memory_is_taken(
    change: Callable[[dict[str, Any]], object],
) -> None:
    with pytest.raises(ValueError, match=r"ends at byte|valid|behind zstd|features|required"):
        shards.read(io.BytesIO(_claiming(change)), [(0, 0)])


def test_a_header_that_claims_gigabytes_is_refused() -> None:
    lying = DATA[: HEADER_AT - 8] + struct.pack("<II", 2**32 - 1, 0) + DATA[HEADER_AT:]
    with pytest.raises(ValueError, match="its header claims 4294967295 bytes"):
        shards.read(io.BytesIO(lying), [(0, 0)])
