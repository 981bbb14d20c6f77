"""Engine outcomes as OpenAI objects, for whole answers and for streams."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from server.engines.events import Finish, FinishReason, PromptToken
from server.engines.request import EngineRequest
from server.engines.tools import Parsed, PlainText, ToolCallParser
from server.generation import Answer
from server.openai.abstention import Abstention
from server.openai.moderation import BothSides
from server.openai.prompts import Echo, TokenRow, prompt_logprobs, stand_in_row
from server.openai.shapes import AnswerShape, CompletionShape, token_rows


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
    prompt_logprobs: int | None
    """Alternatives told of each token of a prompt, in vLLM's form; None where that is not asked for."""
    wants_usage_chunk: bool
    wants_usage_everywhere: bool
    shape: AnswerShape
    abstention: Abstention
    parser: Callable[[], ToolCallParser] = PlainText
    """Makes what tells calls from text, one for each answer."""
    echoes: tuple[Echo, ...] = ()
    """The prompt of each request, where it is to come back."""
    moderation: BothSides | None = None
    """What makes the answer's `moderation`, where that is asked for."""
    only_prompts: bool = False
    """Whether nothing is asked for beside the prompts; what is drawn is then not told."""

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
        return _counts(prompt, completion)

    def chunk(self, choice: dict[str, object], index: int, tokens: int) -> dict[str, object]:
        """One chunk of a stream: of the index-th choice, of which so many tokens were sent.

        A caller who asked for usage finds the key in every chunk: null until the last, or what the choice spent so far.
        """
        chunk = self.envelope(self.shape.chunk_object, [choice])
        if not self.wants_usage_chunk:
            return chunk
        prompt = len(self.requests[index].prompt_token_ids)
        return {**chunk, "usage": _counts(prompt, tokens) if self.wants_usage_everywhere else None}

    def usage_chunk(self, finishes: Sequence[Finish]) -> dict[str, object]:
        """The chunk without choices that ends a stream whose caller asked for usage."""
        return {**self.envelope(self.shape.chunk_object, []), "usage": self.usage(finishes)}

    def moderation_chunk(self, finishes: Sequence[Finish]) -> dict[str, object]:
        """The chunk without choices that tells what guards made of a stream, whose caller asked for that."""
        assert self.moderation is not None, "it was asked for"
        chunk = {**self.envelope(self.shape.chunk_object, []), "moderation": self.moderation.told(finishes)}
        return {**chunk, "usage": None} if self.wants_usage_chunk else chunk

    def ending(self, finish: Finish, called: bool) -> dict[str, object]:
        """How a choice ended: `finish_reason` and, where a guard ended it, `guard`. `called`: it holds tool calls."""
        reason = self.abstention.finish_reason(finish.reason)
        if called and finish.reason is FinishReason.STOP:
            reason = "tool_calls"
        ending: dict[str, object] = {"finish_reason": reason}
        if (hit := finish.abstained_on) is not None:
            ending["guard"] = self.abstention.guard(hit)
        elif (hits := finish.withheld_in_prompt) is not None:
            ending["guard"] = self.abstention.withheld(hits)
        return ending

    def whole(self, answers: Sequence[Answer]) -> dict[str, object]:
        """The body of an answer that is not streamed. Raises AbstainedError under the style `error`."""
        choices = [self._choice(index, answer) for index, answer in enumerate(answers)]
        finishes = [answer.finish for answer in answers]
        whole = {**self.envelope(self.shape.whole_object, choices), "usage": self.usage(finishes)}
        if self.moderation is not None:
            whole["moderation"] = self.moderation.told(finishes)
        if not self.shape.prompt_of_each:
            told = next((answer for answer in answers if answer.prompt), answers[0])
            whole["prompt_logprobs"] = self._prompt_logprobs(told)
        return whole

    def echo(self, index: int, prompt: Sequence[PromptToken]) -> tuple[str, list[TokenRow] | None]:
        """The prompt that a choice begins with, if any, and what is told of its tokens."""
        if not self.echoes:
            return "", None
        return self.echoes[index].text, self.echoes[index].rows(prompt, self.abstention.text)

    def _prompt_logprobs(self, answer: Answer) -> list[dict[str, object] | None] | None:
        """Null where they were not asked for, as in vLLM's answers."""
        if self.prompt_logprobs is None or not answer.prompt:
            return None
        return prompt_logprobs(answer.prompt, self.prompt_logprobs)

    def _choice(self, index: int, answer: Answer) -> dict[str, object]:
        hit = answer.finish.abstained_on
        if hit is not None:
            self.abstention.refuse_if_error_style(hit)
            parsed, logprobs = Parsed(self.abstention.text), None
        elif self.only_prompts:
            parsed, logprobs = Parsed(""), answer.logprobs[:0] if self.wants_logprobs else None
        else:
            parsed = self.parser().whole(answer.text)
            logprobs = answer.logprobs if self.wants_logprobs else None
        as_refusal = hit is not None and self.abstention.as_refusal
        body = self.shape.whole(parsed, logprobs=logprobs, as_refusal=as_refusal)
        if isinstance(self.shape, CompletionShape) and self.echoes:
            text, rows = self.echo(index, answer.prompt)
            if rows is not None and hit is not None and not self.only_prompts:
                rows.append(stand_in_row(self.abstention.text))
            body = self.shape.text(text + parsed.content, None if rows is None else [*rows, *token_rows(logprobs)])
        if self.shape.prompt_of_each:
            body["prompt_logprobs"] = self._prompt_logprobs(answer)
        return {"index": index, **body, **self.ending(answer.finish, called=bool(parsed.calls))}


def _counts(prompt: int, completion: int) -> dict[str, object]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
