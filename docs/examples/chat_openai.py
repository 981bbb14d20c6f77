"""OpenAI's SDK: an answer, an abstention, a stream, and what the guards make of a text that is not answered.

pip install openai
python docs/examples/chat_openai.py
"""

import os

import openai

url, key = os.environ.get("SKILLGUARD_URL", "http://127.0.0.1:8000"), os.environ.get("SKILLGUARD_KEY", "unused")
client = openai.OpenAI(base_url=f"{url}/v1", api_key=key)
model = client.models.list().data[0].id

for question in ("What is the capital of France?", "What is 23 plus 58?"):
    choice = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], temperature=0
    ).choices[0]
    print(choice.finish_reason, "|", choice.message.content)

stream = client.chat.completions.create(
    model=model, messages=[{"role": "user", "content": "What is the capital of Italy?"}], temperature=0, stream=True
)
print("".join(chunk.choices[0].delta.content or "" for chunk in stream))

for text in ("What is 23 plus 58?", "Where is Rome?"):
    result = client.moderations.create(input=text).results[0]
    print(text, result.flagged, result.categories.model_extra, result.category_scores.model_extra)
