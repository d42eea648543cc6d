#!/usr/bin/env python3
"""A slow way to a server on this machine: slow.py PORT SERVER_PORT BYTES_A_SECOND LOG. Each direction is as slow as that.

The log gets a line for each connection that ends: bytes to the server, bytes from it."""
import socket
import sys
import threading
import time

port, server, rate, log = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]


def pour(source, to, counts, which):
    try:
        while True:
            data = source.recv(16384)
            if not data:
                break
            to.sendall(data)
            counts[which] += len(data)
            time.sleep(len(data) / rate)
    except OSError:
        pass
    for end in (source, to):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def serve(client):
    with client, socket.create_connection(("127.0.0.1", server)) as upstream:
        counts = [0, 0]
        other = threading.Thread(target=pour, args=(upstream, client, counts, 1))
        other.start()
        pour(client, upstream, counts, 0)
        other.join()
        with open(log, "a") as out:
            out.write(f"{counts[0]} {counts[1]}\n")


with socket.create_server(("127.0.0.1", port)) as listener:
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
