"""Starting and stopping what the demo needs: the server and the workers."""

import json
import os
import pathlib
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import time


class ProcessFailed(RuntimeError):
    """A process that the demo started ended or did not answer; the message holds its last words."""


class Unavailable(RuntimeError):
    """Something that the demo needs is not on this machine; the message says what."""


def blas_environment():
    """The environment in which the model runs fast: it spreads work over threads itself, so each
    BLAS call stays in its own."""
    single = {name: "1" for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    return {**os.environ, **single}


def _tail(path, lines=15):
    try:
        return "\n".join(pathlib.Path(path).read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


def _stop(process, seconds=10):
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return process.returncode


class Server:
    """oscarkvd on a Unix socket, metrics on a free port, its log in `folder`, with more `flags`. Stops
    it on exit."""

    def __init__(self, build_dir, folder, flags=(), timeout_s=20):
        self.binary = pathlib.Path(build_dir) / "bin" / "oscarkvd"
        self.folder = pathlib.Path(folder)
        self._flags = flags
        self._timeout_s = timeout_s
        self.endpoint = self.metrics = None

    def __enter__(self):
        if not self.binary.exists():
            raise ProcessFailed(f"{self.binary} is not there: build it, or name --build-dir")
        self._log = self.folder / "oscarkvd.log"
        self._printed = self.folder / "oscarkvd.out"
        # A folder of its own: the path of a socket may have 107 bytes only.
        self._socket_folder = tempfile.TemporaryDirectory(prefix="oscarkvd_")
        with open(self._log, "w") as log, open(self._printed, "w") as printed:
            self._process = subprocess.Popen(
                [self.binary, "--listen", f"unix:{self._socket_folder.name}/socket",
                 "--metrics-listen", "127.0.0.1:0", "--host-capacity", "512MiB", *self._flags],
                stdout=printed, stderr=log)
        deadline = time.monotonic() + self._timeout_s
        while not (self.endpoint and self.metrics):
            text = self._printed.read_text()
            said = dict(re.findall(r"^(listening|metrics) on (\S+)$", text, re.M))
            self.endpoint, self.metrics = said.get("listening"), said.get("metrics")
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise ProcessFailed(f"oscarkvd did not start:\n{text}{_tail(self._log)}")
            time.sleep(0.02)
        return self

    def __exit__(self, *_):
        self.returncode = _stop(self._process)
        self._socket_folder.cleanup()

    def log_tail(self):
        return _tail(self._log)


class Worker:
    """A `python -m oscarkv.demo.worker` process that answers requests one at a time."""

    def __init__(self, name, folder, arguments):
        self.name = name
        self._log = pathlib.Path(folder) / f"worker_{name}.log"
        self._arguments = [sys.executable, "-m", "oscarkv.demo.worker", "--name", name, *arguments]

    def __enter__(self):
        with open(self._log, "w") as log:
            self._process = subprocess.Popen(self._arguments, stdin=subprocess.PIPE,
                                             stdout=subprocess.PIPE, stderr=log, text=True, bufsize=1,
                                             env=blas_environment())
        self._lines = selectors.DefaultSelector()
        self._lines.register(self._process.stdout, selectors.EVENT_READ)
        return self

    @property
    def pid(self):
        return self._process.pid

    def ask(self, request, progress=None, timeout_s=300):
        """Sends one request and waits for its result."""
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # told below, with its log
        while self._lines.select(timeout_s):
            line = self._process.stdout.readline()
            if not line:
                break
            answer = json.loads(line)
            if "done" in answer:
                if progress:
                    progress(answer["done"])
            else:
                return answer["result"]
        _stop(self._process, 1)
        raise ProcessFailed(f"worker {self.name} did not answer:\n{_tail(self._log)}")

    def __exit__(self, *_):
        self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            pass
        _stop(self._process)
