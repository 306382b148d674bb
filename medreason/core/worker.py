"""A process that carries out a command of this package again and again, and keeps what the command leaves in it.

    Worker (a sweep) --- words; descriptors of a log and a lock ---> serve (the process)
                     <-------------------- exit code ---------------

Each command speaks into its own log, ends with its own exit code, and can be killed alone. After any end but a good
one the process ends too: a new one takes its place, so nothing that went wrong reaches the next command.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from medreason.core.processes import child_settings, interrupt
from medreason.core.progress import Clock

ENDING_SECONDS = 10  # for a process that has nothing left to do


class Worker:
    """Starts `python -m MODULE`, whose `main` is `serve`, when the first command comes."""

    def __init__(self, module: str, environment: Mapping[str, str]) -> None:
        self.module, self.environment = module, environment
        self.process: subprocess.Popen[bytes] | None = None
        self.channel: socket.socket | None = None

    def carry_out(self, words: Sequence[str], *, log: Path, held: int, watch: Callable[[], None]) -> int:
        """The exit code of a command, negative for a signal; all as processes.carry_out has it."""
        fresh = self.process is None
        with log.open("ab") as output:
            if fresh:
                self.begin(output.fileno())
            process, channel = self.process, self.channel
            assert process is not None and channel is not None
            try:
                send(channel, words, [output.fileno(), held])
            except OSError:  # it has died, an old one while it had nothing to do
                code = self.end()
                return (code or 1) if fresh else self.carry_out(words, log=log, held=held, watch=watch)
        try:
            said = answer(channel, watch)
        except BaseException:
            try:
                interrupt(process)
            finally:
                self.end()
            raise
        if said == 0:
            return 0
        code = self.end()
        return code if said is None else said

    def begin(self, output: int) -> None:
        """Starts the process; what it says before its first command goes to `output`."""
        self.channel, other = socket.socketpair()
        with other:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.module, str(other.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[other.fileno()],
                **child_settings(self.environment),
            )

    def end(self) -> int:
        """Ends the process; its exit code."""
        process, channel, self.process, self.channel = self.process, self.channel, None, None
        if process is None or channel is None:
            return 0
        channel.close()
        try:
            return process.wait(ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def send(channel: socket.socket, words: Sequence[str], descriptors: list[int]) -> None:
    data = json.dumps(list(words)).encode()
    socket.send_fds(channel, [len(data).to_bytes(4, "big")], descriptors)
    channel.sendall(data)


def answer(channel: socket.socket, watch: Callable[[], None]) -> int | None:
    """The exit code that comes back, None where the process is gone; `watch` is called every second."""
    channel.settimeout(1)
    while True:
        try:
            said = channel.recv(1)
        except TimeoutError:
            watch()
            continue
        except ConnectionResetError:
            said = b""
        channel.settimeout(None)
        return said[0] if said else None


def receive(channel: socket.socket) -> tuple[list[str], list[int]] | None:
    """The words of a command and its descriptors; None where nobody has another."""
    head, descriptors, _, _ = socket.recv_fds(channel, 4, 2)
    if not head:
        return None
    data = b""
    while len(data) < int.from_bytes(head, "big"):
        if not (read := channel.recv(1 << 16)):
            return None
        data += read
    return json.loads(data), list(descriptors)


def serve(command: Callable[[], None]) -> None:
    """Carries out `command` with the words of each request in sys.argv, until one ends badly or no more come."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.set_inheritable(False)
    handlers = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    quiet = [os.dup(number) for number in (1, 2)]
    while True:
        try:
            request = receive(channel)
        except KeyboardInterrupt:  # Ctrl-C at a terminal is for all of a sweep's processes
            return
        if request is None:
            return
        words, (log, held) = request
        code = carried_out(command, words, log)
        for caught, handler in handlers.items():
            signal.signal(caught, handler)
        for number, descriptor in zip((1, 2), quiet, strict=True):
            os.dup2(descriptor, number)
        os.close(log)
        os.close(held)
        with suppress(OSError):  # nobody is there any more to be told
            channel.sendall(bytes([code]))
        if code:
            return


def carried_out(command: Callable[[], None], words: Sequence[str], log: int) -> int:
    """The exit code of a command whose output goes to `log`."""
    for number in (1, 2):
        os.dup2(log, number)
    sys.argv[1:] = words
    Clock.began = time.monotonic()
    try:
        command()
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        return min(code, 255)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0
