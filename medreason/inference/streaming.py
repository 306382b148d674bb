"""One prompt -> what a model writes to it, as it is written."""

import threading
from collections.abc import Iterator
from typing import Any

import torch


class AnswerStream(Iterator[str]):
    """The completion of one prompt, a word or so at a time, special tokens removed; written in a thread of its own.

    `text` is what came so far. `stop` ends it, within a token's time. `cut`: the length limit ended it.
    """

    def __init__(self, model: Any, tokenizer: Any, prompt: list[int], *, max_new_tokens: int, temperature: float):
        from transformers import StoppingCriteriaList, TextIteratorStreamer

        self.text, self.cut = "", False
        self._error: BaseException | None = None
        self._stopped = threading.Event()
        self._streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        tokens = torch.tensor([prompt], device=model.device)
        sampling = {"temperature": temperature} if temperature else {}

        def stopped(tokens: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            return torch.full((len(tokens),), self._stopped.is_set(), device=tokens.device, dtype=torch.bool)

        def write() -> None:
            try:
                with torch.inference_mode():
                    written = model.generate(
                        input_ids=tokens,
                        attention_mask=torch.ones_like(tokens),
                        max_new_tokens=max_new_tokens,
                        do_sample=bool(sampling),
                        use_cache=True,
                        pad_token_id=tokenizer.pad_token_id,
                        eos_token_id=tokenizer.eos_token_id,
                        streamer=self._streamer,
                        stopping_criteria=StoppingCriteriaList([stopped]),
                        **sampling,
                    )
                ended = self._stopped.is_set() or int(written[0, -1]) == tokenizer.eos_token_id
                self.cut = not ended
            except BaseException as error:  # raised again in the thread that reads the stream
                self._error = error
            finally:
                self._streamer.end()

        self._thread = threading.Thread(target=write, daemon=True)
        self._thread.start()

    def __next__(self) -> str:
        try:
            text = next(self._streamer)
        except StopIteration:
            self._thread.join()
            if self._error is not None:
                raise self._error from None
            raise
        self.text += text
        return str(text)

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
