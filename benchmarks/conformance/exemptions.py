"""Tests of other projects that do not apply to this server, and why. They are run all the same; one that passes counts."""

from benchmarks.conformance.judging import Exempt

_CHAT, _TEXT = "*/chat/test_completions.py::*", "*/api_resources/test_completions.py::*"
_MODELS, _RESPONSES = "*/test_models.py::*", "*/test_responses.py::*"

OPENAI_SDK = (
    Exempt(
        "Chat completions and responses are not stored, so there is none to retrieve, change, list, delete or cancel.",
        (
            *(f"{_CHAT}_{verb}[[]*" for verb in ("retrieve", "update", "list", "list_with_all_params", "delete")),
            *(f"{_RESPONSES}_{verb}*" for verb in ("retrieve", "delete", "cancel")),
        ),
    ),
    Exempt("Callers cannot delete the served model.", (f"{_MODELS}_delete[[]*",)),
    Exempt(
        "One request with every field there is: audio, web search, background, moderation and suffix are refused by name.",
        tuple(f"{tests}_create_with_all_params_*" for tests in (_CHAT, _TEXT, _RESPONSES)),
    ),
    Exempt(
        "A response of no model and no input, which OpenAI takes for a prompt that it has stored.",
        (f"{_RESPONSES}_create_overload_*",),
    ),
    Exempt("Compaction of a response into an encrypted item is not served.", (f"{_RESPONSES}_compact*",)),
)
VLLM: tuple[Exempt, ...] = ()
