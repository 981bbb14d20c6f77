"""Tests of other projects that do not apply to this server, and why. They are run all the same; a pass counts."""

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
        "One request with every field there is: audio, web search, background, moderation, suffix are refused by name.",
        tuple(f"{tests}_create_with_all_params_*" for tests in (_CHAT, _TEXT, _RESPONSES)),
    ),
    Exempt(
        "A response of no model and no input, which OpenAI takes for a prompt that it has stored.",
        (f"{_RESPONSES}_create_overload_*",),
    ),
    Exempt("Compaction of a response into an encrypted item is not served.", (f"{_RESPONSES}_compact*",)),
)
_ANSWERS = "*/openai/test_completion.py::"
_CHATS = "*/openai/test_chat.py::"
VLLM = (
    Exempt("No LoRA adapters are served: a guard is bound to one set of weights.", ("*zephyr-lora*", "*_lora_*")),
    Exempt(
        "The model's: the demo ends its answers sooner, knows nothing of what is asked, or has fewer tokens and less "
        "context than the model that the test was written for.",
        (
            *(f"{_ANSWERS}test_{name}[[]*" for name in ("single_completion", "completion_streaming")),
            *(f"{_ANSWERS}test_{name}[[]*" for name in ("parallel_streaming", "allowed_token_ids")),
            f"{_ANSWERS}test_echo_stream_completion*",
            *(f"{_CHATS}test_{name}[[]*" for name in ("single_chat_session", "complex_message_content")),
            *(f"{_CHATS}test_response_format_json_{name}[[]*" for name in ("object", "schema")),
            f"{_CHATS}test_more_than_one_prompt_logprobs_chat*",
            "*/test_chunked_prompt.py::*",
            "*/test_basic.py::test_request_cancellation*",
            *(f"*/test_tokenization.py::test_{name}[[]*" for name in ("tokenize_completions", "tokenize_chat")),
            "*/test_tokenization.py::test_tokenize_with_return_token_strs*",
        ),
    ),
    Exempt(
        "A chunk of its own says how an answer ended, as in OpenAI's API; the test wants text in the last one.",
        (f"{_CHATS}test_chat_streaming*", f"{_CHATS}test_chat_completion_stream_options*"),
    ),
    Exempt(
        "The older names guided_choice, guided_json and the like, which vLLM 0.32 no longer honours; the 400 names "
        "structured_outputs.",
        ("*::test_guided_*",),
    ),
    Exempt(
        "Refused by name: beam search, tokens shown as ids, roles of the caller's own, echo and continue_final_message "
        "in chats.",
        (
            f"{_ANSWERS}test_batch_completions*",
            "*/test_return_tokens_as_ids.py::*",
            f"{_CHATS}test_custom_role*",
            "*/test_chat_echo.py::*",
        ),
    ),
    Exempt(
        "A 400 as wanted, in other words.",
        (f"{_CHATS}test_long_seed*", "*/test_prompt_validation.py::*", f"{_ANSWERS}test_added_lora_tokens_base_model*"),
    ),
    Exempt(
        "Of vLLM's own server: its version and load, its description of adapters and of the tokenizer, and the route "
        "for one cloud.",
        (
            *(f"*/test_basic.py::test_{name}*" for name in ("show_version", "server_load")),
            "*::test_invocations*",
            "*/test_models.py::*",
            "*/test_tokenization.py::test_tokenizer_info_*",
        ),
    ),
    Exempt(
        "Tools need the vLLM engine and a chat template that shows them.",
        (
            f"{_CHATS}test_named_tool_use*",
            "*/test_chat_with_tool_reasoning.py::*",
            "*/test_completion_with_function_calling.py::*",
            "*/test_tokenization.py::test_tokenize_chat_with_tools*",
        ),
    ),
)
