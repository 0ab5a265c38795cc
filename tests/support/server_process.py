"""A real oscarkvd for tests: started, killed, stopped, continued and started again, with no sleeps in between."""

import os
import pathlib
import re
import selectors
import signal
import subprocess
import tempfile
import time

DEADLINE_S = 60  # of everything that should happen at once; a test that meets it fails


class ServerProcess:
    """oscarkvd with a small host tier. `listen` is an address; port 0 picks one, which later starts keep. `fault`, of
    oscarkvd_faults: where its first process dies (fault_from_environment.cc)."""

    def __init__(self, build_dir, listen="127.0.0.1:0", arguments=(), capacity="64MiB", fault=""):
        self._program = pathlib.Path(build_dir) / "bin" / ("oscarkvd_faults" if fault else "oscarkvd")
        self._arguments = ["--metrics-listen", "off", "--host-capacity", capacity, "--log-level", "warning", *arguments]
        self._folder = tempfile.TemporaryDirectory(prefix="oscarkvd_")  # short: a socket's path has 107 bytes at most
        self.endpoint = f"unix:{self._folder.name}/socket" if listen == "unix" else listen
        self._process = None
        self.start(fault)

    def start(self, fault=""):
        environment = {**os.environ, "OSCARKV_FAULT": fault} if fault else None
        self._process = subprocess.Popen([self._program, "--listen", self.endpoint, *self._arguments],
                                         stdout=subprocess.PIPE, text=True, env=environment)
        self._output = selectors.DefaultSelector()
        self._output.register(self._process.stdout, selectors.EVENT_READ)
        assert self._output.select(DEADLINE_S), "oscarkvd says nothing"
        line = self._process.stdout.readline()
        found = re.match(r"listening on (\S+)", line)
        assert found, f"oscarkvd did not start: {line!r}"
        self.endpoint = found[1]

    @property
    def pid(self):
        return self._process.pid

    @property
    def ended(self):
        return self._process.poll() is not None

    def kill(self):
        """As by kill -9: nothing is said to anybody."""
        self._process.kill()
        self._process.wait(DEADLINE_S)
        self._output.close()
        self._process.stdout.close()

    def stop(self):
        """Stops the process where it is: its sockets stay open and nobody answers."""
        self._signal(signal.SIGSTOP, os.WUNTRACED)

    def resume(self):
        self._signal(signal.SIGCONT, os.WCONTINUED)

    def _signal(self, number, option):
        self._process.send_signal(number)
        pid, status = os.waitpid(self._process.pid, option)
        assert pid == self._process.pid and not (os.WIFEXITED(status) or os.WIFSIGNALED(status)), "oscarkvd ended"

    def wait_until(self, condition, what):
        """Asks `condition` again and again until it holds; an oscarkvd that ends meanwhile fails the test at once."""
        deadline = time.monotonic() + DEADLINE_S
        while not (found := condition()):
            assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}"
            assert not self._output.select(0.01), f"oscarkvd ended while the test waited: {what}"
        return found

    def close(self):
        if not self.ended:
            self.kill()
        self._folder.cleanup()
