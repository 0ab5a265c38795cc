"""`oscarkv` against a server, and K and V to give it."""

import json
import re

import numpy as np
import tensor_files

LAYERS, TOKENS, HEADS, DIM, PAGE = 3, 150, 2, 64, 16
PAGES, WHOLE = TOKENS // PAGE, TOKENS // PAGE * PAGE
# Pages of 16 tokens, of which the first and the last are wide when there is a transform.
PUT = ("--page-tokens", PAGE, "--sink-tokens", PAGE, "--recent-tokens", PAGE)


class Cli:
    """Runs `oscarkv VERB ... --server ADDRESS` and holds it to its exit code."""

    def __init__(self, build_dir, address):
        self._build_dir, self.address = build_dir, address

    def run(self, *arguments, **options):
        return tensor_files.run(self._build_dir, *arguments, "--server", self.address, **options)

    def __call__(self, *arguments, **options):
        done = self.run(*arguments, **options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def json(self, *arguments):
        return json.loads(self(*arguments, "--json"))

    def refusal(self, *arguments, code=1, **options):
        """The message of a run that must fail and print no data."""
        done = self.run(*arguments, **options)
        assert done.returncode == code and done.stdout == "", (done.returncode, done.stdout)
        assert re.search(r"(^|\] )oscarkv: .* \([A-Z_]+\)\n$", done.stderr, re.S), done.stderr
        return done.stderr


def make_kv(dtype="F16", seed=1, tokens=TOKENS, layers=LAYERS):
    rng = np.random.default_rng(seed)

    def side():
        values = rng.normal(size=(layers, tokens, HEADS, DIM)).astype(np.float32)
        return {"F32": values, "F16": values.astype(np.float16), "BF16": ("BF16", tensor_files.to_bf16(values))}[dtype]
    return {"k": side(), "v": side()}
