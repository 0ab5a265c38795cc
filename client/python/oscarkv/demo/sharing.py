"""Steps (c) and (d): workers in processes of their own share a prompt's KV through the store."""

import dataclasses

from .processes import Worker

QUESTIONS = {
    "A": "Summarise this text in two sentences.",
    "B": "What does the \"if\" statement do?",
    "C": "Explain the \"for\" statement.",
}


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Token ids. A and B share everything but the question; C shares the first half."""

    a: list
    b: list
    c: list
    shared: int       # tokens that A and B share
    shared_half: int  # tokens that A and C share


def make_prompts(tokenizer, documents, shared_tokens):
    """Prompts that begin with the same `shared_tokens` tokens. ValueError if the text is too short."""
    opening, between, closing = (tokenizer.encode(part, special=True)
                                 for part in tokenizer.chat_frame())
    opening = tokenizer.begin() + opening
    wanted = shared_tokens - len(opening) - len(between)
    body = []
    for _, text in documents:
        body += tokenizer.encode(text + "\n\n")
        if len(body) >= wanted:
            break
    if len(body) < wanted or wanted < 2:
        raise ValueError(f"{shared_tokens} tokens wanted, the text has {len(body)}")
    whole = opening + body[:wanted] + between
    half = opening + body[:wanted // 2]

    def ask(name, start):
        return start + tokenizer.encode(QUESTIONS[name]) + closing

    return Prompts(ask("A", whole), ask("B", whole), ask("C", half + between), len(whole), len(half))


def _common(first, second):
    """Leading elements that are equal."""
    return next((i for i, (a, b) in enumerate(zip(first, second)) if a != b),
                min(len(first), len(second)))


class Workers:
    """Runs the workers' part of the demo and prints what they do."""

    def __init__(self, console, tokenizer, generate, start_worker):
        """`start_worker(name)` makes a `Worker`, not yet entered."""
        self._console = console
        self._tokenizer = tokenizer
        self._generate = generate
        self._start = start_worker

    def push(self, prompt):
        """Worker A: prefills its prompt and pushes its pages."""
        with self._start("A") as worker:
            with self._console.progress("A prefills", len(prompt)) as progress:
                pushed = worker.ask({"do": "push", "prompt": prompt}, progress)
            self._console.line(
                f"    A (process {worker.pid}) prefilled {len(prompt)} tokens in {pushed['ttft_s']:.2f} s "
                f"and pushed {pushed['pages']} pages in {pushed['push_s']:.2f} s: "
                f"{pushed['wide_pages']} WIDE, {pushed['packed_pages']} in 2 bits")
        return pushed

    def ask(self, name, prompt, choices):
        """Worker `name` answers `prompt` once for each choice of what to reuse, beginning with
        "nothing", whose answer is the exact one. Returns {choice: answer}."""
        answers, follow = {}, None
        with self._start(name) as worker:
            for reuse in choices:
                request = {"do": "ask", "prompt": prompt, "reuse": reuse, "follow": follow,
                           "generate": self._generate}
                with self._console.progress(f"{name}, reuse: {reuse}", len(prompt)) as progress:
                    answers[reuse] = answer = worker.ask(request, progress)
                    progress(answer["tokens_reused"])
                follow = follow or answer["answer"] or [answer["first_token"]]
                self._tell(name, worker, reuse, answer, answers["nothing"])
        return answers

    def _tell(self, name, worker, reuse, answer, exact):
        reused = answer["tokens_reused"]
        if reuse == "nothing":
            what = f"computes all {answer['tokens']} tokens"
        else:
            packed = answer["encodings"].count("packed")
            what = (f"finds {answer['pages_found']} pages, reuses {reused} tokens "
                    f"({len(answer['encodings']) - packed} pages WIDE, {packed} in 2 bits), computes "
                    f"{answer['tokens'] - reused}")
        self._console.line(f"    {name} (process {worker.pid}) {what}: first token after "
                           f"{answer['ttft_s']:.2f} s")
        text = " ".join(self._tokenizer.decode(answer["answer"]).split())
        self._console.line(f"        {text!r}")
        if answer is not exact:
            same = _common(answer["answer"], exact["answer"])
            self._console.line("        the exact answer, token for token" if answer["answer"] == exact["answer"]
                               else f"        parts from the exact answer after {same} tokens")


def worker_starter(folder, model_folder, endpoint, transforms, setting, recent_tokens, cache_tokens,
                   device="cpu"):
    """A function that makes workers by name."""
    arguments = ["--model", str(model_folder), "--endpoint", endpoint, "--transforms", str(transforms),
                 "--page-tokens", str(setting.page_tokens), "--sink-tokens", str(setting.sink_tokens),
                 "--recent-tokens", str(recent_tokens), "--cache-tokens", str(cache_tokens),
                 "--device", device]
    return lambda name: Worker(name, folder, arguments)
