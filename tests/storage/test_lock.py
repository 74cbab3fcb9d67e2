"""Check that locks exclude other processes, name their holder, and end with it."""

import errno
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from quick_recipe import QUICK

from kit.baselines.models import baseline_run_name
from kit.baselines.run import run_baseline
from kit.data.dataset import open_dataset
from kit.data.preprocess import preprocess_files
from kit.errors import DataError, HeldError, KitError
from kit.recipe.load import load_recipe
from kit.run import Run
from kit.storage import lock
from kit.storage.atomic import write_text
from kit.training.train import train_recipe

HOLD_UNTIL_INPUT = """
import sys, time
from pathlib import Path
from kit.storage.lock import hold_lock
with hold_lock(Path(sys.argv[1]), sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(folder: Path, name: str = "") -> Iterator[subprocess.Popen]:
    """Hold a lock in another process."""
    command = [sys.executable, "-c", HOLD_UNTIL_INPUT, str(folder), name]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def in_use_by(process: subprocess.Popen) -> str:
    return f"in use by process {process.pid} on {re.escape(socket.gethostname())}"


def test_the_error_names_the_process_that_holds_the_lock(tmp_path: Path):
    with (
        holder(tmp_path / "here") as process,
        pytest.raises(HeldError, match=in_use_by(process)) as caught,
        lock.hold_lock(tmp_path / "here"),
    ):
        pass
    assert f"kill {process.pid}" in caught.value.hint


def test_a_killed_process_blocks_nobody(tmp_path: Path):
    with holder(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / ".lock").exists()
        with lock.hold_lock(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_released_lock_leaves_no_file_and_no_empty_folder(tmp_path: Path):
    with lock.hold_lock(tmp_path / "new", "part"):
        assert [p.name for p in (tmp_path / "new").iterdir()] == [".part.lock"]
    assert list(tmp_path.iterdir()) == []


def test_make_once_makes_once_and_removes_the_lock_file_of_a_dead_process(tmp_path: Path):
    made = tmp_path / "made"
    calls = []
    for _ in range(2):
        lock.make_once(tmp_path, "made", made.exists, lambda: (calls.append(1), made.touch()))

    (tmp_path / ".made.lock").touch()
    lock.make_once(tmp_path, "made", made.exists, lambda: calls.append(1))
    assert calls == [1]
    assert list(tmp_path.iterdir()) == [made]


def test_a_waiting_process_says_whom_it_waits_for(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with holder(tmp_path, "tokens") as process:
        threading.Timer(0.3, process.kill).start()

        started = time.monotonic()
        with lock.hold_lock(tmp_path, "tokens", wait=True):
            assert time.monotonic() - started >= 0.25

    assert f"waiting for process {process.pid}" in caplog.text


def test_a_waiting_process_creates_the_folder_again_that_the_holder_removed(tmp_path: Path):
    locked = threading.Event()

    def hold() -> None:
        with lock.hold_lock(tmp_path / "new", "part"):
            locked.set()
            time.sleep(0.3)

    first = threading.Thread(target=hold)
    first.start()
    locked.wait(10)

    with lock.hold_lock(tmp_path / "new", "part", wait=True):
        first.join()
        assert (tmp_path / "new").is_dir()


def test_many_processes_take_turns(tmp_path: Path):
    """Each process increments a number; without the lock some increments would be lost."""
    (tmp_path / "number").write_text("0")
    code = """
import sys, time
from pathlib import Path
from kit.storage.lock import hold_lock
number = Path(sys.argv[1]) / "number"
for _ in range(20):
    with hold_lock(number.parent, "number", wait=True):
        value = int(number.read_text())
        time.sleep(0.001)
        number.write_text(str(value + 1))
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.DEVNULL)
        for _ in range(4)
    ]

    assert [process.wait(60) for process in processes] == [0] * 4
    assert (tmp_path / "number").read_text() == "80"
    assert [p.name for p in tmp_path.iterdir()] == ["number"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_work_goes_on_where_a_file_system_has_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
):
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock.fcntl, "flock", refuse)

    with lock.hold_lock(tmp_path):
        write_text(tmp_path / "x", "x")
    assert (tmp_path / "x").read_text() == "x"


def test_writers_of_one_file_do_not_remove_each_others_temporary_files(tmp_path: Path):
    """Only the temporary files of dead processes are removed, so every writer's rename succeeds."""
    (tmp_path / ".x.dead.tmp").write_text("half")
    code = """
import sys
from kit.storage.atomic import write_text
for n in range(100):
    write_text(sys.argv[1], f"{n}\\n" * 1000)
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "x")], stderr=subprocess.PIPE)
        for _ in range(3)
    ]

    assert [(process.communicate(timeout=60)[1], process.returncode) for process in processes] == [
        (b"", 0)
    ] * 3
    assert len(set((tmp_path / "x").read_text().splitlines())) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_two_trainings_of_one_fold_exclude_each_other(data: Path, tmp_path: Path):
    recipe = load_recipe("tiny-electra", QUICK)
    folder = tmp_path / recipe.run_name

    with holder(folder, "holdout") as process, pytest.raises(HeldError, match=in_use_by(process)):
        train_recipe(recipe, data, tmp_path)
    assert not (folder / "holdout").exists()


def test_two_baselines_of_one_name_exclude_each_other(data: Path, tmp_path: Path):
    with (
        holder(tmp_path / baseline_run_name("uniform")) as process,
        pytest.raises(HeldError, match=in_use_by(process)),
    ):
        run_baseline("uniform", data, tmp_path)


def test_two_preprocessings_into_one_folder_exclude_each_other(raw: Path, tmp_path: Path):
    with holder(tmp_path / "out") as process, pytest.raises(HeldError, match=in_use_by(process)):
        preprocess_files(raw, tmp_path / "out", folds=2)
    assert not (tmp_path / "out/manifest.json").exists()


def test_rows_that_are_replaced_while_in_use_are_noticed(raw: Path, tmp_path: Path):
    preprocess_files(raw, tmp_path, folds=2)
    opened = open_dataset(tmp_path)
    opened.fold_rows(0)

    preprocess_files(raw, tmp_path, folds=3)

    with pytest.raises(DataError, match=r"train\.parquet was replaced while it was in use"):
        opened.fold_rows(0)


def test_reading_needs_no_lock(data: Path, tmp_path: Path):
    with holder(data):
        assert open_dataset(data).folds == 3

    Run.create(tmp_path, load_recipe("tiny-electra"), {"data": "x"})
    with holder(tmp_path):
        assert [path.name for path in tmp_path.glob("*/origin.json")] == ["origin.json"]


def test_a_full_disk_does_not_hide_that_a_folder_is_locked(tmp_path: Path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with (
            lock.hold_lock(tmp_path),
            pytest.raises(KitError, match="another process"),
            lock.hold_lock(tmp_path),
        ):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("event", ["open", "os.remove"])
def test_ctrl_c_while_locking_or_releasing_leaves_nothing(tmp_path: Path, event: str):
    """An audit hook cannot be removed again, so it lives in a process of its own."""
    code = """
import sys
from pathlib import Path
from kit.storage.lock import hold_lock
event, folder = sys.argv[1], Path(sys.argv[2])
remaining = [KeyboardInterrupt]
def interrupt(name, arguments):
    if name == event and ".lock" in str(arguments[0]) and remaining:
        raise remaining.pop()
sys.addaudithook(interrupt)
try:
    with hold_lock(folder / "new", "part"):
        pass
except KeyboardInterrupt:
    print(sorted(folder.iterdir()))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, event, str(tmp_path)], capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
