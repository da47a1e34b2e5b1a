"""Decode the next images in threads while the GPU works on this one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Loads items ahead of a caller that asks for them in the order of ``ids``.

    Asking out of order works too, it only wastes what was loaded ahead. An error of ``load`` is raised
    where its own item is asked for.

    Args:
        ids: Expected order.
        load: Called in a thread.
        ahead: Items loaded in advance; 0 loads in the calling thread.
    """

    def __init__(self, ids: Sequence[str], load: Callable[[str], T], ahead: int) -> None:
        self._ids, self._load, self._ahead = ids, load, ahead
        self._position = {item: i for i, item in enumerate(ids)}
        self._pool = ThreadPoolExecutor(ahead, "prefetch") if ahead else None
        self._pending: dict[str, Future[T]] = {}

    def get(self, item: str) -> T:
        """The item, waiting for it if need be; starts loading those that follow."""
        if self._pool is None:
            return self._load(item)
        future = self._pending.pop(item, None) or self._pool.submit(self._load, item)
        start = self._position[item] + 1
        following = self._ids[start : start + self._ahead]
        for stale in set(self._pending) - set(following):
            self._pending.pop(stale).cancel()
        for name in following:
            if name not in self._pending:
                self._pending[name] = self._pool.submit(self._load, name)
        return future.result()
