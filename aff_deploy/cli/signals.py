"""SIGINT and SIGTERM end a command at once, with 130 and 143, and leave nothing behind.

Nothing is raised into the work: it may be deep in a library's call back, or in code that catches whatever it
meets, and an engine builder's threads do not survive the interpreter's end. A thread of its own waits for a
signal, removes what is being made, and ends the process.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType

from aff_deploy.artifact import abandon_stages, cache_folder
from aff_deploy.cli.streams import printable

NUMBERS = (signal.SIGINT, signal.SIGTERM)


def watch_signals(describe: Callable[[int], str]) -> Callable[[], None]:
    """From now on SIGINT and SIGTERM end the process; elsewhere than in the main thread, nothing changes.

    Args:
        describe: what stdout is told of the exit code, for a program.

    Returns:
        What puts everything back, for a process that lives on.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    waiting, woken = socket.socketpair()
    woken.setblocking(False)
    threading.Thread(target=_wait, args=(waiting, describe), name="signals", daemon=True).start()
    former = {number: signal.signal(number, _nothing) for number in NUMBERS}
    wakeup = signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)

    def stop() -> None:
        signal.set_wakeup_fd(wakeup)
        for number, handler in former.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        woken.close()  # which ends the thread

    return stop


def _nothing(number: int, frame: FrameType | None) -> None:
    """A handler must be there for a signal to wake the thread."""


def _wait(waiting: socket.socket, describe: Callable[[int], str]) -> None:
    with waiting:
        while received := waiting.recv(1):
            if received[0] in NUMBERS:
                _end(received[0], describe)


def _end(number: int, describe: Callable[[int], str]) -> None:
    try:
        # What was written into a folder that is gone, or into our cache, is no output.
        written = [path for path in abandon_stages() if path.exists() and not path.is_relative_to(cache_folder(""))]
        said = f"{printable(str(written[-1]))} is written" if written else "nothing was written"
        # In one piece, below any stream that the work may be writing to.
        os.write(2, f"\ninterrupted: {said}\n".encode(errors="replace"))
        os.write(1, describe(128 + number).encode())
    except OSError:
        pass
    finally:
        os._exit(128 + number)
