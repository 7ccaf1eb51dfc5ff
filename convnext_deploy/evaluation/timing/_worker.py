"""The program of an isolated process: `worker_process` starts it, gives it one job, and reads one line of JSON."""

import base64
import json
import os
import pickle
import signal
import sys
import threading
import time
from typing import Any

MARK = "convnext-deploy timing: "


def main() -> None:
    """Do the job that standard input holds and write its result, whatever libraries print meanwhile."""
    results = os.dup(1)
    os.dup2(2, 1)
    job = sys.stdin.readline()
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    try:
        found = _measure(pickle.loads(base64.b64decode(job)))
    except BaseException as error:
        found = _describe(error)
    os.write(results, f"\n{MARK}{json.dumps(found)}\n".encode())
    # at once: the thread still reads, and libraries with threads of their own sometimes crash when they are taken down in order
    os._exit(0)


def _end_with_the_parent() -> None:
    """End this process, and all that it started, when the other end of standard input is closed."""
    while os.read(0, 1):
        pass
    if hasattr(os, "killpg"):
        os.killpg(os.getpgid(0), signal.SIGKILL)
    os._exit(1)


def _measure(job: Any) -> dict[str, Any]:
    import numpy as np

    from convnext_deploy.evaluation.latency import noise_images, time_calls
    from convnext_deploy.runners import open_runner
    from convnext_deploy.system.gpu_sensors import read_gpu

    artifact = job.artifact
    images = noise_images(job.batch_size, (artifact.model.in_channels, *artifact.preprocess.sides))
    if job.profiled:
        return _profile(job, images)
    start = time.perf_counter()
    runner = open_runner(artifact, job.device, runner=job.runner, threads=job.threads, alone=True)
    prepared = runner.prepare(images)
    runner.run(prepared)
    load_s = time.perf_counter() - start
    time_calls(runner, prepared, job.warm_up, job.most, job.seconds / 4)
    with read_gpu(wanted=runner.device == "cuda") as readings:
        times = time_calls(runner, prepared, job.least, job.most, job.seconds)
    p50, p90, p99 = np.percentile(times, [50, 90, 99]).tolist()
    return {
        "times": {
            "calls": len(times),
            "p50_ms": p50,
            "p90_ms": p90,
            "p99_ms": p99,
            "images_per_s": 1000.0 * job.batch_size * len(times) / sum(times),
            "load_s": load_s,
            "peak_memory_bytes": peak_memory_bytes(),
            "power_w": readings.mean_watts,
            "temperature_c": readings.highest_celsius,
        },
        "runner": runner.name,
        "device": runner.device,
    }


def _profile(job: Any, images: Any) -> dict[str, Any]:
    from dataclasses import asdict

    from convnext_deploy.evaluation.latency import time_calls
    from convnext_deploy.runners import open_profiled

    runner = open_profiled(job.artifact, job.runner, job.threads)
    time_calls(runner, runner.prepare(images), job.least, job.most, job.seconds)
    return {"kernels": [asdict(kernel) for kernel in runner.kernels()]}


def peak_memory_bytes() -> int:
    """Return the most memory that this process has held at once (resident)."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:  # noqa: PTH123  (no file on disk)
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        try:
            import resource
        except ImportError:
            return _peak_memory_on_windows()
        # not on Linux, where it begins with the memory of the process that started this one
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _peak_memory_on_windows() -> int:
    """Return the field PeakWorkingSetSize of the structure PROCESS_MEMORY_COUNTERS."""
    import ctypes

    system: Any = ctypes
    # two integers of 32 bits (size of the structure, page faults), then eight of a pointer's 64, of which the peak is the first
    counters = (ctypes.c_uint64 * (1 + 8))()
    head = ctypes.cast(counters, ctypes.POINTER(ctypes.c_uint32))
    head[0] = ctypes.sizeof(counters)
    kernel = system.WinDLL("kernel32")
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    process = ctypes.c_void_p(kernel.GetCurrentProcess())
    return int(counters[1]) if kernel.K32GetProcessMemoryInfo(process, ctypes.byref(counters), head[0]) else 0


def _describe(error: BaseException) -> dict[str, str]:
    from convnext_deploy.errors import BackendUnavailableError, DeployError, first_line
    from convnext_deploy.system.memory_faults import out_of_memory

    if isinstance(error, BackendUnavailableError):
        return {"unavailable": str(error)}
    if out_of_memory(error) is not None:
        return {"failed": "too little memory"}
    if isinstance(error, DeployError):
        return {"failed": str(error)}
    return {"failed": f"{type(error).__name__}: {first_line(error)}"}


if __name__ == "__main__":
    main()
