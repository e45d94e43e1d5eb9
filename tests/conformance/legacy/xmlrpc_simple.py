"""`xmlrpc.server.SimpleXMLRPCServer` with one function."""

import socket
from xmlrpc.server import SimpleXMLRPCRequestHandler, SimpleXMLRPCServer

from common import HOST, Copy, main, socketserver_copy


class Handler(SimpleXMLRPCRequestHandler):
    rpc_paths = ("/RPC2",)


class Server(SimpleXMLRPCServer):
    request_queue_size = 64

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()


def open_copy(index: int, port: int) -> Copy:
    server = Server((HOST, port), Handler, logRequests=False)
    server.register_introspection_functions()
    server.register_function(lambda what: f"{index} {what}", "serve")
    return socketserver_copy(server)


if __name__ == "__main__":
    main(open_copy)
