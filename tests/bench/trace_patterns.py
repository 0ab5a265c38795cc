"""Makes traces that reuse blocks in ways other than a conversation trace, and the small one that tests replay.

    trace_patterns.py NAME > FILE     one of PATTERNS
"""

import json
import random
import sys

BLOCK_TOKENS = 512
CAPACITIES = (500, 2000)  # blocks held; the traces are made so that these are too few


class _Ids:
    """Fresh block numbers."""

    def __init__(self):
        self._next = 0

    def take(self, count):
        self._next += count
        return list(range(self._next - count, self._next))


def _request(time_s, blocks, output=200):
    return {"timestamp": int(time_s * 1000), "input_length": len(blocks) * BLOCK_TOKENS, "output_length": output,
            "hash_ids": list(blocks)}


def zipf():
    """Documents of 10 blocks, each asked for again and again, some much more often than others."""
    rng = random.Random(1)
    documents = [list(range(10 * i, 10 * i + 10)) for i in range(1000)]
    weights = [1 / (i + 1) ** 0.9 for i in range(len(documents))]
    return [_request(i * 0.3, documents[j], rng.randrange(10, 600))
            for i, j in enumerate(rng.choices(range(len(documents)), weights, k=8000))]


def loop():
    """The same 400 documents in the same order, round and round."""
    return [_request(i * 0.3, range(10 * (i % 400), 10 * (i % 400) + 10)) for i in range(6000)]


def scan():
    """Conversations, and now and then a long scan that nobody comes back to."""
    rng = random.Random(2)
    ids = _Ids()
    requests, sessions = [], []
    for i in range(6000):
        if i % 500 >= 450:
            requests.append(_request(i * 0.3, ids.take(40)))
            continue
        if len(sessions) < 60 or rng.random() < 0.1:
            sessions = sessions[-59:] + [ids.take(4)]
        session = rng.choice(sessions)
        session += ids.take(1)
        requests.append(_request(i * 0.3, session))
    return requests


def flood():
    """Nine requests in ten are asked once; the others are turns of long conversations."""
    rng = random.Random(3)
    ids = _Ids()
    sessions = [ids.take(6) for _ in range(40)]
    requests = []
    for i in range(8000):
        if rng.random() < 0.9:
            requests.append(_request(i * 0.2, ids.take(8), rng.randrange(1, 40)))
            continue
        session = rng.choice(sessions)
        session += ids.take(1)
        requests.append(_request(i * 0.2, session, rng.randrange(100, 600)))
    return requests


def agents():
    """A hundred agents that live long: each comes back every minute or so with a few tokens more."""
    rng = random.Random(4)
    ids = _Ids()
    shared = ids.take(4)
    due = [(rng.uniform(0, 60), agent) for agent in range(100)]
    contexts = [shared + ids.take(10) for _ in due]
    requests = []
    for _ in range(6000):
        time_s, agent = min(due)
        due[due.index((time_s, agent))] = (time_s + rng.uniform(30, 90), agent)
        contexts[agent] += ids.take(rng.randrange(0, 2))
        if len(contexts[agent]) > 60:
            contexts[agent] = shared + ids.take(10)
        requests.append(_request(time_s, contexts[agent], rng.randrange(20, 100)))
    return requests


def recency():
    """What was used last is used next: where LRU is right."""
    rng = random.Random(5)
    ids = _Ids()
    stack = []
    requests = []
    for i in range(8000):
        depth = int(rng.expovariate(1 / 60))
        document = stack.pop(-1 - depth) if depth < len(stack) else ids.take(10)
        stack = stack[-2000:] + [document]
        requests.append(_request(i * 0.3, document, rng.randrange(10, 600)))
    return requests


def tiny():
    """A few conversations: what the tests replay."""
    rng = random.Random(6)
    ids = _Ids()
    shared = ids.take(1)
    sessions = []
    requests = []
    for i in range(300):
        if len(sessions) < 12 or rng.random() < 0.2:
            sessions = sessions[-11:] + [shared + ids.take(rng.randrange(1, 6))]
        session = rng.choice(sessions)
        requests.append(_request(i * 2.0, session, rng.randrange(5, 400)))
        session += ids.take(rng.randrange(1, 3))
    return requests


PATTERNS = {"zipf": zipf, "loop": loop, "scan": scan, "flood": flood, "agents": agents, "recency": recency}


def write(path, requests):
    path.write_text("".join(json.dumps(request) + "\n" for request in requests))


if __name__ == "__main__":
    for line in {**PATTERNS, "tiny": tiny}[sys.argv[1]]():
        print(json.dumps(line))
