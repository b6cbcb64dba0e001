"""llama.cpp's own HTTP server, as the wheel of xllamacpp brings it, at its defaults but for what is asked: a process of its own.

python benchmarks/_peer_llamacpp_server.py FILE SLOTS POSITIONS THREADS
"""

from __future__ import annotations

import signal
import sys

import xllamacpp


def main(file: str, slots: int, positions: int, threads: int) -> None:
    params = xllamacpp.CommonParams()
    params.model.path = file
    params.hostnames, params.port = ["127.0.0.1"], 0
    params.n_parallel, params.n_ctx = slots, slots * positions
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cpuparams.poll = params.cpuparams_batch.poll = 0  # others compute here too: waiting threads must not spin
    params.verbosity = 0
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    main(sys.argv[1], *map(int, sys.argv[2:]))
