"""Calls that must not happen on a Flink operator's own thread.

In thread mode a TaskManager's operator threads have Python thread states of their own. A pybind11
extension that asks for the GIL there (importing onnxruntime 1.31 does) waits for ever for a lock its
own thread holds, and stops every other Python operator with it. On a plain `threading.Thread` it
works; once imported and loaded there, `InferenceSession.run` was called on operator threads without
trouble (docs/decisions/0002-thread-mode.md).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def on_plain_thread(call: Callable[[], T]) -> T:
    """The result of `call`, made on a plain thread; what it raises is raised here. Costs ~50 us."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="on-plain-thread", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
