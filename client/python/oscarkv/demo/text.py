"""English prose that every Python installation carries: the language reference behind `help()`.

Topics are dealt to two sides, and a paragraph that several topics share belongs to the first of them
only, so the calibration text and the evaluation text have no paragraph in common.
"""

import re

_WORDS_MIN = 12


def _paragraphs(text):
    """The prose paragraphs of a topic, each on one line; code, grammars and tables are left out."""
    for block in text.split("\n\n"):
        if re.search(r"::=|>>>|^ *[+|=]|^ *\.\.\. ", block, re.M):
            continue
        line = re.sub(r"^\* ", "", " ".join(block.split()))
        letters = sum(c.isalpha() or c.isspace() for c in line)
        if len(line.split()) >= _WORDS_MIN and letters >= 0.8 * len(line) and line[-1] in ".:?!":
            yield line


def prose():
    """(calibration, evaluation): lists of (topic, text), about equally long and disjoint."""
    from pydoc_data.topics import topics

    sides, lengths, seen = ([], []), [0, 0], set()
    for name in sorted(topics, key=lambda topic: (-len(topics[topic]), topic)):
        lines = []
        for line in _paragraphs(topics[name]):
            if line not in seen:
                seen.add(line)
                lines.append(line)
        if lines:
            side = int(lengths[0] > lengths[1])
            text = "\n\n".join(lines)
            sides[side].append((name, text))
            lengths[side] += len(text)
    return sides


def token_windows(tokenizer, documents, window, count):
    """`count` windows of `window` tokens of the documents laid end to end. Raises ValueError when
    there is less text."""
    ids = []
    for _, text in documents:
        ids += tokenizer.encode(text + "\n\n")
        if len(ids) >= window * count:
            break
    if len(ids) < window * count:
        raise ValueError(f"{window * count} tokens wanted, the text has {len(ids)}")
    return [ids[at:at + window] for at in range(0, window * count, window)]
