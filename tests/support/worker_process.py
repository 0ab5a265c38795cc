"""A worker of a test in a process of its own: `with WorkerProcess(endpoint) as worker: worker.ask("push", pages=4)`."""

import json
import os
import pathlib
import selectors
import signal
import subprocess
import sys
import time

DEADLINE_S = 60


class WorkerProcess:
    """Runs tests/e2e/worker.py with `arguments`; requests and answers are JSON lines. `inside`: a command that runs it;
    `environment`: what it has beside this process's."""

    def __init__(self, *arguments, inside=(), environment=None):
        path = pathlib.Path(__file__).parent.parent / "e2e" / "worker.py"
        self._process = subprocess.Popen(
            [*map(str, inside), sys.executable, path, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})})
        self._answers = selectors.DefaultSelector()
        self._answers.register(self._process.stdout, selectors.EVENT_READ)

    def ask(self, what, **arguments):
        """Sends a request and returns its answer."""
        self.send(what, **arguments)
        return self.answer()

    def send(self, what, **arguments):
        self._process.stdin.write(json.dumps({"do": what, **arguments}) + "\n")
        self._process.stdin.flush()

    def answers_within(self, seconds):
        """Whether there is an answer by then; it stays there."""
        return bool(self._answers.select(seconds))

    def answer(self):
        assert self._answers.select(DEADLINE_S), "the worker does not answer"
        line = self._process.stdout.readline()
        assert line, f"the worker ended with status {self._process.wait(DEADLINE_S)}"
        return json.loads(line)

    def stop(self):
        self._process.send_signal(signal.SIGSTOP)
        self.await_stop()

    def await_stop(self):
        """Until the process is stopped, by this one or by itself."""
        self._await(os.WSTOPPED, os.CLD_STOPPED)

    def resume(self):
        self._process.send_signal(signal.SIGCONT)
        self._await(os.WCONTINUED, os.CLD_CONTINUED)

    def _await(self, option, expected):
        deadline = time.monotonic() + DEADLINE_S
        while not (found := os.waitid(os.P_PID, self._process.pid, option | os.WNOHANG)):
            assert time.monotonic() < deadline, "the worker neither stops nor goes on as it should"
            self._answers.select(0.01)
        assert found.si_code == expected

    def end(self):
        """Lets the worker come to its own end, which it has to do without an error."""
        self._process.stdin.close()
        assert self._process.wait(DEADLINE_S) == 0

    def await_death(self):
        """Until the process has died by itself; returns its exit status, less than 0: of a signal."""
        assert self._answers.select(DEADLINE_S), "the worker neither answers nor ends"
        assert not (line := self._process.stdout.readline()), f"the worker answered and did not die: {line}"
        return self._process.wait(DEADLINE_S)

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
