"""Runs gpu_bench and, where this Python has PyTorch, the same workloads in PyTorch; prints both in one Markdown table.

    bench.py --bin-dir build/cuda/bin [--filter EXPRESSION] [--json FILE] [--no-torch] [--no-compile]

Needs nothing but this folder's scripts and the program: carry them to the machine that has the GPU.
"""

import argparse
import importlib.util
import json
import pathlib
import subprocess
import sys
import tempfile

import tables


def _run(command, json_file):
    """The command's JSON; what it prints goes to standard error."""
    if not pathlib.Path(command[0]).exists():
        sys.exit(f"run gpu-bench: {command[0]} is not there: build it, or name --bin-dir")
    done = subprocess.run([*command, "--json", str(json_file)], stdout=sys.stderr)
    if done.returncode:
        sys.exit(f"run gpu-bench: {command[0]} failed")
    return json.loads(json_file.read_text())


def main():
    parser = argparse.ArgumentParser(prog="run gpu-bench", description=__doc__.split("\n")[0])
    parser.add_argument("--bin-dir", type=pathlib.Path, required=True, help="where gpu_bench is")
    parser.add_argument("--filter", default=".", help="only workloads in whose names this expression is found")
    parser.add_argument("--json", metavar="FILE", type=pathlib.Path, help="write every figure to this file")
    parser.add_argument("--no-torch", action="store_true", help="leave PyTorch out")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out, which takes its time")
    arguments = parser.parse_args()
    figures = {"torch": None}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        figures["bench"] = _run([arguments.bin_dir / "gpu_bench", "--filter", arguments.filter], folder / "bench.json")
        if arguments.no_torch:
            pass
        elif importlib.util.find_spec("torch") is None:
            print(f"run gpu-bench: {sys.executable} has no torch, so the table has no figures of PyTorch",
                  file=sys.stderr)
        else:
            peers = pathlib.Path(__file__).with_name("torch_peers.py")
            flags = ["--no-compile"] if arguments.no_compile else []
            figures["torch"] = _run([sys.executable, peers, "--filter", arguments.filter.split("/wide")[0], *flags],
                                    folder / "torch.json")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    print(tables.markdown(figures["bench"], figures["torch"]))


if __name__ == "__main__":
    main()
