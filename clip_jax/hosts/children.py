"""Set-up of child processes."""

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """Makes this child process exit when its parent dies; a killed one would leave it waiting."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, name="parent", daemon=True).start()
