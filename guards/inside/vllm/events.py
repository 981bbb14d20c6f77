"""What the worker tells the scheduler of a step, and the scheduler the engine's front: rows that say something.

A row is worth telling in full when it is a prompt's last token, or when a guard's reading is anything but OUTSIDE. Of
any other row only what interventions did is told, where they did anything; else silence says that every guard read
OUTSIDE.
"""

from typing import Any, NamedTuple

EVENTS = "skillguard_events"
"""Attribute of vLLM's ModelRunnerOutput: the step's `StepReport`. Its absence says that nothing was judged."""
STOP_REASON = "skillguard"
"""vLLM's `stop_reason` of an answer whose token was withheld."""
ROW_KEY = "skillguard"
"""Under which a RowReport travels in `kv_transfer_params`."""
ACTED_KEY = "skillguard_acted"
"""Under which what interventions did at a row without a RowReport does."""
PROMPT_KEY = "skillguard_prompt"
"""Under which a PromptReport does."""
POLICY = "skillguard_policy"
"""Key of `SamplingParams.extra_args`: the request's policy, as `Policy.text` writes it."""
PROOF = "skillguard_proof"
"""Another: the request is a canary's, which does not wait behind others."""


class RowReport(NamedTuple):
    """One row. `generated`: tokens drawn before it. `entries`: as `Columns` has them. `withheld`: no token went out."""

    generated: int
    entries: tuple[float, ...]
    withheld: bool

    def dump(self) -> dict[str, Any]:
        """For vLLM's message format."""
        return {ROW_KEY: [self.generated, list(self.entries), self.withheld]}


class Acted(NamedTuple):
    """What each intervention did at a row that is not told in full, in their order."""

    generated: int
    amounts: tuple[float, ...]


class PromptReport(NamedTuple):
    """A whole prompt whose log-probabilities were asked for: how many of its positions were judged, the last left out.

    `rows`: position and entries, of those worth telling.
    """

    judged: int
    rows: tuple[tuple[int, tuple[float, ...]], ...]


class StepReport(NamedTuple):
    """One step: the requests whose rows were judged, and what was worth telling of them."""

    judged: frozenset[str]
    rows: dict[str, RowReport]
    acted: dict[str, Acted]
    """Of rows that are not among those; rows at which no intervention did anything are left out."""
    prompts: dict[str, PromptReport] = {}  # noqa: RUF012  nobody changes it
    """Of requests that asked, with the row of their prompt's end."""

    def params(self, request_id: str) -> dict[str, Any] | None:
        """What travels with one request's output, for vLLM's message format."""
        told: dict[str, Any] = {}
        if (row := self.rows.get(request_id)) is not None:
            told |= row.dump()
        if (acted := self.acted.get(request_id)) is not None:
            told[ACTED_KEY] = [acted.generated, list(acted.amounts)]
        if (prompt := self.prompts.get(request_id)) is not None:
            told[PROMPT_KEY] = [prompt.judged, [[position, list(entries)] for position, entries in prompt.rows]]
        return told or None


def load_report(params: Any) -> RowReport | None:
    """The row in an output's `kv_transfer_params`, if it holds one."""
    if not isinstance(params, dict) or ROW_KEY not in params:
        return None
    generated, entries, withheld = params[ROW_KEY]
    return RowReport(int(generated), tuple(float(entry) for entry in entries), bool(withheld))


def load_acted(params: Any) -> Acted | None:
    """What interventions did at an output's row, where it is not told in full and they did anything."""
    if not isinstance(params, dict) or ACTED_KEY not in params:
        return None
    generated, amounts = params[ACTED_KEY]
    return Acted(int(generated), tuple(float(amount) for amount in amounts))


def load_prompt(params: Any) -> PromptReport | None:
    """What was judged inside a prompt, if its log-probabilities were asked for."""
    if not isinstance(params, dict) or PROMPT_KEY not in params:
        return None
    judged, rows = params[PROMPT_KEY]
    return PromptReport(int(judged), tuple((int(at), tuple(float(entry) for entry in row)) for at, row in rows))
