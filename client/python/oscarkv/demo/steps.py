"""The demo's steps in order, each printed as it happens."""

import contextlib
import dataclasses
import os
import pathlib
import platform
import time

import oscarkv

from . import calibration, dump, gguf_weights, quality, report, sharing, text
from .console import Console
from .model import Model
from .plot import draw
from .processes import Server
from .tokenizer import Tokenizer

_DUMP_WINDOW = 2048  # tokens of one calibration sequence, at most


class Demo:
    """One run. `folder` holds what it makes."""

    _device = "cpu"
    _model_class = Model
    _sets = tuple(calibration.SETS)
    _server_flags = ()

    def __init__(self, arguments, folder):
        self._arguments = arguments
        self._folder = folder
        self._console = Console()
        recents = (arguments.recent_tokens, 0)
        self._setting = quality.Setting(
            prefix=arguments.prefix_tokens, tail=arguments.tail_tokens,
            page_tokens=arguments.page_tokens, sink_tokens=arguments.sinks_tokens, recents=recents)

    def run(self):
        """Returns every figure."""
        start = time.monotonic()
        self._load()
        with self._console.step("a", "calibrate on the model's own activations"):
            sets = self._calibrate()
        with contextlib.ExitStack() as running:
            with self._console.step("b", "start oscarkvd"):
                server = running.enter_context(Server(self._arguments.build_dir, self._folder,
                                                     self._server_flags))
                self._console.line(f"    listening on {server.endpoint}, metrics on {server.metrics}")
            figures = self._share(server, sets)
            page = report.scrape(server.metrics)
        figures |= self._tell(figures, sets, page)
        figures["steps_s"] = self._console.seconds
        figures["total_s"] = time.monotonic() - start
        self._console.line()
        self._console.line(f"{figures['total_s']:.0f} s in all")
        return figures

    def _tell(self, figures, sets, page):
        """The last steps. Returns more figures."""
        with self._console.step("e", "what was saved, and what each method costs"):
            report.print_sharing(self._console, figures)
            self._console.line()
            figures |= self._quality(sets)
        with self._console.step("f", "the metrics page, filtered, and the plot"):
            report.print_metrics(self._console, page)
            plot = self._arguments.plot or pathlib.Path(self._arguments.build_dir) / "demo.png"
            draw(figures, plot)
            self._console.line(f"    plot: {plot}")
        return figures

    def _load(self):
        path = pathlib.Path(self._arguments.model or gguf_weights.default_model_path())
        self._console.line(f"model: {path}")
        loaded = gguf_weights.load_gguf(path)
        # The name inside a file is often that of some training run.
        loaded = dataclasses.replace(loaded, config=dataclasses.replace(loaded.config, name=path.stem))
        gguf_weights.save(loaded, self._folder / "model")
        self._loaded = loaded
        self._model = self._model_class(loaded)
        self._config = config = loaded.config
        self._tokenizer = Tokenizer(loaded.vocabulary)
        self._calibration_text, self._evaluation_text = text.prose()
        self._console.line(
            f"    {config.name}: {config.layers} layers, {config.heads} query and {config.kv_heads} KV "
            f"heads of {config.head_dim}, a paged cache of 16-token blocks")

    def _calibrate(self):
        tokens = self._arguments.calibration_tokens
        window = min(_DUMP_WINDOW, tokens // 4)
        sequences = text.token_windows(self._tokenizer, self._calibration_text, window,
                                       tokens // window)
        with self._console.progress("dumping Q, K, V", window * len(sequences)) as progress:
            dump.dump_qkv(self._model, sequences, self._folder / "qkv", progress)
        with self._console.progress("calibrating", len(self._sets)) as progress:
            sets = calibration.calibrate(self._arguments.build_dir, self._folder / "qkv",
                                         self._folder, self._setting, self._arguments.recent_tokens,
                                         progress, self._sets)
        for side, counts in calibration.chosen(self._folder, "oscarkv").items():
            methods = ", ".join(f"{name} in {count}" for name, count in counts.items())
            self._console.line(f"    best for {side}, by layers: {methods}")
        for warning in calibration.warnings(self._folder, "oscarkv"):
            self._console.line(f"    calibrate warns: {warning}")
        return sets

    def _share(self, server, sets):
        arguments, console = self._arguments, self._console
        prompts = sharing.make_prompts(self._tokenizer, self._evaluation_text, arguments.prompt_tokens)
        longest = max(map(len, (prompts.a, prompts.b, prompts.c)))
        start = sharing.worker_starter(
            self._folder, self._folder / "model", server.endpoint, sets["oscarkv"], self._setting,
            arguments.recent_tokens, 2 * (longest + arguments.generate_tokens) + 64, self._device)
        workers = sharing.Workers(console, self._tokenizer, arguments.generate_tokens, start)
        with console.step("c", "worker A prefills a long prompt and pushes its pages"):
            pushed = workers.push(prompts.a)
        with console.step("d", "workers B and C find what they share with A, and fetch it"):
            console.line(f"    B shares {prompts.shared} tokens with A, C {prompts.shared_half}")
            b = workers.ask("B", prompts.b, ("nothing", "take"))
            c = workers.ask("C", prompts.c, ("nothing", "take", "recompute"))
        with oscarkv.Client(server.endpoint, name="demo") as client:
            stored = sum(int(space["stored_bytes"]) for space in client.stats()["namespaces"])
        codec = quality.page_codec(self._config, self._setting,
                                   oscarkv.TransformSet.load(str(sets["oscarkv"])))
        page_bytes = {form: codec.page_bytes(form) for form in ("wide", "packed")}
        return report.sharing_figures(self._config, self._setting, arguments.recent_tokens, pushed, b,
                                      c, page_bytes, stored)

    def _quality(self, sets):
        count = self._arguments.windows
        windows = text.token_windows(self._tokenizer, self._evaluation_text, self._setting.window,
                                     count)
        methods = calibration.methods(self._config, self._setting, sets)
        counts = {recent: self._setting.windows_of(recent, count) for recent in self._setting.recents}
        runs = sum(counts.values()) * len(methods)
        with self._console.progress("comparing methods", runs) as progress:
            tables = quality.Evaluation(self._model, self._setting).run(windows, methods, progress)
        found = {recent: {name: total.summary() for name, total in table.items()}
                 for recent, table in tables.items()}
        self._console.line(
            f"    Windows of unseen text: {self._setting.prefix} tokens held by each method, then "
            f"{self._setting.tail} exact ones.")
        for recent, table in found.items():
            report.print_quality(self._console, recent, counts[recent], table)
        main = self._setting.recents[0]
        return {"quality": found[main], "quality_without_recent_window": found[0],
                "target_met": report.print_verdict(self._console, found[main]["oscarkv"]),
                "windows": count, "model": self._config.name, "machine": machine()}


def machine():
    return f"{platform.machine()}, {os.cpu_count()} CPUs"
