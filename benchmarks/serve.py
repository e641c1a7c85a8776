"""The server under load, on loopback; results go to results/serve.json.

    python benchmarks/serve.py [--seconds 60] [--clients 32]

Each client asks for 50 words, and again as soon as it has them: in one answer, and as a stream of events. Words a second
stand beside those of `learn.generate` with a batch as large as there are clients, measured in turns in the same process.
The clients share the processor with the server; on a busy machine, OMP_NUM_THREADS=1 makes both sides steadier.
"""
import argparse
import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path

import common

warnings.filterwarnings("ignore")
N_WORDS, TURNS = 50, 4


def prompts(n: int) -> list: return [" ".join(["one", "two", "three", "four", "five"][:1+i % 5]) for i in range(n)]


def serve(n: int):
    "Measure `generate` of a default AWD_LSTM of random weights, serve it until interrupted, measure again, and so on."
    import uvicorn
    from generate import learners

    from rnn_fastai.ship.serve import make_app
    learn = learners()["ours"]

    def rate():
        times = common.in_turns(dict(generate=lambda: learn.generate(prompts(n), N_WORDS, seed=1, no_bar=True)), 3)
        return n*N_WORDS/statistics.median(times["generate"])
    for _ in range(2*TURNS):
        print(json.dumps(rate()), flush=True)
        server = uvicorn.Server(uvicorn.Config(make_app(learn), port=int(os.environ["PORT"]), log_level="warning"))
        with suppress(KeyboardInterrupt): server.run()
    print(json.dumps(rate()), flush=True)


async def post(reader, writer, body: dict) -> tuple:
    "Status and body of an answer, read to its end."
    data = json.dumps(body).encode()
    writer.write(b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                 b"Content-Length: %d\r\n\r\n" % len(data) + data)
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    status, length = int(head.split()[1]), head.partition("content-length: ")[2].partition("\r")[0]
    if length: return status, await reader.readexactly(int(length))
    parts = []
    while n := int(await reader.readline(), 16):
        parts.append((await reader.readexactly(n + 2))[:-2])
    await reader.readline()
    return status, b"".join(parts)


async def client(k: int, n: int, port: int, until: float, stream: bool, seen: list):
    "Ask until time is up; a row for each answer: seconds, whether it is right, words."
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.perf_counter() < until:
        start = time.perf_counter()
        status, body = await post(reader, writer, dict(prompt=prompts(n)[k], n_words=N_WORDS, seed=len(seen), stream=stream))
        if stream: body = body.rpartition(b"event: done\ndata: ")[2]
        words = len(json.loads(body)["texts"][0]["tokens"]) if status == 200 else 0
        seen.append((time.perf_counter() - start, status == 200 and words == N_WORDS, words))
    writer.close()


async def load(n: int, port: int, seconds: float, stream: bool, seen: list) -> float:
    "Have all clients ask for a while; gives how long it took."
    start = time.perf_counter()
    await asyncio.gather(*(client(k, n, port, start + seconds, stream, seen) for k in range(n)))
    return time.perf_counter() - start


def wait_for(port: int):
    "Wait until the server listens."
    while True:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)): return
        time.sleep(0.05)


def row(what: str, seen: list, took: float, rates: list) -> dict:
    "What all clients saw."
    times = sorted(s[0] for s in seen)
    rate = sum(words for *_, words in seen)/took
    res = dict(what=what, answers=len(seen), errors=sum(not ok for _, ok, _ in seen), p50=statistics.median(times),
               p99=times[int(len(times)*0.99)], words_per_second=rate, of_generate=rate/statistics.mean(rates))
    print(res, flush=True)
    return res


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--seconds", type=float, default=60)
    args.add_argument("--clients", type=int, default=32)
    args.add_argument("--port", type=int, default=8731)
    args.add_argument("--server", action="store_true", help=argparse.SUPPRESS)
    args = args.parse_args()
    if args.server: return serve(args.clients)
    before = Path("/proc/loadavg").read_text().split()[0]
    server = subprocess.Popen([sys.executable, __file__, "--server", "--clients", str(args.clients)], text=True,
                              stdout=subprocess.PIPE, env={**os.environ, "PORT": str(args.port)})
    seen, took, rates = ([], []), [0, 0], [json.loads(server.stdout.readline())]
    for turn in range(2*TURNS):
        wait_for(args.port)
        stream = turn % 2
        took[stream] += asyncio.run(load(args.clients, args.port, args.seconds/TURNS, bool(stream), seen[stream]))
        server.send_signal(signal.SIGINT)
        rates.append(json.loads(server.stdout.readline()))
    server.wait()
    names = "whole answers", "streams"
    rows = [row(f"{args.clients} clients, {args.seconds:g} s, {names[k]}", seen[k], took[k], rates) for k in (0, 1)]
    common.save("serve", rows, generate_words_per_second=rates, threads=os.environ.get("OMP_NUM_THREADS"), load_before=before,
                load_after=Path("/proc/loadavg").read_text().split()[0])


if __name__ == "__main__": main()
