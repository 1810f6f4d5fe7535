"""Work that threads do ahead of the model."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar


_T = TypeVar("_T")
_Item = TypeVar("_Item")


def results_in_order(futures: Iterable[Future[_T]], ahead: int) -> Iterator[_T]:
    """Yield the results of futures in order.

    At most `ahead` results wait for the caller. If `futures` is a generator, it submits its tasks one by one as the
    results are used.
    """
    waiting: deque[Future[_T]] = deque()
    for future in futures:
        waiting.append(future)
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def prepared_batches(
    prepare: Callable[[list[_Item]], _T], items: Iterator[_Item], batch_size: int, workers: int
) -> Iterator[_T]:
    """Yield `prepare` of each batch of items in order. Threads call it ahead of the caller."""
    batches = iter(lambda: list(islice(items, batch_size)), [])
    threads = ThreadPoolExecutor(max_workers=workers)
    try:
        yield from results_in_order((threads.submit(prepare, batch) for batch in batches), workers)
    finally:
        threads.shutdown(cancel_futures=True)
