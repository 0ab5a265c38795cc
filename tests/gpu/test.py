"""Runs gpu_test in as many shards as there are cores: what it compares with is computed on the CPU.

    test.py --bin-dir build/cuda/bin [--sanitize] [--filter PATTERN] [--every N] [--logs DIR]

Needs nothing but this script and the program: carry them to the machine that has the GPU.
"""

import argparse
import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

# Tools, and every how manieth test each runs by default: racecheck follows each access to shared memory.
_TOOLS = {"memcheck": 1, "racecheck": 4}
_FLAGS = {"memcheck": ["--report-api-errors", "no"], "racecheck": []}
_SANITIZER = "/usr/local/cuda/bin/compute-sanitizer"


def _command(program, tool, pattern):
    command = [program, "--gtest_brief=1", f"--gtest_filter={pattern}"]
    if tool:
        sanitizer = shutil.which("compute-sanitizer") or _SANITIZER
        # Calls that fail, some are made to, are the tests' to judge; what kernels do is the tools'.
        command = [sanitizer, "--tool", tool, "--error-exitcode", "99", *_FLAGS[tool], *command]
    return [str(word) for word in command]


def run(program, tool, pattern, every, shards, logs):
    """Runs every `every`-th test, its work spread over `shards` processes. Returns whether all passed."""
    start = time.monotonic()

    def shard(number):
        # Google Test gives shard s of n the tests s, s + n, ...: of n = shards * every, these make every `every`-th.
        environment = {**os.environ, "GTEST_TOTAL_SHARDS": str(shards * every), "GTEST_SHARD_INDEX": str(number * every)}
        log = logs / f"{tool or 'plain'}_{number}.log"
        with open(log, "w") as file:
            status = subprocess.run(_command(program, tool, pattern), env=environment, stdout=file,
                                    stderr=subprocess.STDOUT).returncode
        return status, log

    with concurrent.futures.ThreadPoolExecutor(shards) as pool:
        done = list(pool.map(shard, range(shards)))
    passed = sum(int(count) for _, log in done
                 for count in re.findall(r"^\[  PASSED  \] (\d+) test", log.read_text(errors="replace"), re.M))
    failed = [(status, log) for status, log in done if status]
    share = "" if every == 1 else f" (every {every}th)"
    verdict = f"{len(failed)} of {shards} processes FAILED" if failed else "no error"
    print(f"{tool or 'gpu_test'}: {passed} tests passed{share}, {verdict}; {time.monotonic() - start:.0f} s", flush=True)
    for status, log in failed:
        text = log.read_text(errors="replace").splitlines()
        print(f"--- {log}, exit status {status}:", *text[-40:], sep="\n")
    if not passed and not failed:
        print(f"no test is named like {pattern!r}")
    return passed > 0 and not failed


def main():
    parser = argparse.ArgumentParser(prog="run gpu-test", description=__doc__.split("\n")[0])
    parser.add_argument("--bin-dir", type=pathlib.Path, required=True, help="where gpu_test is")
    parser.add_argument("--sanitize", nargs="*", choices=[[], *_TOOLS], metavar="TOOL",
                        help="under compute-sanitizer instead: memcheck, racecheck; both by default")
    parser.add_argument("--filter", default="*", metavar="PATTERN", help="as --gtest_filter")
    parser.add_argument("--every", type=int, metavar="N", help="only every Nth test (racecheck: 4th)")
    parser.add_argument("--shards", type=int, default=min(os.cpu_count(), 16), metavar="N",
                        help="processes (%(default)s)")
    parser.add_argument("--logs", type=pathlib.Path, metavar="DIR", help="keep what each process printed there")
    arguments = parser.parse_args()
    program = arguments.bin_dir / "gpu_test"
    if not program.exists():
        parser.error(f"{program} is not there: build it, or name --bin-dir")
    tools = [None] if arguments.sanitize is None else arguments.sanitize or list(_TOOLS)
    with tempfile.TemporaryDirectory() as folder:
        logs = arguments.logs or pathlib.Path(folder)
        logs.mkdir(parents=True, exist_ok=True)
        good = [run(program, tool, arguments.filter,
                    arguments.every or _TOOLS.get(tool, 1), arguments.shards, logs) for tool in tools]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
