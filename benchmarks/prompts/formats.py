"""The formats of the transfer benchmark: frames, turns, worked examples, and instructions in seven languages."""

from benchmarks.prompts.items import Around, Format, Item, framed, worded
from guards.model.frames import BARE_FRAME, CHAT_FRAME

ENGLISH = frozenset({"language-en"})

CHAT = framed("chat", CHAT_FRAME)
BARE = framed("bare", BARE_FRAME)
QA = framed("qa", "Q: {text}\nA:")
CHAT_TURNS = Format(
    "chat-turns",
    lambda item, _: item.text,
    earlier=({"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hello! How can I help?"}),
)
SOLVE = worded("solve", "Solve the following problem.\n\n{text}\n\nSolution:", arguable=ENGLISH)


def worked(item: Item) -> str:
    """One worked example. Raises ValueError for a text that asks nothing."""
    if item.answer is None:
        raise ValueError(f"got a text without an answer, wanted a worked example: {item.text[:60]!r}")
    return f"Q: {item.text}\nA: {item.answer}\n\n"


def few_shot(count: int, name: str = "") -> Format:
    """`count` worked examples of the same material in front of the question, in one message."""

    def render(item: Item, around: Around) -> str:
        return "".join(map(worked, around.rng.sample(around.shots, count))) + f"Q: {item.text}\nA:"

    return Format(name or f"few-shot-{count}", render, shots=count)


FEW_SHOT = few_shot(2)

INSTRUCTIONS = {
    "en": "Answer the following question.\n\n{text}\n\nAnswer:",
    "es": "Responde a la siguiente pregunta.\n\n{text}\n\nRespuesta:",
    "de": "Beantworte die folgende Frage.\n\n{text}\n\nAntwort:",
    "zh": "请回答下面的问题。\n\n{text}\n\n回答：",  # noqa: RUF001
    "hi": "निम्नलिखित प्रश्न का उत्तर दीजिए।\n\n{text}\n\nउत्तर:",
    "vi": "Hãy trả lời câu hỏi sau.\n\n{text}\n\nTrả lời:",
    "ar": "أجب عن السؤال التالي.\n\n{text}\n\nالإجابة:",  # noqa: RUF001
}
INSTRUCTED = {
    language: worded(f"instruction-{language}", template, arguable=frozenset({f"language-{language}"}))
    for language, template in INSTRUCTIONS.items()
}

FORMATS = {form.name: form for form in (CHAT, BARE, QA, CHAT_TURNS, SOLVE, FEW_SHOT, *INSTRUCTED.values())}
