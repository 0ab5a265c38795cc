"""A line between a client and a server that can be cut short, after so many bytes, that turns a bit over, or that stalls."""

import socket
import threading


class SlowProxy:
    """Listens on 127.0.0.1 and passes everything to `endpoint`. A side that ends its connection ends the other's."""

    def __init__(self, endpoint):
        self._target = endpoint
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = "127.0.0.1:%d" % self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._left = {"to_server": None, "to_client": None}  # bytes that still pass; None: all
        self._until_flip = None  # bytes to the client until one is changed
        self._flowing = threading.Event()
        self._flowing.set()
        self._until_stall = None  # bytes, of both directions, until nothing passes any more
        self.passed = 0  # bytes, of both directions
        self._sockets = [self._listener]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def pass_only(self, count, direction):
        """From now on `count` bytes more get through in `direction`, to_server or to_client."""
        with self._lock:
            self._left[direction] = count

    def pass_all(self):
        """For connections to come: the ones that were cut short have lost bytes."""
        with self._lock:
            self._left = dict.fromkeys(self._left)

    def flip_bit_after(self, count):
        """Of the bytes that the client is sent from now on, the one after `count` others arrives changed."""
        with self._lock:
            self._until_flip = count

    def stall(self, after=0):
        """From now on `after` bytes more get through, of both directions; then nothing moves, and nobody is told."""
        with self._lock:
            self._until_stall = after

    @property
    def stalled(self):
        return not self._flowing.is_set()

    def resume(self):
        with self._lock:
            self._until_stall = None
            self._flowing.set()

    def _wait_while_stalled(self, count):
        with self._lock:
            if self._until_stall is not None:
                if self._until_stall < count:
                    self._flowing.clear()
                else:
                    self._until_stall -= count
        self._flowing.wait()
        with self._lock:
            self.passed += count

    def _flip(self, data):
        at, self._until_flip = self._until_flip, self._until_flip - len(data)
        if at >= len(data):
            return data
        self._until_flip = None
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1:]

    def _connect(self):
        if self._target.startswith("unix:"):
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._target.removeprefix("unix:"))
            return server
        host, port = self._target.rsplit(":", 1)
        return socket.create_connection((host, int(port)))

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            try:
                server = self._connect()
            except OSError:
                client.close()  # nobody is there
                continue
            self._sockets += [client, server]
            for pair in ((client, server, "to_server"), (server, client, "to_client")):
                self._threads.append(threading.Thread(target=self._pass, args=pair))
                self._threads[-1].start()

    def _pass(self, source, sink, direction):
        try:
            while data := source.recv(65536):
                self._wait_while_stalled(len(data))
                with self._lock:
                    if direction == "to_client" and self._until_flip is not None:
                        data = self._flip(data)
                    if self._left[direction] is not None:
                        data = data[:self._left[direction]]
                        self._left[direction] -= len(data)
                if data:
                    sink.sendall(data)
        except OSError:
            pass  # one of the two was closed
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self):
        self.resume()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        for end in self._sockets[1:]:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        for thread in self._threads[1:]:
            thread.join()
        for end in self._sockets:
            end.close()
