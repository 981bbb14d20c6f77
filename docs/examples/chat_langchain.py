"""LangChain: an answer, a stream, and an abstention, which `response_metadata` tells from an answer.

pip install langchain-openai
python docs/examples/chat_langchain.py
"""

import os

from langchain_openai import ChatOpenAI
from pydantic import SecretStr

url, key = os.environ.get("SKILLGUARD_URL", "http://127.0.0.1:8000"), os.environ.get("SKILLGUARD_KEY", "unused")
model = ChatOpenAI(base_url=f"{url}/v1", api_key=SecretStr(key), model="skillguard-demo", temperature=0)

print("".join(str(chunk.content) for chunk in model.stream("What is the capital of France?")))
answer = model.invoke("What is 23 plus 58?")
print(answer.response_metadata["finish_reason"], "|", answer.content)
