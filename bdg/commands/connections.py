"""The connections of a web server: how long one may ask nothing, and how many a client may have. Knows no answer."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

MOST = 64
"""Of all clients; a request on one more is answered with 503."""
MOST_OF_ONE = MOST // 2
"""Of one address; one more is closed. The others have room whatever it does."""
IDLE_S = 15.0


class Connection(H11Protocol):
    """Closed where for IDLE_S, or at most twice that, nothing was asked and nobody took what was answered.

    uvicorn itself waits without end for the first request, for the rest of one, and for a client that does not read.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        mine = [each for each in self.connections if isinstance(each, Connection) and each.address == self.address]
        if len(mine) > MOST_OF_ONE:
            transport.abort()
        self.loop.call_later(IDLE_S, self.end_if_idle, None, 0)

    @property
    def address(self) -> str:
        return self.client[0] if self.client else ""

    def end_if_idle(self, newest: RequestResponseCycle | None, unread: int) -> None:
        """newest: the last request, unread: the bytes of answers that lay here, IDLE_S ago."""
        if self not in self.connections:
            return
        now = self.transport.get_write_buffer_size()
        answering = self.cycle is not None and not self.cycle.response_complete
        unread_all = now > 0 and now >= unread
        if self.cycle is newest and (unread_all or not answering):
            self.transport.abort()
        else:
            self.loop.call_later(IDLE_S, self.end_if_idle, self.cycle, now)
