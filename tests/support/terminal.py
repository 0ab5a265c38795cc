"""A pseudo-terminal, for what looks different to a person than to a pipe."""

import pty

import pytest


def open_terminal():
    """Our end and the program's, as file descriptors. Skips the test where the machine gives none out (a bare chroot)."""
    try:
        return pty.openpty()
    except OSError as error:
        pytest.skip(f"no pseudo-terminals here: {error}")
