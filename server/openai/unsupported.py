"""Fields of OpenAI's and vLLM's requests that this server knows and does not honour.

A field that were accepted and ignored would let a caller believe in it, so each is a 400 that names it. Null, and a
value that asks for what happens anyway, is let through: clients send those by default.
"""

from collections.abc import Mapping

from server.openai.invalid import refused_option

Neutral = Mapping[str, tuple[object, ...]]
"""Field -> the values besides null that change nothing."""

IN_GENERATION: Neutral = {
    # what tools were once called
    "functions": ([],),
    "function_call": ("none",),
    # the shape of the answer
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_decoding_backend": (),
    "guided_whitespace_pattern": (),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "verbosity": (),
    "reasoning_effort": (),
    "include_reasoning": (),
    "thinking_token_budget": (),
    "web_search_options": (),
    # how tokens are drawn
    "typical_p": (1, 1.0),
    "length_penalty": (1, 1.0),
    "use_beam_search": (False,),
    "logits_processors": ([],),
    # the prompt, and what would be shown of it
    "echo": (False,),
    "suffix": ("",),
    "prompt_logprobs": (),
    "truncate_prompt_tokens": (),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "add_special_tokens": (),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "documents": (),
    "mm_processor_kwargs": (),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    # storage, accounts and scheduling
    "store": (False,),
    "metadata": (),
    "moderation": (),
    "service_tier": ("auto",),
    "prompt_cache_key": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
    "cache_salt": (),
    "priority": (0,),
    "kv_transfer_params": (),
    "vllm_xargs": (),
}

IN_COMPLETION: Neutral = {
    **IN_GENERATION,
    "tools": ([],),
    "tool_choice": ("none",),
    "parallel_tool_calls": (),
}

IN_MESSAGE: Neutral = {
    "name": (),
    "audio": (),
    "annotations": ([],),
    "function_call": (),
}

_INSTEAD = {
    "functions": "use 'tools' instead",
    "function_call": "use 'tools' and 'tool_choice' instead, and in messages 'tool_calls'",
    **{name: "use 'structured_outputs' instead" for name in IN_GENERATION if name.startswith("guided_")},
}

IN_STRUCTURED_OUTPUTS: Neutral = {
    "structural_tag": (),
    "whitespace_pattern": (),
    "disable_any_whitespace": (False,),
    "disable_additional_properties": (False,),
}

IN_STREAM_OPTIONS: Neutral = {"include_obfuscation": (False,), "continuous_usage_stats": (False,)}


def drop_neutral(body: object, known: Neutral) -> object:
    """The body without those fields that are not honoured; one that asks for something is refused by name."""
    if not isinstance(body, dict):
        return body
    for name in body:
        if name in known and not _is_neutral(body[name], known[name]):
            instead = _INSTEAD.get(name, "leave it out")
            raise refused_option(name, f"This server does not honour '{{field}}'; {instead}.")
    return {name: value for name, value in body.items() if name not in known}


def _is_neutral(value: object, neutral: tuple[object, ...]) -> bool:
    # Python's False == 0, JSON's is not.
    return value is None or any(type(value) is type(other) and value == other for other in neutral)
