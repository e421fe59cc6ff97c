"""A frame a request: the floor under it, and several runs at once; part of `benchmarks/ingest.py`.

    python benchmarks/ingest_frames.py FILE        the floor's server: takes PUTs, stores each body in FILE

The floor is what a request costs that does nothing: the sidecar's client PUTs a body of a frame's size to an ASGI
application of a dozen lines in uvicorn, which stores it by one INSERT into a SQLite file and commits (WAL,
synchronous=FULL), as the service does. What the service takes beyond that is the codec, the detectors, the run after
them, three more rows, and HTTP's checks.
"""

import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ingest_peers import cpu
from lossguard.sidecar.client import CONTENT_TYPE, Accepted, Client
from lossguard.sidecar.connections import Connections
from lossguard.wire.chunk import Chunk, encode
from processes import service

ANSWER = b'{"duplicate":false}' + b" " * 220
"""As long as the service's."""


def at_once(runs: Sequence[Sequence[Chunk]], warm: int, database: str) -> dict[str, float]:
    """Several runs through the service, a thread each; the first `warm` chunks of each run are not counted."""
    with service(database) as (url, pid):
        client, failed = Client(url), list[object]()
        ready = threading.Barrier(len(runs) + 1)

        def send(chunks: Sequence[Chunk]) -> None:
            for chunk in chunks:
                outcome = client.put_chunk(chunk.id, encode(chunk))
                if not isinstance(outcome, Accepted):
                    failed.append(outcome)
                    return

        def go(chunks: Sequence[Chunk]) -> None:
            ready.wait()
            send(chunks)
            ready.wait()

        for chunks in runs:
            send(chunks[:warm])
        threads = [threading.Thread(target=go, args=(chunks[warm:],)) for chunks in runs]
        for thread in threads:
            thread.start()
        before, local = cpu(pid), time.process_time()
        ready.wait()
        ready.wait()
        server, local = cpu(pid) - before, time.process_time() - local
        for thread in threads:
            thread.join()
        client.close()
        if failed:
            raise RuntimeError(str(failed[0]))
    sent = [chunk.frames.stats.size for chunks in runs for chunk in chunks[warm:]]
    return {
        "points_per_cpu_second": sum(sent) / (server + local),
        "cpu_us_per_chunk": 1e6 * (server + local) / len(sent),
        "server_us_per_chunk": 1e6 * server / len(sent),
    }


def floor(chunks: Sequence[Chunk], warm: int, folder: Path) -> dict[str, float]:
    """Bodies as long as these chunks', through the floor's server."""
    bodies = [os.urandom(len(encode(chunk))) for chunk in chunks]
    command = [sys.executable, __file__, str(folder / f"floor-{os.urandom(4).hex()}.db")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        connections = Connections(process.stdout.readline().strip(), {})
        before, local = 0.0, 0.0
        for place, body in enumerate(bodies):
            if place == warm:
                before, local = cpu(process.pid), time.process_time()
            connections.put(f"/v1/projects/bench/runs/run/attempts/{'a' * 32}/chunks/{place}", body, CONTENT_TYPE)
        server, local = cpu(process.pid) - before, time.process_time() - local
        connections.close()
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()
    sent = [chunk.frames.stats.size for chunk in chunks[warm:]]
    return {
        "points_per_cpu_second": sum(sent) / (server + local),
        "cpu_us_per_chunk": 1e6 * (server + local) / len(sent),
        "server_us_per_chunk": 1e6 * server / len(sent),
    }


def serve(file: str) -> None:
    """The floor's server; prints its address, then serves until a signal."""
    import uvicorn

    database = sqlite3.connect(file, isolation_level=None)
    for line in ("PRAGMA page_size=8192", "PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL"):
        database.execute(line)
    database.execute("CREATE TABLE chunks (number INTEGER PRIMARY KEY, data BLOB NOT NULL)")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        parts, more = [], True
        while more:
            message = await receive()
            parts.append(message["body"])
            more = message["more_body"]
        database.execute("BEGIN IMMEDIATE")
        database.execute("INSERT INTO chunks (data) VALUES (?)", (b"".join(parts),))
        database.execute("COMMIT")
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(ANSWER)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": ANSWER})

    listener = socket.create_server(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    config = uvicorn.Config(app, lifespan="off", access_log=False, server_header=False, log_level="error")
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    serve(sys.argv[1])
