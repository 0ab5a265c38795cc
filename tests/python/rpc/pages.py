"""Pages as a program without this project's code would make them, from the format's text: two encodings, checksums."""

import dataclasses
import hashlib
import math
import random

import numpy as np

_CRC_TABLE = []
for _byte in range(256):
    for _ in range(8):
        _byte = _byte >> 1 ^ (0x82F63B78 if _byte & 1 else 0)
    _CRC_TABLE.append(_byte)

WIDE, PACKED = 1, 2


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def key_of(name):
    """A page key: 32 bytes."""
    return hashlib.sha256(str(name).encode()).digest()


@dataclasses.dataclass(frozen=True)
class Shape:
    """fp32 rows and params, 2 bits; PACKED blocks are no multiple of 64 bytes, so there is padding."""

    layers: int = 3
    heads: int = 2
    k_dim: int = 16
    v_dim: int = 48
    tokens: int = 3

    def block_bytes(self, encoding):
        row = (self.k_dim + self.v_dim) * 4 if encoding == WIDE else (self.k_dim + self.v_dim) // 4 + 2 * 8
        return row * self.tokens

    def stride(self, encoding):
        return math.ceil(self.block_bytes(encoding) / 64) * 64

    def page_bytes(self, encoding):
        return self.layers * self.heads * self.stride(encoding)


@dataclasses.dataclass(frozen=True)
class Page:
    """The bytes of a page and what a put says of them. Equal seeds give equal pages."""

    shape: Shape
    encoding: int
    data: bytes
    crcs: tuple

    def blocks(self, layers, heads):
        """The bytes of a selection, as a partial get returns them."""
        stride = self.shape.stride(self.encoding)
        return b"".join(self.data[(layer * self.shape.heads + head) * stride:][:stride]
                        for layer in layers for head in heads)

    def block_crcs(self, layers, heads):
        return [self.crcs[layer * self.shape.heads + head] for layer in layers for head in heads]


def assemble(shape, encoding, blocks):
    """A page of its blocks' contents, in layer-major order."""
    stride = shape.stride(encoding)
    return Page(shape, encoding, b"".join(block.ljust(stride, b"\0") for block in blocks),
                tuple(crc32c(block) for block in blocks))


def wide_page(shape, seed):
    source = random.Random(seed)
    values = [np.array([source.gauss(0, 1) for _ in range(shape.block_bytes(WIDE) // 4)], np.float32)
              for _ in range(shape.layers * shape.heads)]
    return assemble(shape, WIDE, [block.astype("<f4").tobytes() for block in values])


def zero_page(shape):
    """A WIDE page of zeros: quickly made, however large."""
    block = bytes(shape.block_bytes(WIDE))
    return Page(shape, WIDE, bytes(shape.page_bytes(WIDE)), (crc32c(block),) * (shape.layers * shape.heads))


def packed_page(shape, seed):
    """A PACKED page, and the WIDE page that it decodes to under the identity transform.

    Scales are powers of two and zeros whole numbers, so that (code - zero) * scale is exact in any order of operations.
    """
    source = random.Random(seed)
    packed, wide = [], []
    for _ in range(shape.layers * shape.heads):
        content, decoded = b"", b""
        for dim in (shape.k_dim, shape.v_dim):
            codes = np.array([[source.randrange(4) for _ in range(dim)] for _ in range(shape.tokens)], np.uint8)
            quarter = dim // 4  # byte i of a row holds dims i, i + dim/4, ..., from its lowest bits up
            rows = sum(codes[:, part * quarter:(part + 1) * quarter] << 2 * part for part in range(4))
            params = np.array([[2.0 ** source.randrange(-4, 4), source.randrange(-3, 4)]
                               for _ in range(shape.tokens)], "<f4")
            content += rows.astype(np.uint8).tobytes() + params.tobytes()
            decoded += ((codes - params[:, 1:]) * params[:, :1]).astype("<f4").tobytes()
        packed.append(content)
        wide.append(decoded)
    return assemble(shape, PACKED, packed), assemble(shape, WIDE, wide)
