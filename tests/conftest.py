"""Fixtures of all tests: scripts that run alone, many at a time, and the folder of real data."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported


@pytest.fixture(scope="session")
def pool(request, tmp_path_factory):
    """Start every Job that the selected tests ask for, as many at a time as there are cores."""
    from house import run_alone

    asked = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    jobs = dict.fromkeys(params["alone"] for params in asked if "alone" in params)
    base = tmp_path_factory.mktemp("alone")
    caches = base / "caches"
    warm = os.environ | {"MPLCONFIGDIR": f"{caches}"}  # or the first plot would build this cache
    subprocess.run([sys.executable, "-c", "import matplotlib.font_manager"], env=warm, check=True)
    executor = ThreadPoolExecutor(os.cpu_count())
    yield {
        job: executor.submit(run_alone, job, base / str(number), caches)
        for number, job in enumerate(jobs)
    }
    executor.shutdown(cancel_futures=True)


@pytest.fixture
def alone(request, pool):
    """The finished Run of the Job that the test is parametrised with."""
    return pool[request.param].result()


@pytest.fixture
def data_root():
    """The folder of real data sets, for tests that need more than the scripts bring along."""
    if "ONEFILE_DATA" not in os.environ:
        pytest.skip("ONEFILE_DATA does not name the folder of data sets")
    return Path(os.environ["ONEFILE_DATA"])
