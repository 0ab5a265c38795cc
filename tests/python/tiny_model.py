"""Writes a small Llama GGUF with random weights, and computes it plainly in float64."""

import numpy as np

LAYERS, HIDDEN, FFN, HEADS, KV_HEADS, DIM = 2, 64, 96, 4, 2, 16
ROPE_BASE, EPSILON = 10000.0, 1e-5
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["t h", "th e", "\u0120 the", "i n", "a n", "an d", "\u0120 and", "o n", "e r", "\u0120 a"]


def byte_tokens():
    from oscarkv.demo.tokenizer import _byte_to_char

    return [_byte_to_char()[byte] for byte in range(256)]


def random_weights(seed=1, tied=True):
    rng = np.random.default_rng(seed)

    def matrix(outputs, inputs, gain=1.0):
        return (gain * rng.standard_normal((outputs, inputs)) / np.sqrt(inputs)).astype(np.float32)

    vocab = len(SPECIAL) + 256 + len(MERGES)
    weights = {"token_embd.weight": rng.standard_normal((vocab, HIDDEN)).astype(np.float32),
               "output_norm.weight": rng.uniform(0.5, 1.5, HIDDEN).astype(np.float32)}
    if not tied:
        weights["output.weight"] = matrix(vocab, HIDDEN)
    for layer in range(LAYERS):
        name = f"blk.{layer}."
        weights[name + "attn_norm.weight"] = rng.uniform(0.5, 1.5, HIDDEN).astype(np.float32)
        weights[name + "ffn_norm.weight"] = rng.uniform(0.5, 1.5, HIDDEN).astype(np.float32)
        weights[name + "attn_q.weight"] = matrix(HEADS * DIM, HIDDEN, 2.0)
        weights[name + "attn_k.weight"] = matrix(KV_HEADS * DIM, HIDDEN, 2.0)
        weights[name + "attn_v.weight"] = matrix(KV_HEADS * DIM, HIDDEN)
        weights[name + "attn_output.weight"] = matrix(HIDDEN, HEADS * DIM)
        weights[name + "ffn_gate.weight"] = matrix(FFN, HIDDEN)
        weights[name + "ffn_up.weight"] = matrix(FFN, HIDDEN)
        weights[name + "ffn_down.weight"] = matrix(HIDDEN, FFN)
    return weights


def write_gguf(path, weights, architecture="llama", pre="smollm"):
    import gguf

    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_name("tiny")
    writer.add_context_length(8192)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(EPSILON)
    writer.add_rope_freq_base(ROPE_BASE)
    writer.add_rope_dimension_count(DIM)
    merged = [pair.replace(" ", "") for pair in MERGES]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(SPECIAL + byte_tokens() + merged)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (256 + len(merged)))
    writer.add_token_merges(MERGES)
    writer.add_eos_token_id(2)
    for name, array in weights.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def plain_logits(weights, tokens):
    """All of it at once in float64, with the GGUF's neighbouring rotary pairs: [tokens, vocab]."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    count = len(tokens)
    angles = np.arange(count)[:, None] * ROPE_BASE ** (-np.arange(DIM // 2) * 2.0 / DIM)
    turn = np.exp(1j * angles)[:, None, :]
    later = np.triu(np.ones((count, count), bool), 1)

    def norm(x, weight):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPSILON) * weight

    def rotate(x):
        pairs = (x[..., 0::2] + 1j * x[..., 1::2]) * turn
        return np.stack([pairs.real, pairs.imag], -1).reshape(x.shape)

    x = w["token_embd.weight"][tokens]
    for layer in range(LAYERS):
        def linear(name, y):
            return y @ w[f"blk.{layer}.{name}.weight"].T

        y = norm(x, w[f"blk.{layer}.attn_norm.weight"])
        q = rotate(linear("attn_q", y).reshape(count, HEADS, DIM))
        k = rotate(linear("attn_k", y).reshape(count, KV_HEADS, DIM))
        v = linear("attn_v", y).reshape(count, KV_HEADS, DIM)
        out = np.empty((count, HEADS, DIM))
        for head in range(HEADS):
            shared = head // (HEADS // KV_HEADS)
            scores = q[:, head] @ k[:, shared].T / np.sqrt(DIM)
            scores[later] = -np.inf
            weights_ = np.exp(scores - scores.max(1, keepdims=True))
            out[:, head] = weights_ / weights_.sum(1, keepdims=True) @ v[:, shared]
        x = x + linear("attn_output", out.reshape(count, -1))
        y = norm(x, w[f"blk.{layer}.ffn_norm.weight"])
        gate = linear("ffn_gate", y)
        x = x + linear("ffn_down", gate / (1 + np.exp(-gate)) * linear("ffn_up", y))
    return norm(x, w["output_norm.weight"]) @ w.get("output.weight", w["token_embd.weight"]).T
