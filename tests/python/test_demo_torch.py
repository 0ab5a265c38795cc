"""The demo's model in PyTorch against the same model in numpy. Where there is no GPU PyTorch computes on the CPU."""

import numpy as np
import pytest

import tiny_model
from oscarkv.demo import gguf_weights, torch_model
from oscarkv.demo.model import Model
from oscarkv.demo.paged_cache import Sequence
from oscarkv.demo.processes import Unavailable

torch = pytest.importorskip("torch")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(params=[True, False], ids=["tied", "separate_head"])
def loaded(request, tmp_path):
    weights = tiny_model.random_weights(tied=request.param)
    return gguf_weights.load_gguf(tiny_model.write_gguf(tmp_path / "tiny.gguf", weights))


def _tokens(count, seed=3):
    return np.random.default_rng(seed).integers(3, 260, count).tolist()


def _of(array):
    return array.float().cpu().numpy() if torch.is_tensor(array) else array


def _prefilled(model, tokens, dtype="fp32", pieces=1, capture=None):
    """A sequence that holds `tokens`, and the last layer's output."""
    sequence = Sequence(model.cache(64, dtype))
    step = -(-len(tokens) // pieces)
    return sequence, np.concatenate([model.prefill(tokens[at:at + step], sequence, capture)
                                     for at in range(0, len(tokens), step)])


@pytest.mark.parametrize("pieces", [1, 3])
def test_it_is_the_model_in_numpy(loaded, pieces):
    tokens = _tokens(700)  # more than one chunk
    expected_model, model = Model(loaded), torch_model.TorchModel(loaded, DEVICE)
    expected_in, expected = _prefilled(expected_model, tokens)
    found_in, found = _prefilled(model, tokens, pieces=pieces)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    logits = expected_model.logits(expected)
    assert np.abs(model.logits(found) - logits).max() < 2e-4 * np.abs(logits).max()
    for side in ("k", "v"):
        ours = _of(getattr(found_in.cache, side)).reshape(tiny_model.LAYERS, -1, tiny_model.KV_HEADS, tiny_model.DIM)
        theirs = getattr(expected_in.cache, side).reshape(ours.shape)
        slots, other = found_in.slots(0, 700), expected_in.slots(0, 700)
        assert np.abs(ours[:, slots] - theirs[:, other]).max() < 1e-4 * np.abs(theirs).max()


def test_a_bf16_cache_holds_rounded_rows(loaded):
    tokens = _tokens(60)
    _, exact = _prefilled(Model(loaded), tokens, "bf16")
    sequence, found = _prefilled(torch_model.TorchModel(loaded, DEVICE), tokens, "bf16")
    assert sequence.cache.k.dtype == torch.bfloat16
    # Rows that round to another neighbour here than there.
    assert np.abs(found - exact).max() < 2e-2 * np.abs(exact).max()


def test_capture_sees_what_the_cache_holds(loaded):
    seen = {}

    def capture(layer, position, q, k, v):
        seen.setdefault(layer, []).append((position, q, k, v))

    sequence, _ = _prefilled(torch_model.TorchModel(loaded, DEVICE), _tokens(40), pieces=2, capture=capture)
    assert sorted(seen) == list(range(tiny_model.LAYERS))
    for layer, parts in seen.items():
        assert [part[0] for part in parts] == [0, 20]
        k, v = sequence.cache.read(layer, torch.tensor(sequence.slots(0, 40), device=DEVICE))
        assert np.array_equal(_of(k), np.concatenate([part[2] for part in parts]))
        assert np.array_equal(_of(v), np.concatenate([part[3] for part in parts]))
        assert parts[0][1].shape == (20, tiny_model.HEADS, tiny_model.DIM)


def test_it_generates_what_the_model_in_numpy_does(loaded):
    answers = []
    for model in (Model(loaded), torch_model.TorchModel(loaded, DEVICE)):
        sequence, hidden = _prefilled(model, _tokens(20))
        answers.append(model.generate(hidden[-1], sequence, 8))
    assert answers[0] == answers[1] and len(answers[0]) == 8


def test_context_is_a_limit(loaded):
    model = torch_model.TorchModel(loaded, DEVICE)
    sequence = Sequence(model.cache(8))
    sequence.length = loaded.config.context
    with pytest.raises(ValueError, match="context"):
        model.prefill([1], sequence)


@pytest.mark.skipif(DEVICE == "cuda", reason="there is a GPU")
def test_a_missing_gpu_is_said(loaded):
    with pytest.raises(Unavailable, match="finds no GPU"):
        torch_model.TorchModel(loaded, "cuda")
