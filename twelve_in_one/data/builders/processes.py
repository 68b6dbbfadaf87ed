"""Worker processes that do not outlive the command that started them."""

import multiprocessing
import signal
import threading
from multiprocessing import connection


def end_with_parent() -> None:
    """Makes this worker end with its parent, however that ends; for use as a pool's initializer.

    Otherwise the workers of a killed command finish their work and then wait forever for more. The
    parent handles interrupts, and tells the user once.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def follow() -> None:
        connection.wait([parent.sentinel])
        signal.raise_signal(signal.SIGTERM)

    threading.Thread(target=follow, daemon=True).start()
