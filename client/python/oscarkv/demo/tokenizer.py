"""Byte-level BPE and SentencePiece tokenizers from what a GGUF file says of its vocabulary, and the
ChatML prompt format."""

import functools
import heapq
import re
import sys
import unicodedata

from .gguf_weights import UnsupportedModel

_CONTROL, _USER_DEFINED, _BYTE = 3, 4, 6  # token types of the GGUF format


@functools.cache
def _byte_to_char():
    """GPT-2's printable stand-in for each byte."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {byte: chr(byte) for byte in visible}
    for byte in range(256):
        if byte not in table:
            table[byte] = chr(256 + len(table) - len(visible))
    return table


@functools.cache
def _classes():
    """Bodies of character classes for Unicode's letters and numbers, which `re` has no names for:
    (letters, numbers)."""
    ranges = {"L": [], "N": []}
    for code in range(sys.maxunicode + 1):
        runs = ranges.get(unicodedata.category(chr(code))[0])
        if runs is None:
            continue
        if runs and runs[-1][1] == code - 1:
            runs[-1][1] = code
        else:
            runs.append([code, code])
    return tuple("".join(f"{re.escape(chr(a))}-{re.escape(chr(b))}" for a, b in ranges[kind])
                 for kind in "LN")


@functools.cache
def _splitters(pre):
    """The regular expressions that cut a text into the words that BPE merges within, applied one
    inside the other's matches and gaps."""
    letters, numbers = _classes()
    gpt2 = (rf"'s|'t|'re|'ve|'m|'ll|'d| ?[{letters}]+| ?[{numbers}]+| ?[^\s{letters}{numbers}]+"
            r"|\s+(?!\S)|\s+")
    llama3 = (rf"'(?i:s|t|re|ve|m|ll|d)|[^\r\n{letters}{numbers}]?[{letters}]+|[{numbers}]{{1,3}}"
              rf"| ?[^\s{letters}{numbers}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    known = {"smollm": (f"[{numbers}]", gpt2), "gpt-2": (gpt2,), "default": (gpt2,),
             "llama-bpe": (llama3,), "llama3": (llama3,)}
    if pre not in known:
        raise UnsupportedModel(f"pre-tokenizer {pre!r} is not one of {', '.join(sorted(known))}")
    return [re.compile(pattern) for pattern in known[pre]]


def _split(text, pattern):
    """The matches of `pattern` and what lies between them, in order."""
    at = 0
    for match in pattern.finditer(text):
        if match.start() > at:
            yield text[at:match.start()]
        yield match.group()
        at = match.end()
    if at < len(text):
        yield text[at:]


def _merge(symbols, rank_of):
    """Joins neighbours, the pair of lowest rank first and the leftmost among equals, until
    `rank_of(left, right)` is None for all."""
    following = list(range(1, len(symbols))) + [None]
    preceding = [None] + list(range(len(symbols) - 1))
    queue = []

    def offer(left):
        right = following[left] if left is not None else None
        if right is not None:
            rank = rank_of(symbols[left], symbols[right])
            if rank is not None:
                heapq.heappush(queue, (rank, left, symbols[left], symbols[right]))

    for index in range(len(symbols)):
        offer(index)
    while queue:
        _, left, first, second = heapq.heappop(queue)
        right = following[left] if symbols[left] == first else None
        if right is None or symbols[right] != second:
            continue  # one of the two has been joined to something else
        symbols[left], symbols[right] = first + second, None
        following[left] = following[right]
        if following[right] is not None:
            preceding[following[right]] = left
        offer(preceding[left])
        offer(left)
    return [symbol for symbol in symbols if symbol is not None]


class Tokenizer:
    """Made of a `gguf_weights.Vocabulary`. Raises UnsupportedModel for a kind it does not know."""

    def __init__(self, vocabulary):
        self._vocabulary = vocabulary
        self._ids = {token: index for index, token in enumerate(vocabulary.tokens)}
        self.eos = vocabulary.eos
        special = sorted((token for token, kind in zip(vocabulary.tokens, vocabulary.types)
                          if kind in (_CONTROL, _USER_DEFINED) and token), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special))) if special else None
        self._words = {}
        if vocabulary.model == "gpt2":
            self._splitters = _splitters(vocabulary.pre)
            self._ranks = {tuple(pair.split(" ", 1)): rank
                           for rank, pair in enumerate(vocabulary.merges)}
            self._bytes = {char: byte for byte, char in _byte_to_char().items()}
        elif vocabulary.model != "llama":
            raise UnsupportedModel(f"tokenizer model {vocabulary.model!r} is not gpt2 or llama")

    def encode(self, text, special=False):
        """Token ids. With `special`, control tokens written out in the text are recognised."""
        ids = []
        if special and self._special:
            at = 0
            for match in self._special.finditer(text):
                ids += self._encode_plain(text[at:match.start()])
                ids.append(self._ids[match.group()])
                at = match.end()
            text = text[at:]
        return ids + self._encode_plain(text)

    def begin(self):
        """The ids that a sequence starts with."""
        return [self._vocabulary.bos] if self._vocabulary.add_bos else []

    def decode(self, ids):
        if self._vocabulary.model == "gpt2":
            raw = b"".join(
                bytes(self._bytes[char] for char in token) if all(c in self._bytes for c in token)
                else token.encode() for token in (self._vocabulary.tokens[i] for i in ids))
        else:
            raw = b"".join(self._piece_bytes(i) for i in ids)
        return raw.decode("utf-8", errors="replace")

    def chat_frame(self):
        """(before the document, between document and question, after the question): the text around
        a system message that is a document and a user's question. ChatML where the model has its
        tokens, plain text elsewhere."""
        if "<|im_start|>" in self._ids and "<|im_end|>" in self._ids:
            return ("<|im_start|>system\n", "<|im_end|>\n<|im_start|>user\n",
                    "<|im_end|>\n<|im_start|>assistant\n")
        return "", "\n\nQuestion: ", "\nAnswer:"

    def stops(self):
        """Ids that end an answer."""
        return {self.eos} | {self._ids[t] for t in ("<|im_end|>", "<|endoftext|>") if t in self._ids}

    def _encode_plain(self, text):
        if not text:
            return []
        if self._vocabulary.model == "llama":
            return self._encode_sentencepiece(text)
        words = [text]
        for pattern in self._splitters:
            words = [part for word in words for part in _split(word, pattern)]
        return [token for word in words for token in self._encode_word(word)]

    def _encode_word(self, word):
        ids = self._words.get(word)
        if ids is None:
            table = _byte_to_char()
            symbols = [table[byte] for byte in word.encode()]
            merged = _merge(symbols, lambda left, right: self._ranks.get((left, right)))
            ids = self._words[word] = [self._ids[symbol] for symbol in merged]
        return ids

    def _encode_sentencepiece(self, text):
        scores = self._vocabulary.scores

        def rank(left, right):
            index = self._ids.get(left + right)
            return None if index is None else -scores[index]

        prefix = " " if self._vocabulary.add_space_prefix else ""
        ids = []
        for symbol in _merge(list((prefix + text).replace(" ", "\u2581")), rank):
            index = self._ids.get(symbol)
            ids += [index] if index is not None else [
                self._ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]
        return ids

    def _piece_bytes(self, index):
        token = self._vocabulary.tokens[index]
        if self._vocabulary.types[index] == _BYTE:
            return bytes([int(token[3:5], 16)])
        return token.replace("\u2581", " ").encode()
