"""Jobs on a Dask cluster: `python -m sim sweep … --dask tcp://scheduler:8786`.

The workers need Python, Dask and the simulator's dependencies, but no checkout: this one's sources are sent along, and
a worker runs exactly them. Files that a scenario names are read where the job runs: they must lie on a shared disk.
"""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

from .environment import ROOT, source_hash
from .errors import RunError
from .job import Job

CONNECT_S = 10.0
SOURCE_BYTES_MAX = 64 * 1024 * 1024
SUFFIXES = (".py", ".json", ".csv", ".toml")
JOBS_OPEN_MAX = 1_000  # handed to the scheduler at one time


def run_on_cluster(jobs: Sequence[Job], *, address: str) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Results as they come. Raises RunError when the cluster cannot be reached or a job fails."""
    import cloudpickle
    from distributed import Client, as_completed

    try:
        client = Client(address, timeout=CONNECT_S)
    except (OSError, TimeoutError, ValueError) as problem:
        raise RunError(f"no Dask scheduler at {address}: {problem}") from problem
    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)  # the workers may not have this package yet
    try:
        sources = client.scatter(packed_sources(), broadcast=True)
        waiting = list(reversed(jobs))
        named = {}

        def submit() -> Any:
            job = waiting.pop()
            future = client.submit(_on_worker, sources, source_hash(), _fields(job), pure=False, retries=1)
            named[future.key] = job
            return future

        open_jobs = as_completed([submit() for _ in range(min(len(waiting), JOBS_OPEN_MAX))])
        for future in open_jobs:
            job = named.pop(future.key)
            if future.status != "finished":
                raise RunError(f"{job.name}: {future.exception() or future.status}")
            yield job, future.result()
            future.release()
            if waiting:
                open_jobs.add(submit())
    finally:
        cloudpickle.unregister_pickle_by_value(module)
        client.close(timeout=CONNECT_S)


def packed_sources() -> bytes:
    """A ZIP of what the simulator imports of this checkout."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for package in ("cocoon", "p2p", "sim"):
            for path in sorted((ROOT / package).rglob("*")):
                if path.suffix in SUFFIXES and path.is_file() and "__pycache__" not in path.parts:
                    archive.write(path, path.relative_to(ROOT))
    if packed.tell() > SOURCE_BYTES_MAX:
        raise RunError(f"the sources are larger than {SOURCE_BYTES_MAX >> 20} MiB")
    return packed.getvalue()


def _fields(job: Job) -> dict[str, Any]:
    """Plain values: a `Job` could not be unpickled before the sources are there."""
    return {name: getattr(job, name) for name in ("name", "scenario", "folder", "seed", "level")}


def _on_worker(sources: bytes, digest: str, job: dict[str, Any]) -> dict[str, Any]:
    """Runs in the cluster. Imports nothing of this module: it was sent by value."""
    import atexit
    import importlib
    import io
    import shutil
    import sys
    import tempfile
    import zipfile

    loaded = sys.modules.get("sim.job")
    known = getattr(sys.modules.get("sim.environment"), "source_hash", None)
    if loaded is None or known is None or known() != digest:
        if loaded is not None:
            raise RuntimeError("this worker has run other sources before: restart it")
        place = tempfile.mkdtemp(prefix="cocoon-sim-")
        atexit.register(shutil.rmtree, place, ignore_errors=True)
        with zipfile.ZipFile(io.BytesIO(sources)) as archive:
            archive.extractall(place)
        sys.path.insert(0, place)
        importlib.invalidate_caches()
    module = importlib.import_module("sim.job")
    result: dict[str, Any] = module.run_job(module.Job(**job), lambda *_: None)
    return result
