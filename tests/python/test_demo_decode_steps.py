"""What the demo's decode steps read: pages that hold a sequence and room for a token, K and V that lie contiguous."""

import numpy as np
import pytest

import oscarkv
import tiny_model
from oscarkv.demo import gguf_weights, quality
from oscarkv.demo.paged_cache import Sequence, from_bf16, to_bf16

torch = pytest.importorskip("torch")
from oscarkv.demo import attention_kv, decode_steps, torch_model  # noqa: E402

LAYERS, HEADS, DIM, SIZE, KNOWN = 2, 3, 64, 16, 150
SETTING = quality.Setting(page_tokens=SIZE, sink_tokens=20, recents=(40, 0))
GEOMETRY = oscarkv.Geometry(LAYERS, HEADS, DIM, page_tokens=SIZE)
TRANSFORMS = oscarkv.TransformSet.hadamard(GEOMETRY)
CODEC = oscarkv.PageCodec(GEOMETRY, oscarkv.CodecSpec(transform_hash=TRANSFORMS.hash), TRANSFORMS)


@pytest.fixture(scope="module")
def rows():
    """K and V [layers, tokens, heads, dim] in the bits of bf16."""
    return to_bf16(np.random.default_rng(0).standard_normal((2, LAYERS, KNOWN, HEADS, DIM)))


def _pages(rows):
    return attention_kv.sequence_pages(CODEC, GEOMETRY, SETTING, *rows)


def _decoded(page, kv):
    """The page's K and V, each [layers, page tokens, heads, dim], from its bytes in `kv`'s second request."""
    k, v = (np.zeros((LAYERS, SIZE, HEADS, DIM), np.uint16) for _ in "kv")
    number = len(kv.addresses) // 2 + page.position // SIZE
    address = int(kv.addresses[number]) - kv.memory.data_ptr()
    data = kv.memory.flatten()[address:address + page.data.nbytes].cpu().numpy()
    crcs = np.array([_crc32c(block) for block in np.split(data, LAYERS * HEADS)], np.uint32)
    CODEC.decode(data, crcs, oscarkv.PagedKv(k, v), np.arange(SIZE), page.encoding)
    return k, v


def _crc32c(block):
    from page_format import crc32c
    content = SIZE * 2 * DIM * 2 if len(block) == SIZE * 2 * DIM * 2 else SIZE * 2 * (DIM // 4 + 4)
    return crc32c(bytes(block[:content]))


def test_sinks_recent_tokens_and_the_new_one_are_wide(rows):
    pages = _pages(rows)
    assert [page.position for page in pages] == list(range(0, KNOWN + 1, SIZE))
    assert sum(page.tokens for page in pages) == KNOWN + 1
    # 150 known: from position 110 on recent, so the page from 96 on, too.
    assert [page.encoding for page in pages] == ["wide"] * 2 + ["packed"] * 4 + ["wide"] * 4


def test_pages_in_memory_hold_the_sequence_and_the_new_token(rows):
    pages = _pages(rows)
    kv = attention_kv.PackedKv(GEOMETRY, pages, 2, "cpu")
    new = torch.randn(2, 2, HEADS, DIM, dtype=torch.bfloat16)  # k and v of two requests
    for layer in range(LAYERS):
        kv.write(layer, new[0] + layer, new[1] + layer)
    assert kv.length == KNOWN + 1 and list(kv.first_page) == [0, len(pages), 2 * len(pages)]
    for page in pages:
        known = min(page.tokens, KNOWN - page.position)
        for side, source, written in zip(_decoded(page, kv), rows, new):
            expected = from_bf16(source[:, page.position:page.position + known])
            found = from_bf16(side[:, :known])
            if page.encoding == "wide":
                assert np.array_equal(found, expected)
            else:
                assert 0.05 < np.abs(found - expected).mean() < 0.6
            if known < page.tokens:
                for layer in range(LAYERS):
                    assert np.array_equal(from_bf16(side[layer, known]), (written[1] + layer).float().numpy())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_attention_over_pages_is_attention_over_what_they_decode_to(rows):
    from oscarkv import _gpu  # noqa: F401: here a build without CUDA is a fault

    pages = _pages(rows)
    kv = attention_kv.PackedKv(GEOMETRY, pages, 2, "cuda")
    spec = oscarkv.CodecSpec(transform_hash=TRANSFORMS.hash)
    attention = attention_kv.PackedAttention(kv, GEOMETRY, spec, TRANSFORMS, 3 * HEADS)
    q = torch.randn(2, 3 * HEADS, DIM, dtype=torch.bfloat16, device="cuda")
    new = torch.randn(2, 2, HEADS, DIM, dtype=torch.bfloat16, device="cuda")
    for layer in range(LAYERS):
        found = attention.attend(layer, q, *new)[1].float().cpu().numpy()
        decoded = [_decoded(page, kv) for page in pages]
        k, v = (np.concatenate([from_bf16(sides[at])[layer, :page.tokens] for page, sides in zip(pages, decoded)])
                for at in (0, 1))
        queries = q[1].float().cpu().numpy().reshape(HEADS, 3, DIM)
        logits = np.einsum("hsd,thd->hst", queries, k) / np.sqrt(DIM)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        expected = np.einsum("hst,thd->hsd", weights / weights.sum(-1, keepdims=True), v).reshape(found.shape)
        assert np.linalg.norm(found - expected) < 1e-2 * np.linalg.norm(expected)


def test_a_step_over_contiguous_rows_is_the_model_s_own(tmp_path):
    loaded = gguf_weights.load_gguf(tiny_model.write_gguf(tmp_path / "tiny.gguf", tiny_model.random_weights()))
    model = torch_model.TorchModel(loaded, "cpu")
    tokens = np.random.default_rng(1).integers(3, 260, 50).tolist()
    sequence = Sequence(model.cache(8, "fp32"))
    model.prefill(tokens[:-1], sequence)
    slots = torch.tensor(sequence.slots(0, 49))
    kv = attention_kv.ContiguousKv(*(decode_steps.with_room(side.flatten(1, 2)[:, slots], 3)
                                     for side in (sequence.cache.k, sequence.cache.v)),
                                   torch.nn.attention.SDPBackend.MATH)
    turns = model.turns(torch.full((3,), 49))
    found = decode_steps.model_step(model, torch.full((3,), tokens[-1]), turns, kv.attend)
    expected = model.logits(model.prefill(tokens[-1:], sequence))
    assert np.abs(found.numpy() - expected).max() < 1e-4 * np.abs(expected).max()
