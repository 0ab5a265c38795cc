"""A worker of a test in a process of its own: `with WorkerProcess(endpoint) as worker: worker.ask("push", pages=4)`."""

import json
import os
import pathlib
import selectors
import subprocess
import sys

DEADLINE_S = 60


class WorkerProcess:
    """Runs tests/e2e/worker.py with `arguments`; requests and answers are JSON lines."""

    def __init__(self, *arguments):
        path = pathlib.Path(__file__).parent.parent / "e2e" / "worker.py"
        self._process = subprocess.Popen([sys.executable, path, *map(str, arguments)], stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        self._answers = selectors.DefaultSelector()
        self._answers.register(self._process.stdout, selectors.EVENT_READ)

    def ask(self, what, **arguments):
        """Sends a request and returns its answer."""
        self.send(what, **arguments)
        return self.answer()

    def send(self, what, **arguments):
        self._process.stdin.write(json.dumps({"do": what, **arguments}) + "\n")
        self._process.stdin.flush()

    def answer(self):
        assert self._answers.select(DEADLINE_S), "the worker does not answer"
        line = self._process.stdout.readline()
        assert line, f"the worker ended with status {self._process.wait(DEADLINE_S)}"
        return json.loads(line)

    def end(self):
        """Lets the worker come to its own end, which it has to do without an error."""
        self._process.stdin.close()
        assert self._process.wait(DEADLINE_S) == 0

    def kill(self):
        """As by kill -9."""
        self._process.kill()
        self._process.wait(DEADLINE_S)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()
        self._answers.close()
        self._process.stdin.close()
        self._process.stdout.close()
