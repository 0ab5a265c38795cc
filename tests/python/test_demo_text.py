"""The demo's tokenizer and its texts."""

import pytest

import tiny_model
from oscarkv.demo import gguf_weights, text
from oscarkv.demo.gguf_weights import UnsupportedModel, Vocabulary
from oscarkv.demo.tokenizer import Tokenizer


def _vocabulary(model="gpt2", pre="smollm", tokens=(), types=None, merges=(), scores=(), **rest):
    values = dict(model=model, pre=pre, tokens=list(tokens), types=types or [1] * len(tokens),
                  merges=list(merges), scores=list(scores), bos=1, eos=2, add_bos=False,
                  add_space_prefix=True, chat_template="")
    return Vocabulary(**(values | rest))


def _byte_vocabulary(pre="smollm"):
    merged = [pair.replace(" ", "") for pair in tiny_model.MERGES]
    return _vocabulary(pre=pre, merges=tiny_model.MERGES,
                       tokens=tiny_model.SPECIAL + tiny_model.byte_tokens() + merged,
                       types=[3] * 3 + [1] * (256 + len(merged)))


def _pieces(tokenizer, string):
    return [tokenizer.decode([token]) for token in tokenizer.encode(string)]


@pytest.fixture(scope="module")
def smollm():
    """The real vocabulary, without the weights."""
    gguf = pytest.importorskip("gguf")
    return gguf_weights._read_vocabulary(gguf.GGUFReader(str(gguf_weights.default_model_path())))


@pytest.mark.parametrize("string", [
    "Hello world, it's 2024!", "The   naïve café — ½ price.\n\n\tdef f(x): return x\n", " ", "",
    "汉字 and 🙂 and \x00 bytes", "trailing   ", "<|im_start|>"])
def test_round_trip(string):
    tokenizer = Tokenizer(_byte_vocabulary())
    assert tokenizer.decode(tokenizer.encode(string)) == string


def test_merges_apply_in_order_of_rank_inside_words():
    tokenizer = Tokenizer(_byte_vocabulary())
    assert _pieces(tokenizer, "the and then") == ["the", " and", " the", "n"]
    assert _pieces(tokenizer, "in an hand") == ["in", " ", "an", " ", "h", "and"]


def test_digits_stand_alone_and_spaces_before_them_too():
    assert _pieces(Tokenizer(_byte_vocabulary()), "a 12b") == ["a", " ", "1", "2", "b"]


def test_gpt2_keeps_a_space_with_a_number():
    tokenizer = Tokenizer(_vocabulary(
        pre="gpt-2", tokens=tiny_model.byte_tokens() + ["\u01201", "\u012012"],
        merges=["\u0120 1", "\u01201 2"]))
    assert _pieces(tokenizer, "a 12") == ["a", " 12"]


def test_control_tokens_are_recognised_only_when_asked():
    tokenizer = Tokenizer(_byte_vocabulary())
    assert tokenizer.encode("<|im_end|>a", special=True)[0] == 2
    assert len(tokenizer.encode("<|im_end|>")) == len("<|im_end|>")


def test_chat_frame_is_chatml_where_the_vocabulary_has_it():
    assert "".join(Tokenizer(_byte_vocabulary()).chat_frame()).startswith("<|im_start|>system\n<|im_end|>")
    plain = Tokenizer(_vocabulary(pre="gpt-2", tokens=tiny_model.byte_tokens()))
    assert plain.chat_frame() == ("", "\n\nQuestion: ", "\nAnswer:")


def test_sentencepiece_prefers_the_higher_score_and_falls_back_to_bytes():
    tokens = ["<unk>", "<s>", "</s>", "\u2581", "a", "b", "ab", "\u2581a", "<0xC3>", "<0xA9>"]
    types = [2, 3, 3, 1, 1, 1, 1, 1, 6, 6]
    scores = [0, 0, 0, -9, -9, -9, -1, -2, 0, 0]
    tokenizer = Tokenizer(_vocabulary("llama", tokens=tokens, types=types, scores=scores))
    assert tokenizer.encode("ab") == [3, 6]
    assert tokenizer.encode("aé") == [7, 8, 9]
    assert tokenizer.decode([7, 8, 9]) == " aé"


def test_unknown_kinds_are_refused_by_name():
    with pytest.raises(UnsupportedModel, match="tekken"):
        Tokenizer(_byte_vocabulary(pre="tekken"))
    with pytest.raises(UnsupportedModel, match="bert"):
        Tokenizer(_vocabulary("bert"))


def test_smollm_words_are_the_vocabularys(smollm):
    tokenizer = Tokenizer(smollm)
    for word in (" the", " return", " internationalisation", "Hello"):
        ids = tokenizer.encode(word)
        assert tokenizer.decode(ids) == word
    # Whole words of the vocabulary are one token each, the vocabulary's own.
    assert tokenizer.encode("Hello world") == [smollm.tokens.index("Hello"),
                                               smollm.tokens.index("\u0120world")]
    assert tokenizer.encode("12") == [smollm.tokens.index("1"), smollm.tokens.index("2")]
    assert tokenizer.encode("<|im_start|>user\n", special=True)[0] == smollm.tokens.index(
        "<|im_start|>")


def test_calibration_and_evaluation_text_have_no_paragraph_in_common():
    calibration, evaluation = text.prose()
    sides = [{line for _, body in side for line in body.split("\n\n")}
             for side in (calibration, evaluation)]
    assert not sides[0] & sides[1]
    assert not {name for name, _ in calibration} & {name for name, _ in evaluation}
    lengths = [sum(len(body) for _, body in side) for side in (calibration, evaluation)]
    assert min(lengths) > 100_000 and max(lengths) < 1.2 * min(lengths)


def test_windows_are_consecutive_and_refuse_too_little_text():
    tokenizer = Tokenizer(_byte_vocabulary())
    documents = [("a", "the quick brown fox " * 20), ("b", "and the lazy dog " * 20)]
    windows = text.token_windows(tokenizer, documents, 32, 3)
    assert [len(window) for window in windows] == [32, 32, 32]
    assert tokenizer.decode(sum(windows, [])).startswith(documents[0][1][:40])
    with pytest.raises(ValueError, match="tokens wanted"):
        text.token_windows(tokenizer, documents, 4096, 3)
