"""POST /v1/responses: OpenAI's Responses API, without a memory. What it says becomes a chat, and a chat's answer is
told in its words; prompt, guards, policies and all that is held back are those of chat completions."""
