"""Two processes in one place: the second waits, or says who is there; a lock dies with its holder."""

import errno
import os
import re
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

from kit.baselines.run import run_baseline as baseline
from kit.data.dataset import open_dataset
from kit.data.preprocess import preprocess_files
from kit.errors import DataError, HeldError, KitError
from kit.recipe.load import load_recipe
from kit.run import Run
from kit.storage import lock
from kit.storage.atomic import write_text
from kit.training.train import train_recipe

HOLD = """
import sys, time
from pathlib import Path
from kit.storage.lock import hold_lock
with hold_lock(Path(sys.argv[1]), sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(folder: Path, name: str = "") -> Iterator[subprocess.Popen]:
    """Another process that holds a place."""
    command = [sys.executable, "-c", HOLD, str(folder), name]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def refused(process: subprocess.Popen) -> str:
    return f"in use by process {process.pid} on {re.escape(socket.gethostname())}"


def test_the_second_process_is_told_who_is_there(tmp_path: Path):
    with (
        holder(tmp_path / "here") as process,
        pytest.raises(HeldError, match=refused(process)) as caught,
        lock.hold_lock(tmp_path / "here"),
    ):
        pass
    assert f"kill {process.pid}" in caught.value.hint


def test_a_killed_holder_holds_nothing(tmp_path: Path):
    with holder(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / ".lock").exists()
        with lock.hold_lock(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_leaves_nothing_behind_and_no_empty_folder(tmp_path: Path):
    with lock.hold_lock(tmp_path / "new", "part"):
        assert [p.name for p in (tmp_path / "new").iterdir()] == [".part.lock"]
    assert list(tmp_path.iterdir()) == []


def test_what_is_made_once_is_made_once_and_takes_a_dead_process_s_file_along(tmp_path: Path):
    made, calls = tmp_path / "made", []
    for _ in range(2):
        lock.make_once(tmp_path, "made", made.exists, lambda: (calls.append(1), made.touch()))
    (tmp_path / ".made.lock").touch()
    lock.make_once(tmp_path, "made", made.exists, lambda: calls.append(1))
    assert calls == [1]
    assert list(tmp_path.iterdir()) == [made]


def test_who_may_wait_waits_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with holder(tmp_path, "tokens") as process:
        threading.Timer(0.3, process.kill).start()
        started = time.monotonic()
        with lock.hold_lock(tmp_path, "tokens", wait=True):
            assert time.monotonic() - started >= 0.25
    assert f"waiting for process {process.pid}" in caplog.text


def test_who_waits_gets_the_folder_that_the_holder_made_and_removed(tmp_path: Path):
    begun = threading.Event()

    def hold() -> None:
        with lock.hold_lock(tmp_path / "new", "part"):
            begun.set()
            time.sleep(0.3)

    first = threading.Thread(target=hold)
    first.start()
    begun.wait(10)
    with lock.hold_lock(tmp_path / "new", "part", wait=True):
        first.join()
        assert (tmp_path / "new").is_dir()


def test_many_processes_take_turns(tmp_path: Path):
    """Each reads a number, waits, and writes the next: without the lock, some would be lost."""
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
def test_a_file_system_without_locks_is_worked_on_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
):
    def unable(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock.fcntl, "flock", unable)
    with lock.hold_lock(tmp_path):
        write_text(tmp_path / "x", "x")
    assert (tmp_path / "x").read_text() == "x"


def test_writers_of_one_file_do_not_remove_each_others_work(tmp_path: Path):
    """Temporary files of dead processes go, those of the living stay: every writer's rename succeeds."""
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


def test_two_trainings_of_one_part_do_not_meet(data: Path, tmp_path: Path):
    recipe = load_recipe("tiny-electra", QUICK)
    folder = tmp_path / recipe.run_name
    with holder(folder, "holdout") as process, pytest.raises(HeldError, match=refused(process)):
        train_recipe(recipe, data, tmp_path)
    assert not (folder / "holdout").exists()


def test_two_baselines_of_one_name_do_not_meet(data: Path, tmp_path: Path):
    with (
        holder(tmp_path / "baseline-uniform") as process,
        pytest.raises(HeldError, match=refused(process)),
    ):
        baseline("uniform", data, tmp_path)


def test_two_preprocessings_into_one_folder_do_not_meet(raw: Path, tmp_path: Path):
    with holder(tmp_path / "out") as process, pytest.raises(HeldError, match=refused(process)):
        preprocess_files(raw, tmp_path / "out", folds=2)
    assert not (tmp_path / "out/manifest.json").exists()


def test_rows_that_are_replaced_while_in_use_are_noticed(raw: Path, tmp_path: Path):
    preprocess_files(raw, tmp_path, folds=2)
    opened = open_dataset(tmp_path)
    opened.fold_rows(0)
    preprocess_files(raw, tmp_path, folds=3)
    with pytest.raises(DataError, match=r"train\.parquet was replaced while it was in use"):
        opened.fold_rows(0)


def test_reading_takes_no_lock(data: Path, tmp_path: Path):
    with holder(data):
        assert open_dataset(data).folds == 3
    Run.create(tmp_path, load_recipe("tiny-electra"), {"data": "x"})
    with holder(tmp_path):
        assert [each.name for each in tmp_path.glob("*/origin.json")] == ["origin.json"]


def test_a_full_disk_does_not_hide_that_a_place_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with (
        lock.hold_lock(tmp_path),
        pytest.raises(KitError, match="another process"),
        lock.hold_lock(tmp_path),
    ):
        pass
