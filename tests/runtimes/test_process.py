"""A file in a runtime, in a process of its own."""

import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from deconvfix.runtimes.process import File, InRuntime, NotRunError
from tests.support import fake_runtimes

X = {"x": np.ones((1, 3, 5, 4), np.float32)}


def test_the_runtime_runs_elsewhere(files):
    with InRuntime(fake_runtimes.NAMES["Fake"], files[0], ("y",), 60) as model:
        assert model.version == "1.2"
        assert model.run(X)[0].shape == (1, 2, 19, 23)
        process = model.worker.process
        assert process.pid != os.getpid()
    assert process.returncode is not None


def test_a_process_that_hangs_is_ended(files):
    with InRuntime(fake_runtimes.NAMES["Hangs"], files[0], ("y",), 2) as model:
        with pytest.raises(NotRunError, match="did not finish within 2 s") as caught:
            model.run(X)
        assert caught.value.status == "late"
        assert not model.worker.alive
        # It stays ended.
        with pytest.raises(NotRunError):
            model.run(X)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_what_a_runtime_starts_ends_with_it(files):
    with InRuntime(fake_runtimes.NAMES["Spawns"], files[0], ("y",), 4) as model:
        pid = model.worker.process.pid
        found = []
        thread = threading.Timer(
            3, lambda: found.extend(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        )
        thread.start()
        with pytest.raises(NotRunError, match="did not finish within 4 s"):
            model.run(X)
        thread.join()
    assert len(found) == 1
    for _ in range(100):
        if not Path(f"/proc/{found[0]}").exists():
            return
        time.sleep(0.1)
    pytest.fail("it still runs")


def test_temporary_files_go_with_the_process(files, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with InRuntime(fake_runtimes.NAMES["Fake"], files[0], ("y",), 60):
        assert [path.name[:18] for path in tmp_path.iterdir()] == ["deconvfix-scratch-"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("kind", "loads"), [("Fake", 1), ("LoadedAnew", 2)])
def test_a_file_is_loaded_anew_only_where_sizes_are_fixed(
    files, monkeypatch, tmp_path, kind, loads
):
    monkeypatch.setattr(tempfile, "tempdir", tempfile.tempdir)
    loaded = []
    home = getattr(fake_runtimes, kind)
    original = home.load
    monkeypatch.setattr(home, "load", lambda *given: loaded.append(1) or original(*given))
    file = File()
    file.open(fake_runtimes.NAMES[kind], str(files[0]), ("y",), str(tmp_path))
    for size in (5, 5, 6):
        file.run({"x": np.ones((1, 3, size, 4), np.float32)})
    assert len(loaded) == loads


def test_long_words_are_cut(files, monkeypatch, tmp_path):
    def load(*given):
        raise ValueError("no " * 1000)

    monkeypatch.setattr(tempfile, "tempdir", tempfile.tempdir)
    monkeypatch.setattr(fake_runtimes.Fake, "load", load)
    file = File()
    file.open(fake_runtimes.NAMES["Fake"], str(files[0]), ("y",), str(tmp_path))
    with pytest.raises(RuntimeError) as caught:
        file.run(X)
    assert len(str(caught.value)) < 400


def test_what_c_code_writes_is_heard():
    code = (
        "import os\n"
        "from deconvfix.runtimes.process import heard\n"
        "with heard() as said:\n"
        "    os.write(1, b'first\\n'); os.write(2, b'second\\n\\n')\n"
        "with heard() as nothing: pass\n"
        "print(said(), nothing())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "first; second it does not say why\n"
    assert done.stderr == ""
