"""A scripted engine of which one guard reads cooking in texts that say "cook", and nothing in others."""

from guards.core.verdict import Reading
from server.engines.base import GuardInfo, GuardScore
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import guard, score

COOKING = guard("c", skill="cooking")
PYTHON = guard("p", skill="python")


class Cook(ScriptedEngine):
    """`read` are the prompts it judged. `broken` guards give no reading of texts that say "break"."""

    def __init__(self, guards: tuple[GuardInfo, ...] = (COOKING, PYTHON), max_model_tokens: int = 4096) -> None:
        super().__init__(guards=guards, max_model_tokens=max_model_tokens)
        self.read: list[str] = []

    async def check(self, prompt_token_ids: tuple[int, ...], request_id: str) -> tuple[GuardScore, ...]:
        await super().check(prompt_token_ids, request_id)
        text = bytes(prompt_token_ids).decode()
        self.read.append(text)
        found = [
            score(of, Reading.INSIDE if of.name == COOKING.name and "cook" in text else Reading.OUTSIDE)
            for of in self.info.guards
        ]
        return tuple(found[1:] if "break" in text else found)
