"""Two servers compared while both are up: the same requests to either, in pairs of random order, and their ratio.

Whatever else runs on the machine disturbs both halves of a pair alike, so quotients hold where medians of separate runs
do not. What a server does after its answer may fall into the other's half: whoever wants to know what a request takes
in all looks at the processor time, too.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from support import Connection

IDLE_S = 2.0
"""A connection that has rested longer is opened anew: servers close idle ones, BentoML's after five seconds."""

RESAMPLES = 2_000

Pair = dict[str, list[float]]
"""Milliseconds of each server's requests, by its name: one request each, or those of a block of clients."""


@dataclass(frozen=True)
class Question:
    """Requests of one kind.

    Attributes:
        path: Where they go.
        bodies: Their JSON, taken in turn; both servers get the same ones.
    """

    path: str
    bodies: Sequence[bytes]

    def body(self, number: int) -> bytes:
        """Of the ``number``-th request."""
        return self.bodies[number % len(self.bodies)]


@dataclass(frozen=True)
class Ratio:
    """A quotient of latencies with its 95% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


async def in_pairs(
    ports: Mapping[str, int], question: Question, count: int, *, clients: int = 1, each: int = 1, seed: int = 0
) -> list[Pair]:
    """``count`` pairs: ``clients`` at once send ``each`` requests to one server, then the same ones to the other.

    Which server is first is drawn for every pair. Only one of them is asked at a time: with clients on both at once,
    each would be measured under the other's load, and their quotient drawn towards 1.
    """
    random = Random(seed)
    crowds = {name: _Crowd(port, clients) for name, port in ports.items()}
    found: list[Pair] = []
    for number in range(count):
        pair: Pair = {}
        for name in random.sample(list(ports), len(ports)):
            pair[name] = await crowds[name].ask(question, number * clients * each, each)
        found.append(pair)
    for crowd in crowds.values():
        crowd.leave()
    return found


class _Crowd:
    """Clients of one server, each with a connection of its own."""

    def __init__(self, port: int, clients: int) -> None:
        self._port, self._clients = port, clients
        self._connections: list[Connection] = []
        self._rests_since = 0.0

    async def ask(self, question: Question, first: int, each: int) -> list[float]:
        """Milliseconds of ``each`` requests of every client, from the ``first`` body on."""
        if not self._connections or time.monotonic() - self._rests_since > IDLE_S:
            self.leave()
            self._connections = [await Connection.open(self._port) for _ in range(self._clients)]

        async def one(client: int, connection: Connection) -> list[float]:
            start = first + client * each
            return [await connection.post(question.path, question.body(start + step)) for step in range(each)]

        times = await asyncio.gather(*(one(*numbered) for numbered in enumerate(self._connections)))
        self._rests_since = time.monotonic()
        return [taken for client in times for taken in client]

    def leave(self) -> None:
        """Closes the connections."""
        for connection in self._connections:
            connection.writer.close()
        self._connections = []


def median_ms(pairs: Sequence[Pair], name: str) -> float:
    """Median over all requests to one server."""
    return statistics.median(taken for pair in pairs for taken in pair[name])


def ratio(pairs: Sequence[Pair], of: str, to: str) -> Ratio:
    """How many times longer the server ``of`` took than ``to``: the median over the pairs of their medians' quotient.

    The interval is the percentile bootstrap's over the pairs.
    """
    logs = np.log([statistics.median(pair[of]) / statistics.median(pair[to]) for pair in pairs])
    generator = np.random.default_rng(0)
    resampled = np.median(generator.choice(logs, (RESAMPLES, len(logs))), axis=1)
    low, high = np.quantile(resampled, [0.025, 0.975])
    value, low, high = (round(float(np.exp(one)), 4) for one in (np.median(logs), low, high))
    return Ratio(value, low, high)
