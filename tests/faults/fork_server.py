"""Import everything once, then fork a child for each command, so that a kill costs no start-up.

Reads one request a line as JSON, runs `kit …` in a child, does to it what the request asks for,
and answers with one line: {"code", "signal", "stdout", "stderr", "seconds", "events", "stuck"}.
`fault_client.ForkServer` is the other end.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = {
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.truncate",
    "os.chmod",
    "os.link",
    "os.symlink",
}

# Version 3 of the kernel's interface to capabilities.
CAPABILITY_VERSION = 0x20080522

# No command of these tests takes this long.
STUCK_S = 240.0


def preload_modules() -> None:
    """Import what the commands need, and nothing that starts a thread."""
    import optuna.storages._rdb.storage  # noqa: F401
    import sklearn.linear_model  # noqa: F401
    import sqlalchemy  # noqa: F401
    from transformers import AutoConfig, AutoModel, AutoTokenizer, ElectraModel  # noqa: F401

    import kit.baselines.run
    import kit.cli
    import kit.ensembling.fit_blend
    import kit.kaggle.download
    import kit.kaggle.push
    import kit.predict
    import kit.reporting.comparison
    import kit.sweeps.run
    import kit.training.train  # noqa: F401


class EventCounter:
    """Count what the child does to files, and send it a signal at the chosen event."""

    def __init__(self, folder: str, signal_at: int | None, signal_number: int):
        self.folder = folder
        self.signal_at = signal_at
        self.signal_number = signal_number
        self.events = 0
        self.stopped = False
        self.real_fsync = os.fsync

    def count(self) -> None:
        """Count one event."""
        self.events += 1
        if self.events == self.signal_at:
            os.kill(os.getpid(), self.signal_number)

    def audit(self, event: str, arguments: tuple) -> None:
        """Count opening for writing, renaming, removing and making folders, as an audit hook."""
        if self.stopped or not (event in CHANGES or event == "open"):
            return

        path, *others = arguments
        if event == "open" and not (isinstance(others[1], int) and others[1] & WRITE_FLAGS):
            return

        # Only files in the workspace count. Other events than "open" may be given a handle, such
        # as a truncation, and are counted without looking at the path.
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        if isinstance(path, str | os.PathLike):
            path = os.fspath(path)
            if os.path.isabs(path) and not path.startswith(self.folder):  # noqa: PTH117
                return
        elif event == "open":
            return

        self.count()

    def fsync(self, handle: int) -> None:
        """Count in place of os.fsync: the data is written, the final name does not exist yet."""
        self.count()
        self.real_fsync(handle)


def drop_capabilities() -> None:
    """Make file permissions hold for root, too."""
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    no_capabilities = (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    if os.getuid() == 0 and libc.capset(header, no_capabilities):
        raise OSError(ctypes.get_errno(), "capset")


def run_child(request: dict, report: int, outputs: list[int]) -> None:
    """Run the command in this process and write the number of events to `report`; never return."""
    code = 70
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(outputs[0], 1)
        os.dup2(outputs[1], 2)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.environ.update(request["env"])
        os.chdir(request["cwd"])

        if request.get("plain_user"):
            drop_capabilities()
        counter = EventCounter(
            request["cwd"], request.get("event"), request.get("signal", signal.SIGKILL)
        )
        os.fsync = counter.fsync
        sys.addaudithook(counter.audit)
        if request.get("file_size") is not None:
            limits = (request["file_size"], resource.RLIM_INFINITY)
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

        from kit.cli.main import main

        os.write(report, b"begun\n")
        try:
            main(request["argv"], prog_name="kit")
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)

        counter.stopped = True
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(report, f"{counter.events}\n".encode())
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(code)


def serve_request(request: dict) -> dict:
    """Run one command in a child, and return how it ended, what it printed and how long it took."""
    report, report_end = os.pipe()
    # Pipes, because files would fall under a limit on file sizes.
    (stdout, stdout_end), (stderr, stderr_end) = os.pipe(), os.pipe()

    pid = os.fork()
    if pid == 0:
        os.close(report)
        run_child(request, report_end, [stdout_end, stderr_end])
    for handle in (report_end, stdout_end, stderr_end):
        os.close(handle)

    # Wait until the child is in `main`, or has died before.
    begun = os.read(report, 6)
    started = time.monotonic()
    signal_after = request.get("after_s")
    stuck = False
    printed = {stdout: b"", stderr: b""}
    for handle in printed:
        os.set_blocking(handle, False)

    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        # Read after the check, so that nothing printed at the very end is lost.
        for handle in printed:
            with contextlib.suppress(BlockingIOError):
                while piece := os.read(handle, 1 << 16):
                    printed[handle] += piece
        if ended:
            break

        elapsed = time.monotonic() - started
        if signal_after is not None and elapsed >= signal_after:
            os.kill(pid, request.get("signal", signal.SIGKILL))
            signal_after = None
        if elapsed > STUCK_S:
            stuck = True
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.001)

    seconds = time.monotonic() - started
    events = os.read(report, 32).strip() if begun else b""
    for handle in (report, stdout, stderr):
        os.close(handle)

    return {
        "stdout": printed[stdout].decode("utf-8", "replace"),
        "stderr": printed[stderr].decode("utf-8", "replace"),
        "code": os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else None,
        "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
        "seconds": seconds,
        "events": int(events or 0),
        "stuck": stuck,
    }


def main() -> None:
    """Serve requests until standard input ends."""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    process_name = Path("/proc/self/comm")
    if process_name.exists():
        process_name.write_text("kit-fork-server")

    preload_modules()
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(serve_request(json.loads(line))), flush=True)

    # Taking torch down in order takes seconds, and there is nothing to tidy up.
    os._exit(0)


if __name__ == "__main__":
    main()
