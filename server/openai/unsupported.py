"""Fields of OpenAI's and vLLM's requests that this server knows and does not honour.

A field that were accepted and ignored would let a caller believe in it, so each is a 400 that names it. One rule says
what is let through: a value that asks for what happens anyway, or that asks nothing of the answer. So does null, of
whatever field. Clients send those by default.
"""

from collections.abc import Collection, Mapping

from server.openai.invalid import refused_option

Neutral = Mapping[str, tuple[object, ...] | None]
"""Field -> the values besides null that change nothing; None where no value does."""
ANY_VALUE = None

IN_GENERATION: Neutral = {
    # what tools were once called
    "functions": ([],),
    "function_call": ("none", "auto"),
    # the shape of the answer
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_decoding_backend": (),
    "guided_whitespace_pattern": (),
    "modalities": (["text"],),
    "audio": (),
    "prediction": ANY_VALUE,
    "verbosity": ("medium",),
    "include_reasoning": (True,),
    "thinking_token_budget": (),
    "web_search_options": (),
    # how tokens are drawn
    "typical_p": (1,),
    "length_penalty": (1,),
    "use_beam_search": (False,),
    "early_stopping": (False,),
    "watermarking": (),
    "repetition_detection": (),
    "logits_processors": ([],),
    # the prompt, and what would be shown of it
    "suffix": ("",),
    "prompt_embeds": (),
    "truncate_prompt_tokens": (),
    "truncation_side": (),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "chat_template": (),
    "documents": ([],),
    "mm_processor_kwargs": ({},),
    "media_io_kwargs": ({},),
    "mm_payload": ("tensors",),
    "return_mm_kwargs": (False,),
    "return_prompt_text": (False,),
    "return_token_ids": (False,),
    "return_token_offsets": (False,),
    "return_tokens_as_token_ids": (False,),
    "logprob_token_ids": ([],),
    "routed_experts_prompt_start": (0,),
    # storage, accounts and scheduling
    "store": ANY_VALUE,
    "metadata": ANY_VALUE,
    "request_id": ANY_VALUE,
    "service_tier": ("auto", "default"),
    "cache_control": ANY_VALUE,
    "prompt_cache_key": ANY_VALUE,
    "prompt_cache_options": ANY_VALUE,
    "prompt_cache_retention": ANY_VALUE,
    "cache_salt": (),
    "priority": (0,),
    "session_id": (),
    "stream_interval": (),
    "ec_transfer_params": ({},),
    "kv_transfer_params": ({},),
    "vllm_xargs": ({},),
}

IN_CHAT: Neutral = {
    **IN_GENERATION,
    "echo": (False,),
    "add_special_tokens": (False,),
    "best_of": (1,),
}

IN_COMPLETION: Neutral = {
    **IN_GENERATION,
    "moderation": (),
    "chat_template_kwargs": ({},),
    "reasoning_effort": ("none",),
    "add_special_tokens": (True,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": ANY_VALUE,
}

IN_RESPONSES: Neutral = {
    # `metadata` is honoured there: it is given back
    **{name: neutral for name, neutral in IN_GENERATION.items() if name != "metadata"},
    "add_special_tokens": (False,),
    # answers are not stored, so none can be continued, read later or written while nobody waits
    "store": (False,),
    "previous_response_id": (),
    "conversation": (),
    "background": (False,),
    "prompt": (),
    "previous_input_messages": ([],),
    "context_management": ([],),
    "truncation": ("disabled",),
    "max_tool_calls": ANY_VALUE,
    "enable_response_messages": (False,),
    "access_programs": (),
    "image": ({},),
    # other endpoints' names
    "messages": (),
    "n": (1,),
    "best_of": (1,),
    "max_tokens": (),
    "max_completion_tokens": (),
    "response_format": ({"type": "text"},),
    "reasoning_effort": ("none",),
    "logprobs": (False,),
    "prompt_logprobs": (),
    "echo": (False,),
}

IN_REASONING: Neutral = {
    "summary": (),
    "generate_summary": (),
    "context": ("auto",),
    "mode": ("standard",),
}

IN_TEXT_OPTIONS: Neutral = {"verbosity": ("medium",)}

IN_TOOL: Neutral = {"cache_control": ANY_VALUE}

IN_MESSAGE: Neutral = {
    # what the model would have to be shown beside the text
    "audio": (),
    "images": ([],),
    "videos": ([],),
    # the beginning of the answer
    "prefix": (False,),
    "partial": (False,),
}

_INSTEAD = {
    "previous_response_id": "answers are not stored here: send the whole conversation as 'input'",
    "conversation": "conversations are not stored here: send the whole conversation as 'input'",
    "store": "answers are not stored here: leave it out, or send false",
    "messages": "use 'input' instead",
    "max_tokens": "use 'max_output_tokens' instead",
    "max_completion_tokens": "use 'max_output_tokens' instead",
    "response_format": "use 'text' instead",
    "functions": "use 'tools' instead",
    "function_call": "use 'tools' and 'tool_choice' instead",
    **{name: "use 'structured_outputs' instead" for name in IN_GENERATION if name.startswith("guided_")},
}

IN_STRUCTURED_OUTPUTS: Neutral = {
    "structural_tag": (),
    "whitespace_pattern": (),
    "disable_any_whitespace": (False,),
    "disable_additional_properties": (False,),
}

IN_TOKENIZE: Neutral = {
    "continue_final_message": (False,),
    **{name: IN_GENERATION[name] for name in ("chat_template", "documents")},
    **{name: IN_GENERATION[name] for name in ("media_io_kwargs", "mm_processor_kwargs")},
}

IN_STREAM_OPTIONS: Neutral = {"include_obfuscation": (False,)}
IN_RESPONSES_STREAM_OPTIONS: Neutral = {
    **IN_STREAM_OPTIONS,
    "include_usage": ANY_VALUE,
    "continuous_usage_stats": (False,),
}
IN_RESPONSES_TOOL: Neutral = {
    **IN_TOOL,
    "allowed_callers": (["direct"],),
    "async": (False,),
    "defer_loading": (False,),
    "output_schema": (),
}


def drop_neutral(body: object, known: Neutral, fields: Collection[str]) -> object:
    """The body without what asks for nothing: of `known`, neutral values, and null of what is no field of it.

    A field of `known` that asks for something is refused by name. Of unknown names only the first is left, which is
    enough to refuse the body by: an error for each of many thousand would stop the event loop.
    """
    if not isinstance(body, dict):
        return body
    for name in body:
        if name in known and not _is_neutral(body[name], known[name]):
            instead = _INSTEAD.get(name, "leave it out")
            raise refused_option(name, f"This server does not honour '{{field}}'; {instead}.")
    unknown = (name for name, value in body.items() if name not in fields and name not in known and value is not None)
    first = next(unknown, None)
    return {name: value for name, value in body.items() if name in fields or name == first}


def _is_neutral(value: object, neutral: tuple[object, ...] | None) -> bool:
    if value is None or neutral is None:
        return True
    # Python's False == 0, JSON's is not.
    return any(isinstance(value, bool) == isinstance(other, bool) and value == other for other in neutral)
