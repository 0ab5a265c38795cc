"""What the demo prints: steps and results on standard output, progress on standard error."""

import contextlib
import sys
import time

_RED, _GREEN, _BOLD, _DIM = "31", "32", "1", "2"
_BAR_CELLS = 30
_REDRAW_SECONDS = 0.1


class Console:
    """Colours only where the stream is a terminal. Bars are redrawn in place on a terminal; elsewhere
    a progress is one plain line when it ends."""

    def __init__(self, out=None, err=None):
        self._out = out or sys.stdout
        self._err = err or sys.stderr
        self._seconds = {}

    @property
    def seconds(self):
        """Seconds that each step took, by its letter."""
        return dict(self._seconds)

    def line(self, text=""):
        print(text, file=self._out, flush=True)

    def warn(self, text):
        self.line(self._paint(text, _RED))

    def good(self, text):
        self.line(self._paint(text, _GREEN))

    @contextlib.contextmanager
    def step(self, letter, title):
        self.line()
        self.line(self._paint(f"({letter}) {title}", _BOLD))
        start = time.monotonic()
        yield
        self._seconds[letter] = time.monotonic() - start
        self.line(self._paint(f"    {self._seconds[letter]:.1f} s", _DIM))

    @contextlib.contextmanager
    def progress(self, label, total):
        """Yields a function to call with the amount of work just done."""
        bar = _Bar(self._err, label, total)
        try:
            yield bar.advance
        finally:
            bar.close()

    def table(self, header, rows):
        """Columns as wide as their widest cell; the first left-aligned, the rest right-aligned."""
        cells = [[str(cell) for cell in row] for row in [header, *rows]]
        widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
        for number, row in enumerate(cells):
            parts = [row[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(row[1:], widths[1:])]
            text = "    " + "   ".join(parts)
            self.line(self._paint(text, _BOLD) if number == 0 else text)

    def _paint(self, text, code):
        return f"\033[{code}m{text}\033[0m" if self._out.isatty() else text


class _Bar:
    def __init__(self, stream, label, total):
        self._stream, self._label, self._total = stream, label, total
        self._live = stream.isatty()
        self._done = 0
        self._start = self._drawn = time.monotonic()

    def advance(self, amount):
        self._done = min(self._done + amount, self._total)
        now = time.monotonic()
        if self._live and now - self._drawn >= _REDRAW_SECONDS:
            self._drawn = now
            full = round(_BAR_CELLS * self._done / max(self._total, 1))
            self._stream.write(f"\r    {self._label} [{'#' * full}{'.' * (_BAR_CELLS - full)}] "
                               f"{self._done}/{self._total}  {now - self._start:.0f} s\033[K")
            self._stream.flush()

    def close(self):
        took = f"    {self._label}: {self._done}/{self._total} in {time.monotonic() - self._start:.1f} s"
        self._stream.write(f"\r{took}\033[K\n" if self._live else took + "\n")
        self._stream.flush()


def bytes_text(count):
    """1234567 -> '1.23 MB'."""
    value = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.2f} {unit}"
        value /= 1000
    raise AssertionError
