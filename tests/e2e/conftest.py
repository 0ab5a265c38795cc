"""A line to the test's server that breaks when it is told to, and a client beside it. Modules have servers of their own."""

import oscarkv
import pytest
from support.slow_proxy import SlowProxy


@pytest.fixture
def proxy(server):
    line = SlowProxy(server.endpoint)
    yield line
    line.close()


@pytest.fixture
def watcher(server):
    """A client with a line of its own: sees what the others leave behind."""
    return oscarkv.Client(server.endpoint)


@pytest.fixture(scope="session")
def tell(summaries):
    """Adds what a module has seen to the end of the run's output."""
    def one(what, seen, timeout_ms):
        found = ", ".join(f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}" for name, value in seen.items())
        summaries.append(f"{what}: {found} (deadline of a call {timeout_ms / 1000})")
    return one
