"""oscarkvd as a process of the tests."""

import re
import signal
import subprocess
import tempfile
import urllib.request

START_S = 30  # how long a start or an end may take before a test gives up


class Oscarkvd:
    """A server on a Unix socket in a folder of its own, and where `flags` say. Killed on exit if it still runs.

    Without metrics unless they are asked for: their HTTP library takes two seconds to stop.
    """

    def __init__(self, build_dir, config="", capacity="64MiB", metrics_listen="off", flags=()):
        self._folder = tempfile.TemporaryDirectory(prefix="oscarkvd_")  # the path of a socket may have 107 bytes only
        self.endpoint = f"unix:{self._folder.name}/socket"
        self.log = f"{self._folder.name}/log"
        command = [build_dir / "bin" / "oscarkvd", "--listen", self.endpoint, "--metrics-listen", metrics_listen,
                   "--host-capacity", capacity, *flags]
        if config:
            with open(f"{self._folder.name}/config.yaml", "w") as file:
                file.write(config)
            command += ["--config", file.name]
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        said, addresses = "", 1 + list(flags).count("--listen")
        while said.count("\n") < addresses + (metrics_listen != "off"):
            line = self.process.stdout.readline()
            if not line:  # the process has ended
                raise RuntimeError(f"oscarkvd ended with {self.wait()}: {open(self.log).read()}")
            said += line
        self.listening = re.findall(r"listening on (\S+)", said)
        self.metrics_address = "".join(re.findall(r"metrics on (\S+)", said))

    def metrics(self):
        """The samples of /metrics: {'name{label="value"}': number}, and the whole text."""
        with urllib.request.urlopen(f"http://{self.metrics_address}/metrics", timeout=START_S) as answer:
            text = answer.read().decode()
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines}, text

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def wait(self):
        """Waits for the end; its exit status."""
        return self.process.wait(START_S)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self._folder.cleanup()
