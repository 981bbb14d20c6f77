"""Engine outcomes as OpenAI objects, for whole answers and for streams."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from server.engines.base import EngineRequest, Finish, FinishReason
from server.engines.tools import Parsed, PlainText, ToolCallParser
from server.generation import Answer
from server.openai.abstention import Abstention
from server.openai.shapes import AnswerShape


@dataclass(frozen=True)
class AnswerJob:
    """One HTTP request for answers, ready to run."""

    id: str
    created: int
    model: str
    requests: tuple[EngineRequest, ...]
    """In the order of choices: all answers to the first prompt, then all to the second."""
    answers_per_prompt: int
    wants_logprobs: bool
    wants_usage_chunk: bool
    shape: AnswerShape
    abstention: Abstention
    parser: Callable[[], ToolCallParser] = PlainText
    """Makes what tells calls from text, one for each answer."""

    def envelope(self, object_name: str, choices: Sequence[dict[str, object]]) -> dict[str, object]:
        """What every object of this job has around its choices."""
        return {
            "id": self.id,
            "object": object_name,
            "created": self.created,
            "model": self.model,
            "choices": list(choices),
        }

    def usage(self, finishes: Sequence[Finish]) -> dict[str, object]:
        """Token counts as really spent, withheld answers too. A prompt counts once, however many answers it has."""
        prompt = sum(finish.prompt_tokens for finish in finishes[:: self.answers_per_prompt])
        completion = sum(finish.completion_tokens for finish in finishes)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }

    def chunk(self, choice: dict[str, object]) -> dict[str, object]:
        """One chunk of a stream. A caller who asked for usage finds the key in every chunk, null until the last."""
        chunk = self.envelope(self.shape.chunk_object, [choice])
        return {**chunk, "usage": None} if self.wants_usage_chunk else chunk

    def usage_chunk(self, finishes: Sequence[Finish]) -> dict[str, object]:
        """The chunk without choices that ends a stream whose caller asked for usage."""
        return {**self.envelope(self.shape.chunk_object, []), "usage": self.usage(finishes)}

    def ending(self, finish: Finish, called: bool) -> dict[str, object]:
        """How a choice ended: `finish_reason` and, where a guard ended it, `guard`. `called`: it holds tool calls."""
        reason = self.abstention.finish_reason(finish.reason)
        if called and finish.reason is FinishReason.STOP:
            reason = "tool_calls"
        ending: dict[str, object] = {"finish_reason": reason}
        if (hit := finish.abstained_on) is not None:
            ending["guard"] = self.abstention.guard(hit)
        return ending

    def whole(self, answers: Sequence[Answer]) -> dict[str, object]:
        """The body of an answer that is not streamed. Raises AbstainedError under the style `error`."""
        choices = [self._choice(index, answer) for index, answer in enumerate(answers)]
        usage = self.usage([answer.finish for answer in answers])
        return {**self.envelope(self.shape.whole_object, choices), "usage": usage}

    def _choice(self, index: int, answer: Answer) -> dict[str, object]:
        hit = answer.finish.abstained_on
        if hit is not None:
            self.abstention.refuse_if_error_style(hit)
            parsed, logprobs = Parsed(self.abstention.text), None
        else:
            parsed = self.parser().whole(answer.text)
            logprobs = answer.logprobs if self.wants_logprobs else None
        as_refusal = hit is not None and self.abstention.as_refusal
        body = self.shape.whole(parsed, logprobs=logprobs, as_refusal=as_refusal)
        return {"index": index, **body, **self.ending(answer.finish, called=bool(parsed.calls))}
