"""Tests share the cores of this machine; fixtures: scripts that run alone, the folder of real data.

All tests, or a folder of them, are run by as many processes as there are cores, a few files by one.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported


def pytest_xdist_auto_num_workers(config):
    """What -n auto means: 0 is no worker beside this process."""
    few = all(part.split("::")[0].endswith(".py") for part in config.args) and len(config.args) < 4
    slow = any(part.endswith(("test_smoke.py", "test_bars.py")) for part in config.args)
    return 0 if few and not slow else os.cpu_count()


def pytest_collection_modifyitems(items):
    """Keep together what shares work: in test_cli the tests of a script, elsewhere those of a file;
    scripts that run alone share nothing."""
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        if "alone" not in params:
            group = (
                params["path"]
                if item.path.name == "test_cli.py" and "path" in params
                else item.path
            )
            item.add_marker(pytest.mark.xdist_group(str(group)))


@pytest.fixture(scope="session")
def caches(tmp_path_factory):
    """A folder with what the first plot of all would make."""
    folder = tmp_path_factory.mktemp("caches")
    warm = os.environ | {"MPLCONFIGDIR": f"{folder}"}
    subprocess.run([sys.executable, "-c", "import matplotlib.font_manager"], env=warm, check=True)
    return folder


@pytest.fixture
def alone(request, tmp_path, caches):
    """The finished Run of the Job that the test is parametrised with."""
    from house import run_alone

    return run_alone(request.param, tmp_path / "alone", caches)


@pytest.fixture
def data_root():
    """The folder of real data sets, for tests that need more than the scripts bring along."""
    if "ONEFILE_DATA" not in os.environ:
        pytest.skip("ONEFILE_DATA does not name the folder of data sets")
    return Path(os.environ["ONEFILE_DATA"])
