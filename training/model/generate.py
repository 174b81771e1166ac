"""Let a language model answer a prompt, always with its most likely next token, so that equal prompts have equal answers."""

from __future__ import annotations

import torch
import transformers

from curation.core.errors import ModelError, first_line, listed
from training.model.device import device_of
from training.model.files import find_model
from training.model.load import max_tokens_of, positions_of, read_model
from training.model.model import quiet

LANGUAGE_MODEL = "name a language model, such as HuggingFaceTB/SmolLM2-360M-Instruct"


class PromptTooLong(ModelError):
    """A prompt for which the model has no room."""


class Writer:
    """A loaded language model. It answers one prompt at a time: padding beside longer prompts would change its numbers."""

    def __init__(self, name: str, device: str = "auto") -> None:
        """Load a model from a folder, a Hub id or `package:NAME`: in float32 on the CPU, in bfloat16 on a GPU.

        Raises:
            ModelError: there is no such model, a part of it is missing, or it is no language model.
        """
        files, place = find_model(name), device_of(device)
        with quiet():
            model, self.tokenizer, missing = read_model(name, files, transformers.AutoModelForCausalLM)
        if missing:
            raise ModelError(name, f"writes no text: its weights lack {listed(missing, 3)}", LANGUAGE_MODEL)
        _, room, fixed = positions_of(model)
        self.room = max_tokens_of(name, files, self.tokenizer, room, fixed, None)
        self.name, self.model = name, model.to(place, torch.bfloat16 if place.type == "cuda" else torch.float32).eval()
        ends = model.generation_config.eos_token_id if model.generation_config else None
        self.ends = {self.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}

    def answer(self, prompt: str, most: int, lines: int) -> tuple[str, bool]:
        """Return the answer to a prompt, and whether it is whole: the model ended it, or it has so many lines.

        Args:
            prompt: put into the model's chat template, if it has one.
            most: tokens after which the answer is cut.
            lines: that are enough; blank ones do not count.

        Raises:
            PromptTooLong: the model has no room for the prompt and the answer.
            ModelError: the chat template cannot be used, or the model gives no numbers.
        """
        try:
            with quiet():
                if self.tokenizer.chat_template:
                    message = [{"role": "user", "content": prompt}]
                    filled = self.tokenizer.apply_chat_template(
                        message, add_generation_prompt=True, tokenize=True, return_dict=True
                    )
                    ids = list(filled["input_ids"])
                else:
                    ids = list(self.tokenizer(prompt)["input_ids"])
        except Exception as error:  # raised by jinja, or by the template itself
            raise ModelError(self.name, f"its chat template cannot be used ({first_line(error)})") from error
        if len(ids) + most > self.room:
            what = f"reads {self.room:,} tokens; the prompt has {len(ids):,}, and the answer may have {most:,}"
            raise PromptTooLong(self.name, what, "lower 'max_chars' or 'max_tokens'")
        text, written, past = "", list[int](), None
        step = torch.tensor([ids], device=self.model.device)
        with torch.inference_mode():
            for _ in range(most):
                out = self.model(input_ids=step, past_key_values=past, use_cache=True, logits_to_keep=1)
                scores, past = out.logits[0, -1].float(), out.past_key_values
                token = int(scores.argmax())
                if not torch.isfinite(scores[token]):
                    raise ModelError(self.name, f"gives no number after {prompt[-40:]!r}", "are its weights whole?")
                if token in self.ends:
                    return text, True
                written.append(token)
                text = self.tokenizer.decode(written, skip_special_tokens=True)
                if text.endswith("\n") and sum(bool(line.strip()) for line in text.splitlines()) >= lines:
                    return text, True
                step = torch.tensor([[token]], device=self.model.device)
        return text, False
