"""The disk store beside fio: the same sizes, queue depth, file system and hour."""

import json
import shutil
import subprocess
import sys
import tempfile

import programs

DEPTH = 32  # of the store's io_uring back end
PAGE_BYTES = (64 << 10, 1 << 20)
BYTES = 1 << 30  # written, and read, in each round
TURNS = 4  # in which a round's reads are done, the store's and fio's one after the other: the machine is not the same for long
SMALL_PAGES = 240_000  # of one block each, for opening


def _fio(folder, work, page_bytes, bytes_moved, *options):
    """Bytes a second; None where fio is not installed. Buffers are taken as big and requests as deep as ours."""
    if not shutil.which("fio"):
        return None
    done = subprocess.run(["fio", "--name=beside", "--ioengine=io_uring", "--direct=1", f"--iodepth={DEPTH}", f"--bs={page_bytes}",
                           f"--rw={work}", f"--io_size={bytes_moved}", "--output-format=json", "--fallocate=native", *options],
                          cwd=folder, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit("run bench: fio failed")
    return json.loads(done.stdout)["jobs"][0]["write" if work == "write" else "read"]["bw_bytes"]


def _round(program, page_bytes):
    """Writes and reads of the store and of fio, by turns; fio reads the store's own segments."""
    count = BYTES // page_bytes
    rates = {}
    with tempfile.TemporaryDirectory(prefix="oscarkv-bench-") as folder:
        wrote = programs.figures(program, "write", folder + "/tier", page_bytes, count)
        rates["write"] = wrote["bytes"] / wrote["seconds"]
        rates["write amplification"] = wrote["device_bytes"] / wrote["bytes"]
        rates["fio write"] = _fio(folder, "write", page_bytes, BYTES, f"--size={BYTES}", "--filename=beside",
                                  f"--fdatasync={(64 << 20) // page_bytes}")
        segments = ":".join(f"tier/segment-{i:06}" for i in range(BYTES >> 28))
        took = {"read": [], "fio read": []}
        for _ in range(TURNS):
            beside = _fio(folder, "randread", page_bytes, BYTES // TURNS, f"--filename={segments}", f"--size={BYTES}", "--readonly")
            took["fio read"].append(beside and 1 / beside)
            read = programs.figures(program, "read", folder + "/tier", page_bytes, count // TURNS)
            took["read"].append(read["seconds"] / read["bytes"])
        for work, times in took.items():
            rates[work] = None if None in times else TURNS / sum(times)
        rates["backend"] = read["backend"]
    return rates


def run(program, build_dir, out, arguments):
    """What tables.disk shows, from `arguments.repetitions` rounds."""
    program = build_dir / "bin" / program
    figures = {"depth": DEPTH, "rounds": {}}
    for page_bytes in PAGE_BYTES:
        figures["rounds"][page_bytes] = [_round(program, page_bytes) for _ in range(arguments.repetitions)]
    with tempfile.TemporaryDirectory(prefix="oscarkv-bench-") as folder:
        programs.figures(program, "write", folder + "/tier", 4096, SMALL_PAGES)
        figures["open"] = [programs.figures(program, "open", folder + "/tier") for _ in range(arguments.repetitions)]
    return programs.save(out, figures)
