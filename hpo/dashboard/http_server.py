"""An HTTP server with one thread per connection, which slow or idle connections cannot block."""

import resource
import socket
import socketserver
import sys
import threading
import time
import wsgiref.simple_server
from contextlib import suppress
from typing import Any

HEAD_S = 10.0  # seconds within which a client must send the head of its request
IDLE_S = 60.0  # seconds after which a connection without any transfer is closed
CLOSE_S = 1.0  # seconds that the server waits for a connection to be closed before it accepts the next one
MAX_CONNECTIONS = 256  # connections at the same time, fewer if the process may not open enough files


class ThreadingServer(socketserver.ThreadingMixIn, wsgiref.simple_server.WSGIServer):
    """A server with one thread per connection, so that a slow request does not block others.

    If there are too many connections, the oldest one that has not sent its request yet is closed.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *arguments: Any, **options: Any) -> None:
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._max_connections = MAX_CONNECTIONS if files < 0 else max(8, min(MAX_CONNECTIONS, files // 4))
        self._silent: dict[Any, float] = {}  # connections without a complete request head -> when they were accepted
        self._n_connections = 0
        self._lock = threading.Condition()  # notified when a connection is closed
        super().__init__(*arguments, **options)

    def server_bind(self) -> None:
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        socketserver.TCPServer.server_bind(self)  # the parent class would look up the host's name, which can be slow
        self.server_port = self.socket.getsockname()[1]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._n_connections += 1
            self._silent[request] = time.monotonic()
            too_many = self._n_connections > self._max_connections
            oldest = next(iter(self._silent)) if too_many else None
        if oldest is not None:
            _hang_up(oldest)
        super().process_request(request, client_address)
        if too_many:  # otherwise connections that arrive faster than their threads run take all files of the process
            with self._lock:
                self._lock.wait_for(lambda: self._n_connections <= self._max_connections, CLOSE_S)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._n_connections -= 1
                self._silent.pop(request, None)
                self._lock.notify()

    def head_received(self, request: Any) -> None:
        """Note that a client has sent the head of its request."""
        with self._lock:
            self._silent.pop(request, None)

    def service_actions(self) -> None:
        """Close the connections whose clients take too long. The server calls this method twice per second."""
        with self._lock:
            late = [request for request, since in self._silent.items() if time.monotonic() - since > HEAD_S]
        for request in late:
            _hang_up(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # OSError: the client has closed the connection
            super().handle_error(request, client_address)


class IPv6Server(ThreadingServer):
    """The server of an IPv6 address."""

    address_family = socket.AF_INET6


class QuietRequestHandler(wsgiref.simple_server.WSGIRequestHandler):
    """A request handler that prints no log lines, which would contain the token."""

    timeout = IDLE_S

    def parse_request(self) -> bool:
        complete = super().parse_request()
        if isinstance(self.server, ThreadingServer):
            self.server.head_received(self.connection)
        return complete

    def log_message(self, format: str, *args: Any) -> None: ...


def _hang_up(request: Any) -> None:
    """End a connection. Its thread, which waits for data, then closes it."""
    with suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)
