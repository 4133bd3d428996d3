"""The load: two processes of coroutines, started together, that count what they do and what it costs them."""

import asyncio
import ctypes
import multiprocessing
import time
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from typing import TYPE_CHECKING, Any

import uvloop

from benchmarks.queue.clients import Target, new_mark, now
from benchmarks.queue.errors import BenchmarkFailed

if TYPE_CHECKING:
    from multiprocessing.queues import Queue
    from multiprocessing.sharedctypes import Synchronized

CLIENTS = 8
PROCESSES = 2
START_SECONDS = 60.0
PHASE_SECONDS = 300.0
"""A phase that takes longer has failed."""
AHEAD = 0.2
"""Seconds before the first task of a paced load, for clients to connect."""


@dataclass(frozen=True, slots=True)
class Role:
    """What one process of a phase does.

    Attributes:
        clients: How many side by side.
        produce: Tasks to hand over; 0: it takes tasks instead.
        size: Tasks that a client takes at once.
        wait: Whether more tasks may come while none is there.
    """

    clients: int
    produce: int = 0
    size: int = 0
    wait: bool = False


@dataclass(frozen=True, slots=True)
class Measured:
    """What a phase came to.

    Attributes:
        tasks: How many tasks.
        seconds: From the first client's start to the last one's end.
        client_cpu: Seconds of CPU that the clients used.
    """

    tasks: int
    seconds: float
    client_cpu: float

    @property
    def rate(self) -> float:
        """Tasks a second."""
        return self.tasks / self.seconds


class Shared:
    """Counts tasks that were reported, over all processes of a phase (a ``Stop``)."""

    def __init__(self, counter: "Synchronized[int]", enough: int) -> None:
        self._counter = counter
        self._enough = enough

    def done(self, number: int) -> None:
        """Count tasks that were reported."""
        with self._counter.get_lock():
            self._counter.value += number

    @property
    def reached(self) -> bool:
        """Whether enough are done."""
        return self._counter.value >= self._enough


def registering(tasks: int) -> list[Role]:
    """All clients register."""
    return [Role(CLIENTS // PROCESSES, produce=tasks // PROCESSES)] * PROCESSES


def working(size: int) -> list[Role]:
    """All clients claim and report what is there."""
    return [Role(CLIENTS // PROCESSES, size=size)] * PROCESSES


def cycling(tasks: int, size: int) -> list[Role]:
    """One half of the clients registers while the other claims and reports."""
    return [Role(CLIENTS // 2, produce=tasks), Role(CLIENTS // 2, size=size, wait=True)]


def run(target: Target, roles: list[Role], tasks: int) -> Measured:
    """Have processes play their roles until ``tasks`` tasks are through.

    Raises:
        BenchmarkFailed: A process failed, or it took too long, or tasks are missing.
    """
    context = multiprocessing.get_context("spawn")
    counter = context.Value(ctypes.c_long, 0)
    barrier = context.Barrier(len(roles))
    results: Queue[tuple[float, float, float]] = context.Queue()
    processes = [
        context.Process(target=_play, args=(target, role, tasks, counter, barrier, results))
        for role in roles
    ]
    for process in processes:
        process.start()
    try:
        deadline = time.monotonic() + PHASE_SECONDS
        for process in processes:
            while process.exitcode is None and time.monotonic() < deadline:
                process.join(0.05)
                if any(each.exitcode not in {None, 0} for each in processes):
                    raise BenchmarkFailed(f"a client of {target.kind} failed; see above")
        if any(process.exitcode is None for process in processes):
            raise BenchmarkFailed(
                f"{target.kind}: {counter.value} of {tasks} tasks after {PHASE_SECONDS} s"
            )
    finally:
        for process in processes:
            process.terminate()
            process.join()
    if not all(role.produce for role in roles) and counter.value != tasks:
        raise BenchmarkFailed(f"{target.kind}: {counter.value} tasks were reported, not {tasks}")
    told = [results.get(timeout=5) for _ in roles]
    seconds = max(end for _, end, _ in told) - min(begin for begin, _, _ in told)
    return Measured(tasks, seconds, sum(cpu for _, _, cpu in told))


def _play(
    target: Target,
    role: Role,
    tasks: int,
    counter: "Synchronized[int]",
    barrier: Barrier,
    results: "Queue[tuple[float, float, float]]",
) -> None:
    """Play a role, in a process of its own."""
    client = target.client()
    stop = Shared(counter, tasks)

    async def play() -> None:
        barrier.wait(START_SECONDS)
        begin, used = now(), time.process_time()
        if role.produce:
            await client.produce(role.clients, role.produce, new_mark)
        else:
            await client.consume(role.clients, role.size, role.wait, stop, lambda _mark: None)
        results.put((begin, now(), time.process_time() - used))

    uvloop.run(play())


def paced(target: Target, rate: float, seconds: float, size: int) -> list[float]:
    """Register at a steady rate while agents wait; return each task's seconds until an agent had it, sorted.

    A task's time runs from the moment at which its registration was due to be sent, whether or not it was held up by
    the one before, to the claim's answer: the registration's durable commit is in it.

    Raises:
        BenchmarkFailed: Tasks are missing.
    """
    return uvloop.run(_paced(target, rate, seconds, size))


async def _paced(target: Target, rate: float, seconds: float, size: int) -> list[float]:
    tasks = int(rate * seconds)
    due: dict[str, float] = {}
    taken: dict[str, float] = {}
    begin = now() + AHEAD

    async def mark() -> str:
        made, at = await new_mark(), begin + len(due) / rate
        due[made] = at
        await asyncio.sleep(max(0.0, at - now()))
        return made

    def seen(made: str) -> None:
        taken[made] = now()

    client: Any = target.client()
    counter = multiprocessing.get_context("spawn").Value(ctypes.c_long, 0)
    async with asyncio.timeout(seconds + PHASE_SECONDS):
        await asyncio.gather(
            client.produce(CLIENTS // 2, tasks, mark),
            client.consume(CLIENTS // 2, size, True, Shared(counter, tasks), seen),
        )
    if taken.keys() != due.keys():
        raise BenchmarkFailed(f"{target.kind}: {len(taken)} of {len(due)} tasks were claimed")
    return sorted(taken[made] - at for made, at in due.items())
