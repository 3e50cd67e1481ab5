"""Who answers for a model's name, looked up once and remembered: most questions cost no query, and no thread.

What is remembered is forgotten as soon as Postgres tells that a model, an alias or a device has changed, in
this process at once after its own changes. While nobody listens to Postgres nothing is remembered, and
nothing for longer than `KEPT_SECONDS`: a lease that lapses, say, is told by nobody.
"""

import time
from collections.abc import Awaitable, Callable, Hashable

from serving.backends.target import Target

KEPT_SECONDS = 5.0
MOST = 1024


class Destinations:
    """Those of one process.

    Args:
        is_told: whether this process hears of changes now.
        clock: in seconds, from any beginning.
    """

    def __init__(self, is_told: Callable[[], bool], clock: Callable[[], float] = time.monotonic) -> None:
        self._is_told, self._clock = is_told, clock
        self._kept: dict[Hashable, tuple[float, Target]] = {}

    async def of(self, name: Hashable, look: Callable[[], Awaitable[Target]]) -> Target:
        """The target of a name; errors of `look` are remembered by nobody.

        Args:
            name: of whatever decides the answer, the caller's project among it.
        """
        # `forget` puts another in its place: what was looked up before a change is kept where nobody looks.
        kept = self._kept
        until, target = kept.get(name, (0.0, None))
        asked_at = self._clock()
        if target is not None and asked_at < until:
            return target
        target = await look()
        if self._is_told():
            kept.pop(name, None)
            if len(kept) >= MOST:
                del kept[next(iter(kept))]
            kept[name] = (asked_at + KEPT_SECONDS, target)
        return target

    def forget(self, _: object = None) -> None:
        """Look everything up anew."""
        self._kept = {}
