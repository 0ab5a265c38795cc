"""The demo's figures: divergences, the quality table's arithmetic, the dump."""

import json

import numpy as np
import pytest

import oscarkv
import tiny_model
from oscarkv.demo import dump, gguf_weights, metrics, quality
from oscarkv.demo.model import Model
from oscarkv.demo.paged_cache import from_bf16


def _plain_kl(p_logits, q_logits):
    def log_softmax(x):
        x = x.astype(np.float64)
        x = x - x.max(1, keepdims=True)
        return x - np.log(np.exp(x).sum(1, keepdims=True))

    p, q = log_softmax(p_logits), log_softmax(q_logits)
    return (np.exp(p) * (p - q)).sum(1), q


@pytest.mark.parametrize("distance", [1e-2, 0.3, 8.0])
def test_divergence_equals_its_definition(distance):
    rng = np.random.default_rng(0)
    exact = (4 * rng.standard_normal((100, 500))).astype(np.float32)
    other = exact + distance * rng.standard_normal((100, 500)).astype(np.float32)
    targets = rng.integers(0, 500, 100)
    kl, log_q = _plain_kl(exact, other)
    known = metrics.exact_distributions(exact, targets)
    found, nll = metrics.kl_and_nll(other.copy(), known)
    assert np.allclose(found, kl, rtol=1e-3, atol=1e-7)
    assert np.allclose(nll, -log_q[np.arange(100), targets], rtol=1e-4, atol=1e-4)
    summary = metrics.compare(other.copy(), known).summary()
    assert summary["kl_first64"] == pytest.approx(kl[:64].mean(), rel=1e-3)
    assert summary["kl_rest"] == pytest.approx(kl[64:].mean(), rel=1e-3)
    assert summary["ppl"] == pytest.approx(np.exp(-log_q[np.arange(100), targets].mean()), rel=1e-3)
    assert summary["top1"] == 100 * np.mean(exact.argmax(1) == other.argmax(1))


def test_equal_distributions_do_not_diverge_whatever_their_constant():
    logits = np.random.default_rng(0).standard_normal((10, 50)).astype(np.float32)
    summary = metrics.compare(logits + 3, metrics.exact_distributions(logits, [0] * 10)).summary()
    assert summary["top1"] == 100 and summary["kl_first64"] < 1e-6 and summary["kl_rest"] == 0


def test_windows_pool_by_position():
    total = metrics.Divergence()
    total.add(metrics.Divergence(2, 1, 2.0, 0.4, 2, 0.0, 0))
    total.add(metrics.Divergence(2, 2, 4.0, 0.2, 1, 0.5, 1))
    assert total.summary() == {"ppl": pytest.approx(np.exp(1.5)), "top1": 75.0,
                               "kl_first64": pytest.approx(0.2), "kl_rest": 0.5}


def test_sinks_and_recent_window_are_wide():
    setting = quality.Setting(prefix=640, page_tokens=64, sink_tokens=65)
    assert list(setting.encodings(128)) == ["wide"] * 2 + ["packed"] * 6 + ["wide"] * 2
    assert list(setting.encodings(129)) == ["wide"] * 2 + ["packed"] * 5 + ["wide"] * 3
    assert list(setting.encodings(0))[-1] == "packed"


@pytest.fixture
def tiny(tmp_path):
    path = tiny_model.write_gguf(tmp_path / "tiny.gguf", tiny_model.random_weights())
    return Model(gguf_weights.load_gguf(path))


def test_methods_are_ranked_by_their_bits(tiny):
    setting = quality.Setting(prefix=192, tail=96, page_tokens=32, sink_tokens=32, recents=(64, 0))
    config = tiny.config
    geometry = oscarkv.Geometry(config.layers, config.kv_heads, config.head_dim, config.head_dim, 32)
    turned = oscarkv.TransformSet.hadamard(geometry)
    methods = {"bf16": None, "two": quality.page_codec(config, setting, turned),
               "four": quality.page_codec(config, setting, turned, k_bits=4)}
    rng = np.random.default_rng(5)
    windows = [rng.integers(3, 260, setting.window).tolist() for _ in range(2)]
    steps = []
    tables = quality.Evaluation(tiny, setting).run(windows, methods, steps.append)
    assert sum(steps) == (2 + 1) * 3 and set(tables) == {64, 0}
    for recent, table in tables.items():
        found = {name: total.summary() for name, total in table.items()}
        windows_taken = {64: 2, 0: 1}[recent]  # the second table takes half of them
        assert all(total.positions == windows_taken * 96 for total in table.values())
        assert found["bf16"]["kl_rest"] < 1e-3 and found["bf16"]["top1"] > 97
        assert found["bf16"]["kl_first64"] < found["four"]["kl_first64"] < found["two"]["kl_first64"]
    assert tables[64]["two"].summary()["kl_first64"] < tables[0]["two"].summary()["kl_first64"]


def test_dump_holds_what_attention_sees(tiny, tmp_path):
    sequences = [list(range(3, 103)), list(range(50, 90))]
    dump.dump_qkv(tiny, sequences, tmp_path / "qkv")
    files = sorted((tmp_path / "qkv").iterdir())
    assert [path.name for path in files] == ["layer_000.safetensors", "layer_001.safetensors"]
    raw = files[1].read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:8 + size])
    assert header["q"]["shape"] == [140, 4, 16] and header["k"]["dtype"] == "BF16"
    begin, end = header["seq_lens"]["data_offsets"]
    assert np.frombuffer(raw[8 + size + begin:8 + size + end], np.int64).tolist() == [100, 40]

    seen = []
    tiny_sequence = _sequence(tiny)
    tiny.prefill(sequences[1], tiny_sequence,
                 lambda layer, position, q, k, v: seen.append((layer, position, q.copy())))
    begin, end = header["q"]["data_offsets"]
    q = from_bf16(np.frombuffer(raw[8 + size + begin:8 + size + end], np.uint16)).reshape(140, 4, 16)
    for layer, position, rows in seen:
        if layer == 1:
            assert np.allclose(q[100 + position:100 + position + len(rows)], rows, rtol=2 ** -8)


def _sequence(model):
    from oscarkv.demo.paged_cache import PagedCache, Sequence

    return Sequence(PagedCache.for_model(model.config, 8, "fp32"))
