"""More processes that speak HTTP, before the one that has the models.

For a small model nine tenths of a step over HTTP are sockets, HTTP and JSON. `CAROUSEL_WORKERS=N` gives that part to N
processes, and leaves sequences, engine and store in one, so that batches stay whole.

The engine's process listens and answers, as it does alone. A connection that asks for plain steps again and again is
handed to a worker, the open socket and what was read of it; there its calls are read, checked against the model's spec
and sent on as records of `carousel.v1.binary`, all those of a moment in one frame, and their answers written as JSON.
Whatever is no plain step that succeeds goes back, with the connection and from its first byte, to the engine's
process. So a worker decides nothing, and each verdict has one place.

    client ===> engine's process  -- channel: connections, both ways -->  worker
                                  <-- link: frames of steps, answers ---

`channel.py` carries open sockets; `pool.py` and `link.py` are the side of the engine's process; `worker.py`, `front.py`
and `steps_stream.py` that of a worker.
"""
