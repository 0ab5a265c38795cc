"""How far next-token distributions lie from the exact cache's."""

import dataclasses

import numpy as np

FIRST_TOKENS = 64  # the tokens right after a fetched prefix, reported apart: they lean on it most


@dataclasses.dataclass
class Divergence:
    """Sums over positions; `add` another of the same kind to pool windows."""

    positions: int = 0
    agreements: int = 0
    nll: float = 0.0
    kl_first: float = 0.0
    first: int = 0
    kl_rest: float = 0.0
    rest: int = 0

    def add(self, other):
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def summary(self):
        """Perplexity, top-1 agreement in percent, mean KL in nats of both parts."""
        return {"ppl": float(np.exp(self.nll / self.positions)),
                "top1": 100.0 * self.agreements / self.positions,
                "kl_first64": self.kl_first / max(self.first, 1),
                "kl_rest": self.kl_rest / max(self.rest, 1)}


@dataclasses.dataclass
class Exact:
    """The exact distributions at the evaluated positions, made by `exact_distributions`."""

    logits: np.ndarray   # [positions, vocab]
    p: np.ndarray        # their softmax
    mass: np.ndarray     # [positions], what each row of p sums to in double, 1 but for rounding
    targets: np.ndarray  # [positions], the tokens that followed


def softmax(logits):
    p = logits - logits.max(axis=-1, keepdims=True)
    np.exp(p, out=p)
    p /= p.sum(axis=-1, keepdims=True)
    return p


def exact_distributions(logits, targets):
    p = softmax(logits)
    return Exact(logits, p, p.sum(axis=1, dtype=np.float64), np.asarray(targets))


def kl_and_nll(logits, exact, rows=slice(None)):
    """KL(exact || given) in nats and the given distribution's -log p of the targets, per position.

    With d the difference of the logits, KL = log E[exp d] - E[d] under the exact distribution, which
    stays accurate where the two are close. `logits` is overwritten.
    """
    p, mass, targets = exact.p[rows], exact.mass[rows], exact.targets[rows]
    at = np.arange(len(targets))
    d = np.subtract(logits, exact.logits[rows], out=logits)
    d -= d.max(axis=1, keepdims=True)
    mean = np.einsum("ij,ij->i", p, d, dtype=np.float64) / mass
    target_d = d[at, targets].astype(np.float64)
    np.exp(d, out=d)
    log_ratio = np.log(np.einsum("ij,ij->i", p, d, dtype=np.float64) / mass)
    log_p = np.log(np.maximum(p[at, targets], 1e-38), dtype=np.float64)
    return np.maximum(log_ratio - mean, 0.0), -(log_p + target_d - log_ratio)


def compare(logits, exact, rows=slice(None), first_tokens=FIRST_TOKENS):
    """Divergence of `logits` [rows, vocab] at `rows` of the exact positions; overwrites `logits`."""
    positions = np.arange(len(exact.targets))[rows]
    agreements = int((logits.argmax(axis=1) == exact.logits[rows].argmax(axis=1)).sum())
    kl, nll = kl_and_nll(logits, exact, rows)
    early = positions < first_tokens
    return Divergence(len(positions), agreements, float(nll.sum()), float(kl[early].sum()),
                      int(early.sum()), float(kl[~early].sum()), int((~early).sum()))
