"""What is there when a job has opened is kept out of Python's garbage collection.

One pass over all that a TaskManager's Python holds (modules, contracts, compiled policies, clients) takes 200 to 280 ms,
in which no operator of it runs; with 300 calls of models in flight there was one every two seconds
(docs/decisions/0020-calls-as-state.md).
"""

from __future__ import annotations

import gc
import time

_EVERY_S = 60.0
_collected_at_s: float | None = None


def settle() -> None:
    """Called at the end of `open` by the operators that hold much: from now on only what is made later is looked at.

    Where a job starts again in the same process, garbage of its last run goes first, at most once a minute.
    """
    global _collected_at_s
    now_s = time.monotonic()
    if _collected_at_s is None:
        _collected_at_s = now_s
    elif now_s - _collected_at_s > _EVERY_S:
        _collected_at_s = now_s
        gc.unfreeze()
        gc.collect()
    gc.freeze()
