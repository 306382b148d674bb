"""The process in which a launcher's process has its trials carried out, one after another (core/worker.py)."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from medreason.core.processes import gpu_waited_for
from medreason.core.progress import say
from medreason.core.run_directory import read_json, write_json
from medreason.core.worker import Worker
from medreason.models.memory import OUT_OF_MEMORY


class Slot:
    """A process for trials of one kind, and the GPU that it holds from one to the next."""

    def __init__(self) -> None:
        self.worker: Worker | None = None
        self.kind: Any = None
        self.gpu = ExitStack()

    def carry_out(
        self,
        run: Path,
        words: list[str],
        kind: Any,
        gpu: Callable[[], AbstractContextManager[dict[str, str]]],
        **how: Any,
    ) -> int:
        """The exit code of a trial. `kind` is what trials of one process have in common, `gpu` what a new one needs.

        A trial that ran out of memory where others have been is tried once more in a new process: what these left
        between its tensors may be what it lacked.
        """
        if kind != self.kind:
            self.end()
        used = self.worker is not None
        code = self.try_once(words, kind, gpu, **how)
        record = read_json(run / "run.json") if code and used else {}
        if str(record.get("status")).startswith(f"failed: RunFailed: {OUT_OF_MEMORY}"):
            say(f"trial {run.name}: out of memory where other trials have been; again in a new process")
            write_json(run / "run.json", record | {"status": "starting"})
            code = self.try_once(words, kind, gpu, **how)
        return code

    def try_once(
        self, words: list[str], kind: Any, gpu: Callable[[], AbstractContextManager[dict[str, str]]], **how: Any
    ) -> int:
        try:
            if self.worker is None:
                self.worker, self.kind = Worker("medreason.train.worker", self.gpu.enter_context(gpu())), kind
            code = self.worker.carry_out(words, **how)
        except BaseException:
            self.end()
            raise
        if code or (self.worker.environment and gpu_waited_for()):  # what it is told of is its GPU
            self.end()
        return code

    def end(self) -> None:
        """Ends the process and gives the GPU back."""
        if self.worker is not None:
            self.worker.end()
        self.worker = self.kind = None
        self.gpu.close()


SLOT = Slot()
