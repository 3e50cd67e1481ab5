"""An ASGI application on a port."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from tests.waiting import wait_until


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """Run an ASGI application on a free port; yields its address."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    # Its own configuration of logging closes the handlers that libraries have made, and absl's closes
    # the stream by which pytest captures what is printed.
    config = uvicorn.Config(
        app, log_config=None, log_level="critical", access_log=False, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    wait_until(lambda: server.started, every=0.005)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
