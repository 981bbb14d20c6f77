#!/usr/bin/env bash
# curl: an abstention, a stream, a text's verdicts, OpenAI's moderation, LiteLLM's guardrail, and whether the server is ready.
set -euo pipefail

url=${SKILLGUARD_URL:-http://127.0.0.1:8000}
ask() {
  curl --silent --show-error --fail-with-body "$url$1" \
    -H 'Content-Type: application/json' -H "Authorization: Bearer ${SKILLGUARD_KEY:-unused}" -d "$2"
  echo
}

ask /v1/chat/completions '{"messages": [{"role": "user", "content": "What is 23 plus 58?"}], "temperature": 0}'
ask /v1/chat/completions '{"messages": [{"role": "user", "content": "What is the capital of France?"}], "stream": true, "temperature": 0}'
ask /v1/checks '{"messages": [{"role": "user", "content": "What is 23 plus 58?"}]}'
ask /v1/moderations '{"input": ["What is 23 plus 58?", "Where is Rome?"]}'
ask /beta/litellm_basic_guardrail_api '{"input_type": "response", "texts": ["23 plus 58 is 81."]}'
curl --silent --fail "$url/ready"
