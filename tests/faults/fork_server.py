"""A process that has imported everything once and forks a child for each command, so that a kill costs no start-up.

Reads one request a line as JSON, runs `kit …` in a child of its own, does to it what was asked for, and answers with
one line: {"code", "signal", "stdout", "stderr", "seconds", "events"}.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
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
CAPABILITIES = 0x20080522  # version 3 of the kernel's interface
STUCK_S = 240.0  # no command here takes so long


def preload() -> None:
    """What the commands would import; nothing that starts a thread."""
    import sklearn.linear_model  # noqa: F401
    from transformers import AutoConfig, AutoModel, AutoTokenizer, ElectraModel  # noqa: F401

    import kit.baselines.run
    import kit.cli
    import kit.ensemble.fit_blend
    import kit.kaggle.download
    import kit.kaggle.push
    import kit.predict
    import kit.report.comparison
    import kit.training.train  # noqa: F401


class Moment:
    """Counts what the child does to files, and at the chosen event sends it the signal."""

    def __init__(self, folder: str, at: int | None, send: int):
        self.folder, self.at, self.send, self.events, self.off = folder, at, send, 0, False
        self.fsync = os.fsync

    def count(self) -> None:
        self.events += 1
        if self.events == self.at:
            os.kill(os.getpid(), self.send)

    def heard(self, event: str, arguments: tuple) -> None:
        """An audit hook: opening for writing, renaming, removing, making folders."""
        if self.off or not (event in CHANGES or event == "open"):
            return
        path, *others = arguments
        if event == "open" and not (isinstance(others[1], int) and others[1] & WRITING):
            return
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        if isinstance(path, str | os.PathLike):
            path = os.fspath(path)
            if os.path.isabs(path) and not path.startswith(self.folder):  # noqa: PTH117
                return
        elif event == "open":
            return
        self.count()

    def synced(self, handle: int) -> None:
        """In place of os.fsync: the data are written, the name is not there yet."""
        self.count()
        self.fsync(handle)


def give_up_privileges() -> None:
    """Without its capabilities even root may not write where the permissions say no."""
    header, none = (ctypes.c_uint32 * 2)(CAPABILITIES, 0), (ctypes.c_uint32 * 6)()
    if os.getuid() == 0 and ctypes.CDLL(None, use_errno=True).capset(header, none):
        raise OSError(ctypes.get_errno(), "capset")


def child(request: dict, report: int, outputs: list[int]) -> None:
    """Runs the command in this process; never returns."""
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
            give_up_privileges()
        moment = Moment(request["cwd"], request.get("event"), request.get("signal", signal.SIGKILL))
        os.fsync = moment.synced
        sys.addaudithook(moment.heard)
        if request.get("file_size") is not None:
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (request["file_size"], resource.RLIM_INFINITY)
            )
        from kit.cli import main

        os.write(report, b"begun\n")
        try:
            main(request["argv"], prog_name="kit")
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        moment.off = True
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(report, f"{moment.events}\n".encode())
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    os._exit(code)


def serve(request: dict) -> dict:
    """One command in a child: its exit code or the signal that ended it, its time, its file events."""
    read, write = os.pipe()
    shown, outputs = zip(
        *(os.pipe() for _ in range(2)), strict=True
    )  # files would fall under a limit on file sizes
    pid = os.fork()
    if pid == 0:
        os.close(read)
        child(request, write, outputs)
    for handle in (write, *outputs):
        os.close(handle)
    begun = os.read(read, 6)  # it is in `main` now, or has died before
    started, due = time.monotonic(), request.get("after_s")
    stuck = False
    said = [b"", b""]
    for handle in shown:
        os.set_blocking(handle, False)
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        for number, handle in enumerate(shown):
            with contextlib.suppress(BlockingIOError):
                while piece := os.read(handle, 1 << 16):
                    said[number] += piece
        if ended:
            break
        now = time.monotonic() - started
        if due is not None and now >= due:
            os.kill(pid, request.get("signal", signal.SIGKILL))
            due = None
        if now > STUCK_S:
            stuck = True
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.001)
    seconds = time.monotonic() - started
    events = os.read(read, 32).strip() if begun else b""
    for handle in (read, *shown):
        os.close(handle)
    return {
        "stdout": said[0].decode("utf-8", "replace"),
        "stderr": said[1].decode("utf-8", "replace"),
        "code": os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else None,
        "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
        "seconds": seconds,
        "events": int(events or 0),
        "stuck": stuck,
    }


if __name__ == "__main__":
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    Path("/proc/self/comm").write_text("kit-zygote") if Path("/proc/self/comm").exists() else None
    preload()
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line))), flush=True)
    os._exit(0)  # nothing to tidy up, and taking torch down takes seconds
