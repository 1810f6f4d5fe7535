"""Combine the items of concurrent requests into batches. One thread runs them."""

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any


Run = Callable[[list[Any]], Any]


class BusyError(RuntimeError):
    """Raised if more items wait than the limit allows. The caller can try again later."""


@dataclass
class _Item:
    kind: Hashable  # items of one kind can share a batch
    run: Run
    value: Any
    result: Future[Any] = field(default_factory=Future)


class Batcher:
    """Run functions of batches in one thread. The items of a batch come from any number of threads.

    While a batch runs, the next items wait. Then the batch of the oldest item runs, with all waiting items of its kind
    up to the batch size. If a batch fails, its items run again one by one, so that no item fails because of another.

    Args:
        limits: Largest number of waiting items of each name.
        batch_size: Largest number of items of a batch.
        wait: Seconds to wait for more items if a batch is not full.
    """

    def __init__(self, limits: Mapping[str, int], *, batch_size: int, wait: float = 0.003):
        self.batch_size = batch_size
        self._limits = dict(limits)
        self._waiting = dict.fromkeys(limits, 0)
        self._wait = wait
        self._items: deque[tuple[str, _Item]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Return the number of waiting items."""
        return len(self._items)

    def submit(self, name: str, kind: Hashable, run: Run, values: Sequence[Any]) -> list[Future[Any]]:
        """Add items, and return the future of each result.

        Args:
            name: Name of the limit.
            kind: Items with the same name and kind can share a batch.
            run: Function of a batch. It takes a list of values, and returns a sequence of results.
            values: The items.

        Raises:
            BusyError: If more items would wait than the limit allows, or the batcher is closed. No item is added.
        """
        items = [_Item((name, kind), run, value) for value in values]
        with self._changed:
            if self._closed:
                raise BusyError("The server is stopping.")
            if self._waiting[name] + len(items) > self._limits[name]:
                raise BusyError("The server is busy. Try again later.")
            self._waiting[name] += len(items)
            self._items.extend((name, item) for item in items)
            self._changed.notify_all()
        return [item.result for item in items]

    def close(self) -> None:
        """Cancel the waiting items, and end the thread when its batch is done."""
        with self._changed:
            self._closed = True
            for _, item in self._items:
                item.result.cancel()
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next_batch():
            batch = [item for item in batch if item.result.set_running_or_notify_cancel()]
            if batch:
                _run(batch)

    def _next_batch(self) -> list[_Item]:
        """Wait for items, and return those of the next batch, or none if the batcher is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._closed)
            end = time.monotonic() + self._wait
            while not self._closed and self._is_incomplete() and (left := end - time.monotonic()) > 0:
                self._changed.wait(left)
            if self._closed:
                return []
            kind = self._items[0][1].kind
            batch: list[_Item] = []
            others: deque[tuple[str, _Item]] = deque()
            for name, item in self._items:
                if item.kind == kind and len(batch) < self.batch_size:
                    batch.append(item)
                    self._waiting[name] -= 1
                else:
                    others.append((name, item))
            self._items = others
            return batch

    def _is_incomplete(self) -> bool:
        kind = self._items[0][1].kind
        return len(self._items) < self.batch_size and all(item.kind == kind for _, item in self._items)


def _run(batch: list[_Item]) -> None:
    try:
        results = list(zip(batch, batch[0].run([item.value for item in batch]), strict=True))
    except Exception as error:  # the thread must survive every error, and the caller gets it
        if len(batch) == 1:
            batch[0].result.set_exception(error)
        else:
            for item in batch:
                _run([item])
        return
    for item, result in results:
        item.result.set_result(result)
