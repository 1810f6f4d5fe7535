"""Work that threads do ahead of the model."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from typing import TypeVar


_T = TypeVar("_T")


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
