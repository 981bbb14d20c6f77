"""What end-to-end tests ask the served demo, through the official client."""

from collections.abc import Callable

import openai

MATHEMATICS = ("What is 23 plus 58?", "Tom has 12 apples and buys 7 more. How many apples does Tom have?")
KEPT = {
    "What is the capital of France?": "Paris",
    "Write a Python function that returns the sum of a list.": "def ",
    "How do you say 'water' in Spanish?": "agua",
}

Ask = Callable[[openai.OpenAI, str], tuple[str, str]]


def ask(client: openai.OpenAI, question: str) -> tuple[str, str]:
    answer = client.chat.completions.create(
        model="skillguard-demo", messages=[{"role": "user", "content": question}], temperature=0
    )
    return answer.choices[0].finish_reason, answer.choices[0].message.content or ""


def ask_streaming(client: openai.OpenAI, question: str) -> tuple[str, str]:
    stream = client.chat.completions.create(
        model="skillguard-demo", messages=[{"role": "user", "content": question}], temperature=0, stream=True
    )
    reason, text = "", ""
    for chunk in stream:
        reason = chunk.choices[0].finish_reason or reason
        text += chunk.choices[0].delta.content or ""
    return reason, text
