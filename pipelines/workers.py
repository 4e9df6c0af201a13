"""Local worker processes that survive what they run: a crash or a hang costs one item, not the job."""

import multiprocessing
import time
import traceback
from multiprocessing.connection import wait

from pipelines.schema import DataError

READY = "ready"


class Failure:
    """Why an item has no result: `code` is crash, timeout or error."""

    def __init__(self, code, detail):
        self.code, self.detail = code, detail


def run(function, items, workers=2, timeout_seconds=None):
    """Yields (item, result or Failure) as items finish; workers=0 runs in this process, without a time limit.

    A DataError stops everything and is raised here (a full disk is nobody's item); what is wrong with one item only,
    `function` has to return. Items and results are pickled; `function` is a module-level function.
    """
    if workers < 1:
        for item in items:
            yield item, call(function, item)
        return
    items, pool = iter(items), []
    try:
        for item in items:
            pool.append(Worker(function))
            pool[-1].give(item)
            if len(pool) == workers:
                break
        while pool:
            for worker in ready(pool, timeout_seconds):
                item, result = worker.item, worker.take(timeout_seconds)
                following = next(items, None)
                if following is None:
                    worker.stop()
                    pool.remove(worker)
                else:
                    if not worker.process.is_alive():
                        pool[pool.index(worker)] = worker = Worker(function)
                    worker.give(following)
                yield item, result
    finally:
        for worker in pool:
            worker.kill()


def call(function, item):
    try:
        return function(item)
    except DataError:
        raise
    except Exception as error:
        return Failure("error", f"{type(error).__name__}: {error} ({last_line(error)})")


def last_line(error):
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.name}, line {frame.lineno}"


def ready(pool, timeout_seconds):
    """Workers with a result, a dead process, or no time left."""
    starts = [worker.started for worker in pool if worker.started is not None]
    left = None
    if timeout_seconds is not None and starts:
        left = max(0.0, min(starts) + timeout_seconds - time.monotonic())
    by_handle = {worker.pipe: worker for worker in pool}
    done = [by_handle[handle] for handle in wait(list(by_handle), left)]
    done = [worker for worker in done if worker.started is not None or not worker.greet()]
    late = [w for w in pool if timeout_seconds is not None and w.age() >= timeout_seconds]
    return list(dict.fromkeys([*done, *late]))


class Worker:
    """One process and the pipe to it. forkserver: children start small and inherit neither threads nor decoders."""

    def __init__(self, function):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([function.__module__])
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, function), daemon=True)
        self.process.start()
        other.close()  # so that a dead child reads as end of file
        self.item = self.started = None  # started: when it began with the item; None while it imports
        self.ready = False

    def give(self, item):
        self.item = item
        self.started = time.monotonic() if self.ready else None
        self.pipe.send(item)

    def greet(self):
        """Takes the word that a new process has started: its time for the item begins. False if it died instead."""
        try:
            self.ready = self.pipe.recv() == READY
        except (EOFError, OSError):
            return False
        self.started = time.monotonic()
        return True

    def age(self):
        """Seconds since it began with its item."""
        return 0.0 if self.started is None else time.monotonic() - self.started

    def take(self, timeout_seconds):
        """Result of the item given; kills the process if it is late."""
        try:
            if not self.pipe.poll():
                self.kill()
                return Failure("timeout", f"not done after {timeout_seconds:g} s")
            result = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            return Failure("crash", f"the worker process died (exit code {self.process.exitcode})")
        if isinstance(result, DataError):
            raise result
        return result

    def stop(self):
        if self.process.is_alive():
            self.pipe.send(None)
            self.process.join()
        self.pipe.close()

    def kill(self):
        self.process.kill()
        self.process.join()


def serve(pipe, function):
    """Loop of a worker; ends on None, or when the parent is gone."""
    pipe.send(READY)
    while True:
        try:
            item = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        if item is None:
            return
        try:
            result = call(function, item)
        except DataError as error:
            result = DataError(str(error))
        pipe.send(result)
