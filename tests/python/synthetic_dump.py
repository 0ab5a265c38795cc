"""Small made-up activations in the form of a dump: Q, K and V of layers, with the properties that real ones have.

K has loud channels and a mean of its own in each head; queries look mostly into directions that are not K's loud ones,
so that attention is neither flat nor fixed on one token.
"""

import numpy as np
import tensor_files

Q_HEADS, KV_HEADS, DIM = 4, 2, 32


def layer(rng, tokens, dim=DIM):
    """{"q", "k", "v"} of fp32 [tokens, heads, dim]."""
    gains = np.exp(rng.normal(size=(KV_HEADS, dim)))
    k = rng.normal(size=(tokens, KV_HEADS, dim)) * gains + 3 * rng.normal(size=(KV_HEADS, dim))
    quiet = np.repeat(1 / gains, Q_HEADS // KV_HEADS, axis=0)
    q = rng.normal(size=(tokens, Q_HEADS, dim)) * quiet * 1.5
    v = rng.normal(size=(tokens, KV_HEADS, dim)) + rng.normal(size=(KV_HEADS, dim))
    return {"q": q.astype(np.float32), "k": k.astype(np.float32), "v": v.astype(np.float32)}


def write(folder, layers=2, sequences=3, tokens=400, seed=5):
    """layer_<l>.safetensors for each layer; every sequence `tokens` long. Returns the folder."""
    rng = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    for number in range(layers):
        tensor_files.write(folder / f"layer_{number}.safetensors", {
            **layer(rng, tokens * sequences), "seq_lens": np.full(sequences, tokens, np.int64)})
    return folder
