"""Errors of the engines."""

from guards.errors import SkillguardError


class EngineError(SkillguardError):
    """The engine could not serve a request, or died. Root of the engine errors below."""


class EngineBusyError(EngineError):
    """The queue is full. `retry_after_seconds` is a hint for the caller."""

    def __init__(self, message: str, retry_after_seconds: int = 1) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class PromptTooLongError(EngineError):
    """Prompt and answer do not fit into the model's context."""


class PromptError(EngineError):
    """The prompt cannot be turned into token ids: empty, or refused by the chat template."""


class UnsupportedOptionError(EngineError):
    """The request asks for something this engine cannot honour. `param` is the field's name."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


class InvalidOptionError(EngineError):
    """An option's value is nothing that this model or engine can work with. `param` is the field of `Sampling`."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


class EngineFlagError(EngineError):
    """A flag is unknown to the engine, malformed, or asks for what guards do not stand. Raised before anything runs."""


class EngineStoppedError(EngineError):
    """The engine is stopping, or its loop died: nothing can be generated any more."""
