"""A worker process: does one job after another, under a memory limit, and dies with its parent.

    python -m quorepo.storage.worker <process id of the parent>

Owns the process: its limits, its pipes, and what becomes of an exception. Frames (frames.py) come
in on standard input and go out on what was standard output:

    in     {"limits": {…}}                                once, first
    out    {"kind": "ready"}
    in     {"job": name, "arguments": {…}}
    out    {"kind": "progress", "message": "…"}            any number
    out    {"kind": "result", "result": {…}, "retire": false}
    out    {"kind": "error", "class": "CorruptPack", "message": …, "next_step": …, "metadata": {…},
            "retire": false}

A worker that says "retire" ends by itself: its memory is used up. Must not know what a job does
(jobs.py). Whatever a hostile pack makes happen here ends in an error frame or in the death of
this process, and both are a clean refusal of that one job (worker_pool.py).
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import resource
import signal
import sys
from typing import IO, Any, Final

from quorepo.storage.errors import CorruptPack, FatalError, LimitExceeded, QuorepoError
from quorepo.storage.frames import encode_frame, read_frame
from quorepo.storage.jobs import preload, run_job
from quorepo.storage.limits import StorageLimits
from quorepo.storage.logs import configure_logging
from quorepo.storage.packs import configure_process_cache

__all__ = ["EXIT_OUT_OF_MEMORY", "INTERNAL_ERROR", "main", "out_of_memory"]

EXIT_OUT_OF_MEMORY: Final = 77
INTERNAL_ERROR: Final = "InternalError"  # the class name of what is no QuorepoError

_NICE: Final = 10
_PR_SET_PDEATHSIG: Final = 1

logger = logging.getLogger(__name__)


def main() -> int:
    """Serves until standard input ends; returns the exit code."""
    _die_with_parent(int(sys.argv[1]))
    configure_logging("worker", level=logging.WARNING)
    requests, answers = _take_over_pipes()
    first = read_frame(requests)
    if first is None:
        return 0
    limits = StorageLimits.model_validate(first["limits"])
    _apply_limits(limits)
    configure_process_cache(limits.open_packs_max, limits.worker_cache_bytes_max)
    preload()
    # What was imported lives as long as the process: no collection needs to look at it again.
    gc.freeze()
    _send(answers, {"kind": "ready"})
    try:
        return _serve(requests, answers, limits)
    except MemoryError:
        return EXIT_OUT_OF_MEMORY


def _serve(requests: IO[bytes], answers: IO[bytes], limits: StorageLimits) -> int:
    while (request := read_frame(requests)) is not None:
        answer = _answer(request, limits, answers)
        _send(answers, answer)
        if answer["retire"]:
            break
    return 0


def out_of_memory(job: str) -> QuorepoError:
    """The error for a job that needed more memory than a worker may have."""
    limit = "limits.worker_memory_bytes_max"
    if job == "ingest":
        return CorruptPack(f"pack needs more memory than {limit}", limit=limit)
    return LimitExceeded(f"job {job!r} needs more memory than {limit}", limit=limit)


def _answer(request: dict[str, Any], limits: StorageLimits, answers: IO[bytes]) -> dict[str, Any]:
    """Does one job; returns the frame to send."""
    job = str(request["job"])

    def progress(message: str) -> None:
        _send(answers, {"kind": "progress", "message": message})

    try:
        result = run_job(job, request["arguments"], limits, progress)
        retire = _data_bytes() > limits.worker_memory_bytes_max // 2
        return {"kind": "result", "result": result, "retire": retire}
    except QuorepoError as error:
        return _error_frame(error)
    except MemoryError:
        # What filled the memory may still be referenced from somewhere: start afresh.
        return _error_frame(out_of_memory(job), retire=True)
    except FatalError:
        raise
    except BaseException as error:  # noqa: BLE001  whatever it was, it ends this job only
        return _unexpected(job, error)


def _unexpected(job: str, error: BaseException) -> dict[str, Any]:
    """The frame for an exception that no job should let through."""
    logger.error("job failed", exc_info=error, extra={"fields": {"job": job}})
    if type(error).__name__ == "PanicException" and job == "ingest":
        # pyo3's, derived from BaseException: native code gave up on what the pack holds.
        return _error_frame(CorruptPack("pack is corrupted (its deltas cannot be decoded)"))
    return {
        "kind": "error",
        "class": INTERNAL_ERROR,
        "message": f"{type(error).__name__}: {error}",
        "next_step": "",
        "metadata": {},
        "retire": False,
    }


def _error_frame(error: QuorepoError, *, retire: bool = False) -> dict[str, Any]:
    return {
        "kind": "error",
        "class": type(error).__name__,
        "message": error.message,
        "next_step": error.next_step,
        "metadata": error.metadata,
        "retire": retire,
    }


def _send(answers: IO[bytes], frame: dict[str, Any]) -> None:
    answers.write(encode_frame(frame))
    answers.flush()


def _take_over_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """The two pipes, moved away from 0 and 1: a stray print must not end up between frames."""
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, answers


def _die_with_parent(parent: int) -> None:
    """SIGKILL for this process when its parent ends, even by kill -9.

    The kernel sends it when the *thread* that started this process ends: start workers from a
    thread that lives as long as the process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to handle
    prctl = getattr(ctypes.CDLL(None, use_errno=True), "prctl", None)
    if prctl is not None and prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        os._exit(0)


def _apply_limits(limits: StorageLimits) -> None:
    os.nice(_NICE)
    # Not RLIMIT_AS: that would refuse to map a pack of 2 GiB.
    _set_limit(resource.RLIMIT_DATA, limits.worker_memory_bytes_max)
    _set_limit(resource.RLIMIT_CORE, 0)
    _, files_max = resource.getrlimit(resource.RLIMIT_NOFILE)
    _set_limit(resource.RLIMIT_NOFILE, files_max)


def _set_limit(which: int, value: int) -> None:
    _, hard = resource.getrlimit(which)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(which, (value, hard))


def _data_bytes() -> int:
    """Private memory of this process as RLIMIT_DATA counts it; 0 where /proc does not tell."""
    try:
        with open("/proc/self/status", "rb") as file:
            for line in file:
                if line.startswith(b"VmData:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        logger.warning("cannot read /proc/self/status")
    return 0


if __name__ == "__main__":
    sys.exit(main())
