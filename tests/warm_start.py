"""Commands of the tests start warm: one process imports Unsloth once, and each `python -m medreason.X` is a fork of it.

    pytest --- runs ---> stand-in for Python --- socket: words, environment, descriptors ---> server
                               ^                                                                | fork
                               +--------------------- exit status ------------------------ the command

An import of Unsloth takes 10 to 20 seconds of a core, the tests start more than a hundred commands, and most of these
train a tiny model for a second. A fork has modules of its own, so nothing that one command does reaches the next. The
stand-in hands on signals; killed, it takes the command with it. What a fork could not do as Python would (`-c`, an
environment that an import would have read), the stand-in leaves to Python itself.

As a script with a socket's path, this file is the server; with `as-python` and Python's own arguments, the stand-in.
"""

import array
import atexit
import contextlib
import fcntl
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REAL_PYTHON = "MEDREASON_TEST_PYTHON"  # in the environment of the server and of all that it starts
# read when a command runs, not when a package is imported; any other difference from the server's starts Python itself
READ_LATE = (
    *("MEDREASON_", "WANDB_", "HYDRA_", "MLFLOW_", "TRACKIO_", "COLAB_", "KAGGLE_", "PYTEST_", "CUDA_VISIBLE_DEVICES"),
    *("GRADIO_", "HF_HUB_DISABLE_TELEMETRY"),  # set by imports of the tests themselves
    *("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TERM", "PWD", "OLDPWD", "SHLVL", "_", "KMP_"),
    *(
        "LOCAL_",
        "RANK",
        "GROUP_",
        "ROLE_",
        "WORLD_SIZE",
        "MASTER_",
        "TORCHELASTIC_",
        "TORCH_NCCL_",
        "SUBMITIT_",
        "NODE_RANK",
        "PL_",
    ),
)
MODULES = ("medreason.", "torch.distributed.run", "submitit.core._submit")  # what a fork carries out
WITHOUT_UNSLOTH = ("medreason.serve",)  # it would be served by what Unsloth made of transformers
WARM = (
    *("unsloth", "lightning.pytorch", "medreason.train.run", "medreason.train.fit", "medreason.data.datamodule"),
    *("medreason.evaluate.run", "medreason.export.write", "medreason.data.show"),
    "medreason.chat.talk",
)


def imported(environment: dict[str, str]) -> dict[str, str]:
    """The part of an environment that an import may have read: a fork is no other process only if it is the same."""
    read = {name: value for name, value in environment.items() if not name.startswith(READ_LATE)}
    encoding = read.get("PYTHONIOENCODING", "").partition(":")[0]
    if encoding.lower() in ("", "utf-8"):  # as a fork has it anyway; how it treats errors is read late
        read.pop("PYTHONIOENCODING", None)
    return read


# ---------------------------------------------------------------------------------------------------- for the tests


def warm_python(folder: Path) -> str:
    """The path of a stand-in for Python in `folder`, behind which a server is ready or getting ready.

    The server is shared by all processes of a test session, and ends once nobody of them lives any more.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stand_in, at = folder / "python", folder / "socket"
    with (folder / "lock").open("a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not at.exists():
            script = f'#!/bin/sh\nexec "{sys.executable}" -I -S "{__file__}" as-python "{sys.executable}" "{at}" "$@"\n'
            stand_in.write_text(script, encoding="utf-8")
            stand_in.chmod(0o755)
            environment = os.environ | {REAL_PYTHON: sys.executable}
            with (folder / "server.log").open("w", encoding="utf-8") as log:
                subprocess.Popen([sys.executable, __file__, str(at)], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                 env=environment, start_new_session=True)  # fmt: skip
            while not at.exists():
                time.sleep(0.01)
    keep = socket.socket(socket.AF_UNIX)  # open as long as this process lives
    keep.connect(str(at))
    KEPT.append(keep)
    return str(stand_in)


KEPT: list[socket.socket] = []


# ---------------------------------------------------------------------------------------------------- the stand-in


def stand_in(python: str, at: str, words: list[str]) -> None:
    """Has the server carry out `python WORDS`, or becomes Python itself."""
    unbuffered = words[:1] == ["-u"]
    rest = words[1:] if unbuffered else words
    command = rest[1:]
    ours = rest[:1] == ["-m"] and command[0].startswith(MODULES) and command[0] not in WITHOUT_UNSLOTH
    asked = socket.socket(socket.AF_UNIX)
    try:
        if not ours:
            raise ConnectionError
        asked.connect(at)
    except OSError:
        os.execv(python, [python, *words])
    descriptors = [int(one.name) for one in Path("/proc/self/fd").iterdir()]
    passed = [one for one in descriptors if one != asked.fileno() and inheritable(one)]
    request = {
        "command": command[0],
        "words": command[1:],
        "cwd": str(Path.cwd()),
        "environment": dict(os.environ),
        "fds": passed,
        "unbuffered": unbuffered,
    }
    data = json.dumps(request).encode()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        signal.signal(number, lambda number, _: asked.sendall(bytes([number])))
    answer = b""
    try:
        socket.send_fds(asked, [len(data).to_bytes(8, "big")], passed)
        asked.sendall(data)
        while len(answer) < 4:
            if not (read := asked.recv(4 - len(answer))):
                raise ConnectionResetError
            answer += read
    except ConnectionError:
        print(f"the server of warm commands is gone: {Path(at).with_name('server.log')}", file=sys.stderr)
        os._exit(70)
    status = int.from_bytes(answer, "big")
    if status == 1 << 31:  # the environment is one that an import would have read
        os.execv(python, [python, *words])
    if os.WIFSIGNALED(status):
        signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.WEXITSTATUS(status))


def inheritable(descriptor: int) -> bool:
    try:
        return descriptor <= 2 or os.get_inheritable(descriptor)
    except OSError:  # the listing's own
        return False


# ---------------------------------------------------------------------------------------------------- the server


def serve(at: str) -> None:
    """Forks a command for each request, until nobody is connected any more."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(f"{at}.new")
    listening.listen(64)
    Path(f"{at}.new").rename(at)
    own = imported(dict(os.environ))
    folders = import_all()
    sys.executable = str(Path(at).with_name("python"))
    woken, wake = socket.socketpair()
    for end in (woken, wake):
        end.setblocking(False)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    children: dict[int, socket.socket] = {}
    connected: list[socket.socket] = []
    begun = False
    while connected or not begun:
        ready, _, _ = select.select([listening, woken, *connected], [], [])
        if woken in ready:
            woken.recv(4096)
            reap(children, connected)
        if listening in ready:
            connected.append(listening.accept()[0])
            begun = True
        for one in [one for one in ready if one in connected]:
            of = next((process for process, asked in children.items() if asked is one), None)
            if of is not None:
                hand_on(of, one)
                continue
            request, fds = receive(one)
            if request is None:  # a test process that ends
                connected.remove(one)
                one.close()
            elif other := imported(request["environment"]).items() ^ own.items():
                print("left to Python:", request["command"], sorted({name for name, _ in other}), flush=True)
                one.sendall((1 << 31).to_bytes(4, "big"))
                close_all(fds)
            elif child := fork():
                children[child] = one
                close_all(fds)
            else:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for other in (listening, woken, wake, *connected):
                    other.close()
                return become(request, fds)
    Path(at).unlink()
    for folder in folders:
        folder.cleanup()


def fork() -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    return os.fork()


def import_all() -> list[tempfile.TemporaryDirectory[str]]:
    """Imports what commands import, before the first of them is forked; temporary folders that imports made."""
    import importlib

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests to hear
    for module in WARM:
        importlib.import_module(module)
    threads = [(one / "comm").read_text(encoding="utf-8").strip() for one in Path("/proc/self/task").iterdir()]
    assert set(threads[1:]) <= {"jemalloc_bg_thd"}, f"a fork would lack {threads}, which an import started"
    folders = [
        one for one in gc.get_objects() if type(one) is tempfile.TemporaryDirectory
    ]  # a proxy would answer isinstance
    for folder in folders:
        # the first fork to end would remove them, by either way
        folder._finalizer.atexit = False  # type: ignore[attr-defined]
        atexit.unregister(folder.cleanup)
    gc.freeze()  # else a fork's first collection would copy every page that imports filled
    return folders


def reap(children: dict[int, socket.socket], connected: list[socket.socket]) -> None:
    """Tells the stand-ins of children that ended how they did."""
    while children:
        process, status = os.waitpid(-1, os.WNOHANG)
        if process == 0:
            return
        if asked := children.pop(process, None):
            with contextlib.suppress(OSError):
                asked.sendall(status.to_bytes(4, "big"))
            asked.close()
            connected.remove(asked)


def hand_on(child: int, asked: socket.socket) -> None:
    """Hands on signals that a stand-in caught; where it was killed, kills its command."""
    try:
        caught = asked.recv(64)
    except OSError:
        caught = b""
    with contextlib.suppress(ProcessLookupError):
        for number in caught or [signal.SIGKILL]:
            os.kill(child, number)


def receive(asked: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """A request with its descriptors; None where the other side hung up."""
    try:
        head, ancillary, _, _ = asked.recvmsg(8, socket.CMSG_SPACE(256 * 4))
    except OSError:
        head, ancillary = b"", []
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    if not head:
        return None, []
    data = b""
    while len(data) < int.from_bytes(head, "big"):
        data += asked.recv(1 << 16)
    return json.loads(data), list(fds)


def close_all(descriptors: list[int]) -> None:
    for one in descriptors:
        os.close(one)


def become(request: dict[str, Any], fds: list[int]) -> None:
    """Makes of this fork the command that was asked for; it runs once this returns."""
    high = [fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, 300) for one in fds]
    close_all(fds)
    for one, number in zip(high, request["fds"], strict=True):
        os.dup2(one, number, inheritable=True)
        os.close(one)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    sys.argv = ["-m", *request["words"]]
    sys.orig_argv = [sys.executable, "-m", request["command"], *request["words"]]
    sys.path[0] = request["cwd"]
    asked = os.environ.get("PYTHONIOENCODING", "").partition(":")[2]
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        errors = asked or ("surrogateescape" if name == "stdin" else None)
        stream = open(number, mode, encoding="utf-8", errors=errors, closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.stdout.reconfigure(write_through=request["unbuffered"])  # type: ignore[union-attr]
    sys.stderr.reconfigure(errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    global COMMAND
    COMMAND = request["command"]


COMMAND = ""

if __name__ == "__main__":
    if sys.argv[1] == "as-python":
        stand_in(sys.argv[2], sys.argv[3], sys.argv[4:])
    else:
        serve(sys.argv[1])
        if COMMAND:
            import runpy

            sys.modules.pop(COMMAND, None)  # it was imported to be warm; now it is to run
            runpy.run_module(COMMAND, run_name="__main__", alter_sys=True)
