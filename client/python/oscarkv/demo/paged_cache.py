"""A paged KV cache like an engine's: fixed blocks of 16 tokens, an allocator, and per sequence a
block table.

The arrays are [layers, blocks, block_tokens, kv_heads, head_dim], so that `oscarkv.PagedKv` views
them in place. Block 0 is given out like any other; nothing outside a sequence's block table is read.
Not thread-safe, except that distinct positions of one sequence may be written at once.
"""

import numpy as np

BLOCK_TOKENS = 16


def to_bf16(values):
    """float32 to the uint16 bits of bfloat16, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounding = (bits >> np.uint32(16)) & np.uint32(1)
    rounding += np.uint32(0x7FFF)
    rounding += bits
    rounding >>= np.uint32(16)
    return rounding.astype(np.uint16)


def from_bf16(bits):
    """The uint16 bits of bfloat16 to float32; exact."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


class OutOfBlocks(RuntimeError):
    """The cache has no free block left."""


class BlockPool:
    """The blocks of a cache that no sequence has."""

    def __init__(self, blocks):
        self.blocks = blocks
        # Taken from the end, so that a sequence's blocks are not in ascending order: nothing may
        # depend on blocks being neighbours.
        self._free = list(range(blocks))

    @property
    def free_blocks(self):
        return len(self._free)

    def allocate(self, count):
        if count > len(self._free):
            raise OutOfBlocks(f"{count} blocks wanted, {len(self._free)} of {self.blocks} free")
        taken = self._free[len(self._free) - count:]
        del self._free[len(self._free) - count:]
        return taken[::-1]

    def release(self, blocks):
        self._free.extend(blocks)


class PagedCache(BlockPool):
    """Owns the two arrays too. `dtype` is "bf16" (held as uint16) or "fp32"."""

    def __init__(self, layers, kv_heads, k_dim, v_dim, blocks, dtype="bf16"):
        if dtype not in ("bf16", "fp32"):
            raise ValueError(f"a cache holds bf16 or fp32, not {dtype!r}")
        super().__init__(blocks)
        self.dtype = dtype
        held = np.uint16 if dtype == "bf16" else np.float32
        self.k = np.zeros((layers, blocks, BLOCK_TOKENS, kv_heads, k_dim), held)
        self.v = np.zeros((layers, blocks, BLOCK_TOKENS, kv_heads, v_dim), held)

    @classmethod
    def for_model(cls, config, blocks, dtype="bf16"):
        return cls(config.layers, config.kv_heads, config.head_dim, config.head_dim, blocks, dtype)


class Sequence:
    """One request's place in a cache: a block table and the number of positions that hold KV."""

    def __init__(self, cache):
        self.cache = cache
        self.length = 0
        self._table = np.zeros(0, np.int64)

    @property
    def capacity(self):
        return len(self._table) * BLOCK_TOKENS

    def reserve(self, tokens):
        """Takes blocks until `tokens` positions fit."""
        missing = -(-tokens // BLOCK_TOKENS) - len(self._table)
        if missing > 0:
            self._table = np.append(self._table, np.array(self.cache.allocate(missing), np.int64))

    def truncate(self, tokens):
        """Forgets the positions from `tokens` on and gives whole unused blocks back."""
        self.length = min(self.length, tokens)
        keep = -(-self.length // BLOCK_TOKENS)
        self.cache.release(self._table[keep:].tolist())
        self._table = self._table[:keep]

    def free(self):
        self.truncate(0)

    def slots(self, start, end):
        """The slot ids (block * block_tokens + offset) of positions start..end-1, int64."""
        positions = np.arange(start, end)
        if end > self.capacity:
            raise IndexError(f"position {end - 1} lies past the {self.capacity} reserved")
        return self._table[positions // BLOCK_TOKENS] * BLOCK_TOKENS + positions % BLOCK_TOKENS

    def write(self, layer, start, k, v):
        """Stores float32 k and v, [tokens, kv_heads, dim], at positions from `start` on."""
        slots = self.slots(start, start + len(k))
        convert = to_bf16 if self.cache.dtype == "bf16" else np.asarray
        for array, rows in ((self.cache.k, k), (self.cache.v, v)):
            flat = array[layer].reshape((-1,) + array.shape[3:])
            flat[slots] = convert(rows)

    def read(self, array, layer, tokens, out):
        """Gathers positions 0..tokens-1 of cache.k or cache.v into out[kv_heads, tokens, dim]."""
        whole = -(-tokens // BLOCK_TOKENS)
        # [blocks, block_tokens, heads, dim]
        rows = np.take(array[layer], self._table[:whole], axis=0)
        rows = rows.reshape((whole * BLOCK_TOKENS,) + rows.shape[2:])[:tokens].transpose(1, 0, 2)
        if self.cache.dtype == "fp32":
            out[...] = rows
        else:
            bits = out.view(np.uint32)
            np.copyto(bits, rows)
            bits <<= np.uint32(16)

    def copy_from(self, other, start, end):
        """Copies the KV of positions start..end-1 of another sequence of the same cache."""
        self.reserve(end)
        for array in (self.cache.k, self.cache.v):
            flat = array.reshape((array.shape[0], -1) + array.shape[3:])
            flat[:, self.slots(start, end)] = flat[:, other.slots(start, end)]
        self.length = max(self.length, end)
