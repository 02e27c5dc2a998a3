"""How long this thread has waited for a core while others had it, as Linux counts it."""

import contextlib
import os
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def waiting() -> Iterator[Callable[[], int]]:
    """A clock of the calling thread's waiting time in nanoseconds; always 0 off Linux.

    Reading it takes a microsecond. What a hypervisor takes away is not in it.
    """
    try:
        file = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
    except OSError:
        yield lambda: 0
        return

    def waited() -> int:
        # "time on a core, time waiting for one, turns" (Documentation/scheduler/sched-stats).
        fields = os.pread(file, 64, 0).split()
        return int(fields[1]) if len(fields) == 3 else 0

    try:
        yield waited
    finally:
        os.close(file)
