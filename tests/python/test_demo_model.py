"""The demo's model and its paged cache, against a plain float64 computation."""

import numpy as np
import pytest

import tiny_model
from oscarkv.demo import gguf_weights
from oscarkv.demo.model import Model
from oscarkv.demo.paged_cache import (BLOCK_TOKENS, OutOfBlocks, PagedCache, Sequence, from_bf16,
                                      to_bf16)


@pytest.fixture(params=[True, False], ids=["tied", "separate_head"])
def tiny(request, tmp_path):
    weights = tiny_model.random_weights(tied=request.param)
    loaded = gguf_weights.load_gguf(tiny_model.write_gguf(tmp_path / "tiny.gguf", weights))
    return weights, loaded


def _tokens(count, seed=3):
    return np.random.default_rng(seed).integers(3, 260, count).tolist()


def test_logits_equal_a_plain_computation(tiny):
    weights, loaded = tiny
    tokens = _tokens(700)  # more than one chunk
    sequence = Sequence(PagedCache.for_model(loaded.config, 64, "fp32"))
    model = Model(loaded)
    hidden = model.prefill(tokens, sequence)
    expected = tiny_model.plain_logits(weights, tokens)
    assert np.abs(model.logits(hidden) - expected).max() < 2e-4 * np.abs(expected).max()


def test_prefill_in_pieces_equals_prefill_at_once(tiny):
    _, loaded = tiny
    tokens = _tokens(300)
    model = Model(loaded)
    cache = PagedCache.for_model(loaded.config, 64, "fp32")
    whole, pieces = Sequence(cache), Sequence(cache)
    at_once = model.prefill(tokens, whole)
    in_pieces = np.concatenate(
        [model.prefill(tokens[a:b], pieces) for a, b in ((0, 1), (1, 18), (18, 200), (200, 300))])
    assert np.abs(at_once - in_pieces).max() < 1e-4
    assert np.abs(cache.k[:, whole._table[:18]] - cache.k[:, pieces._table[:18]]).max() < 1e-4


def test_capture_sees_what_the_cache_holds(tiny):
    _, loaded = tiny
    tokens = _tokens(40)
    seen = {}

    def capture(layer, position, q, k, v):
        seen.setdefault(layer, []).append((position, q.copy(), k.copy(), v.copy()))

    cache = PagedCache.for_model(loaded.config, 8, "fp32")
    sequence = Sequence(cache)
    Model(loaded).prefill(tokens, sequence, capture)
    assert sorted(seen) == [0, 1]
    for layer, parts in seen.items():
        parts.sort(key=lambda part: part[0])
        k = np.concatenate([part[2] for part in parts])
        out = np.empty((tiny_model.KV_HEADS, 40, tiny_model.DIM), np.float32)
        sequence.read(cache.k, layer, 40, out)
        assert np.array_equal(out.transpose(1, 0, 2), k)
        assert sum(len(part[1]) for part in parts) == 40


def test_generate_continues_greedily(tiny):
    weights, loaded = tiny
    tokens = _tokens(20)
    sequence = Sequence(PagedCache.for_model(loaded.config, 8, "fp32"))
    model = Model(loaded)
    generated = model.generate(model.prefill(tokens, sequence)[-1], sequence, 5)
    for _ in range(5):
        tokens.append(int(tiny_model.plain_logits(weights, tokens)[-1].argmax()))
    assert generated == tokens[20:]


def test_saved_weights_are_the_same_model(tiny, tmp_path):
    _, loaded = tiny
    gguf_weights.save(loaded, tmp_path / "saved")
    again = gguf_weights.load_saved(tmp_path / "saved")
    assert again.config == loaded.config and again.vocabulary == loaded.vocabulary
    for name, array in loaded.weights.items():
        assert np.array_equal(array, again.weights[name])


def test_other_architecture_is_refused(tmp_path):
    path = tiny_model.write_gguf(tmp_path / "x.gguf", tiny_model.random_weights(), "gemma")
    with pytest.raises(gguf_weights.UnsupportedModel, match="gemma"):
        gguf_weights.load_gguf(path)


def test_unknown_tensor_is_refused(tmp_path):
    weights = tiny_model.random_weights()
    weights["blk.0.attn_q.bias"] = np.zeros(64, np.float32)
    path = tiny_model.write_gguf(tmp_path / "x.gguf", weights)
    with pytest.raises(gguf_weights.UnsupportedModel, match="attn_q.bias"):
        gguf_weights.load_gguf(path)


def test_context_is_a_limit(tiny):
    _, loaded = tiny
    sequence = Sequence(PagedCache.for_model(loaded.config, 8))
    sequence.length = loaded.config.context
    with pytest.raises(ValueError, match="context"):
        Model(loaded).prefill([1], sequence)


def test_blocks_are_allocated_and_given_back():
    cache = PagedCache(2, 1, 4, 4, blocks=5)
    first, second = Sequence(cache), Sequence(cache)
    first.reserve(BLOCK_TOKENS + 1)
    second.reserve(3 * BLOCK_TOKENS)
    assert cache.free_blocks == 0
    with pytest.raises(OutOfBlocks, match="1 blocks wanted, 0 of 5"):
        first.reserve(2 * BLOCK_TOKENS + 1)
    first.length, second.length = BLOCK_TOKENS + 1, 3 * BLOCK_TOKENS
    assert not set(first.slots(0, 17) // 16) & set(second.slots(0, 48) // 16)
    second.truncate(BLOCK_TOKENS + 1)
    assert cache.free_blocks == 1 and second.length == BLOCK_TOKENS + 1
    first.free()
    assert cache.free_blocks == 3
    with pytest.raises(IndexError):
        first.slots(0, 1)


def test_what_is_written_is_read_and_copied():
    cache = PagedCache(2, 3, 8, 8, blocks=8, dtype="fp32")
    rng = np.random.default_rng(0)
    k, v = rng.standard_normal((2, 40, 3, 8)).astype(np.float32)
    first, second = Sequence(cache), Sequence(cache)
    first.reserve(40)
    first.write(1, 0, k[:25], v[:25])
    first.write(1, 25, k[25:], v[25:])
    first.length = 40
    second.copy_from(first, 0, 40)
    for sequence in (first, second):
        out = np.empty((3, 40, 8), np.float32)
        sequence.read(cache.v, 1, 40, out)
        assert np.array_equal(out.transpose(1, 0, 2), v)


def test_bf16_rounds_to_nearest_even():
    values = np.array([1.0, 1.00390625, 1.01171875, -3.14159, 1e30, 0.0, -0.0], np.float32)
    back = from_bf16(to_bf16(values))
    assert back[0] == 1.0 and back[1] == 1.0 and back[2] == np.float32(1.015625)
    assert np.abs(back[3:5] / values[3:5] - 1).max() <= 2.0 ** -9
    assert np.signbit(back[6]) and np.array_equal(to_bf16(back), to_bf16(values))


def test_bf16_cache_reads_rounded_values():
    cache = PagedCache(1, 2, 8, 8, blocks=2)
    k = np.random.default_rng(0).standard_normal((20, 2, 8)).astype(np.float32)
    sequence = Sequence(cache)
    sequence.reserve(20)
    sequence.write(0, 0, k, k)
    ones = np.ones((2, 20, 9), np.float32)
    sequence.read(cache.v, 0, 20, ones[:, :, :-1])
    assert np.array_equal(ones[:, :, :8].transpose(1, 0, 2), from_bf16(to_bf16(k)))
    assert np.all(ones[:, :, 8] == 1)
