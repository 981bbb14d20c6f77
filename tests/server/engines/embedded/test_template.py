"""A guard is bound to text, not to weights alone: to the chat template and the tokenizer."""

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from guards.artifact.store import read_artifact, write_artifact
from guards.inside.transformers.loading import load_model
from guards.methods.spans.calibrate import calibrate
from guards.methods.spans.options import SpanOptions
from guards.model import rendering
from server.cli.serve import banner
from server.config import ServerConfig
from server.engines.embedded.engine import EmbeddedEngine
from server.engines.options import EmbeddedOptions
from tests.guards.tiny import TEMPLATE, save_tiny, sources
from tests.server.harness import CHAT, CHECKS, COMPLETIONS, RESPONSES, Served, serving

pytestmark = pytest.mark.anyio

GUARDS = {"chat": ("chat",), "text": ("Q: {text}\nA:",)}
"""Name of an artifact -> its frames."""


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and two guards of it. `before` is the first one without messages, as artifacts once were."""
    folder = tmp_path_factory.mktemp("calibrated")
    loaded = load_model(save_tiny(folder / "model"), "cpu")
    for name, frames in GUARDS.items():
        options = SpanOptions(frames=frames, max_false_abstention=0.1, material="none", answers=0, longest=200)
        calibrate(loaded, *sources(), options).save(folder / name, "sums")
    artifact = read_artifact(folder / "chat")
    canaries = tuple(canary.model_copy(update={"messages": None}) for canary in artifact.manifest.canaries)
    write_artifact(folder / "before", artifact.manifest.model_copy(update={"canaries": canaries}), artifact.tensors)
    return folder


@pytest.fixture
def folder(calibrated: Path, tmp_path: Path) -> Path:
    """A copy whose model may be changed."""
    return Path(shutil.copytree(calibrated, tmp_path / "copy"))


def unchanged(model: Path) -> None:
    """The model as it was calibrated."""


def other_template(model: Path) -> None:
    """Another turn in front, as in the security review."""
    (model / "chat_template.jinja").write_text(TEMPLATE.replace("{% for", "Q: hello\nA: hello\n{% for", 1))


def refusing_template(model: Path) -> None:
    (model / "chat_template.jinja").write_text("{{ raise_exception('not today') }}")


def comment_in_template(model: Path) -> None:
    """Other bytes, which render the same."""
    (model / "chat_template.jinja").write_text("{# a comment #}" + TEMPLATE)


def _configure(model: Path, **changes: Any) -> None:
    path = model / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def other_bos_token(model: Path) -> None:
    """It is in no digest; the template writes it."""
    _configure(model, bos_token="<eos>")


def added_tokens(model: Path) -> None:
    """A plus and its digit become one token."""
    flags = dict.fromkeys(("special", "lstrip", "rstrip", "normalized", "single_word"), False)
    _configure(model, added_tokens_decoder={str(50 + d): {"content": f"+{d}", **flags} for d in range(10)})


def engine(folder: Path, *names: str, accept_template: bool = False) -> Any:
    artifacts = tuple(folder / name for name in names)
    return EmbeddedEngine(
        EmbeddedOptions(model=str(folder / "model"), artifacts=artifacts, device="cpu", accept_template=accept_template)
    )


async def shown(served: Served) -> tuple[int, bool, str, str | None]:
    """The status of /ready, and of the one guard: verified, template, reason."""
    (row,) = (await served.client.get("/v1/guards")).json()["data"]
    return (await served.client.get("/ready")).status_code, row["verified"], row["template"], row["reason"]


async def answer(served: Served) -> int:
    body = {"model": "model", "prompt": "Q: 12+34=\nA:", "max_tokens": 1}
    return (await served.post(COMPLETIONS, body)).status_code


@pytest.mark.parametrize(
    ("name", "change"),
    [
        *(("chat", change) for change in (unchanged, comment_in_template)),
        *(("text", change) for change in (unchanged, other_template, other_bos_token)),
        ("before", unchanged),
    ],
)
async def test_what_gives_the_same_ids_is_verified(folder: Path, name: str, change: Callable[[Path], None]) -> None:
    """A guard of texts does not depend on the template."""
    change(folder / "model")
    async with serving(engine(folder, name), anonymous_role="operator") as served:
        assert await shown(served) == (200, True, "verified", None)
        assert await answer(served) == 200
        assert await served.metric(f'skillguard_guard_template_accepted{{guard="{name}"}}') == 0


CHANGED = [
    ("chat", other_template, r"canary 0: its messages gave \d+ token ids, wanted \d+; the first other one is at "),
    ("chat", other_bos_token, r"canary 0: .* the first other one is at 0: got 2, wanted 1: "),
    ("chat", added_tokens, r"canary 0: its messages gave \d+ token ids"),
    ("chat", refusing_template, r"canary 0: its messages gave no token ids \(.*not today.*\), wanted \d+"),
    ("text", added_tokens, r"canary 0: its text gave \d+ token ids"),
    ("before", other_template, r"got chat template \w{12}\.\.\., wanted \w{12}\.\.\. \(SHA-256\): "),
    ("before", comment_in_template, r"got chat template \w{12}\.\.\., wanted "),
]


@pytest.mark.parametrize(("name", "change", "says"), CHANGED)
async def test_what_gives_other_ids_is_not_verified(
    folder: Path, name: str, change: Callable[[Path], None], says: str
) -> None:
    change(folder / "model")
    async with serving(engine(folder, name), anonymous_role="operator") as served:
        status, verified, template, reason = await shown(served)
        assert (status, verified, template) == (503, False, "changed")
        assert re.match(says, str(reason)), reason
        assert str(reason).endswith("calibrate again with it, or take it with --accept-template")
        assert await answer(served) == 503


@pytest.mark.parametrize(("name", "change", "says"), CHANGED)
async def test_an_operator_may_take_it_and_everybody_sees_that(
    folder: Path, caplog: pytest.LogCaptureFixture, name: str, change: Callable[[Path], None], says: str
) -> None:
    change(folder / "model")
    with caplog.at_level(logging.WARNING, "skillguard.server"):
        async with serving(engine(folder, name, accept_template=True), anonymous_role="operator") as served:
            assert await shown(served) == (200, True, "accepted", None)
            assert await answer(served) == 200
            assert await served.metric(f'skillguard_guard_template_accepted{{guard="{name}"}}') == 1
            (said,) = (record.getMessage() for record in caplog.records if "--accept-template" in record.getMessage())
            assert said.startswith(f"guard {name} was calibrated with another chat template or tokenizer")
            settings = (ServerConfig(), EmbeddedOptions(model="model"))
            assert f"  note   {said}\n" in banner(served.readiness, "http://test", *settings)


async def test_token_ids_are_still_verified_under_the_operators_flag(folder: Path) -> None:
    other_template(folder / "model")
    artifact = read_artifact(folder / "chat")
    first, *rest = artifact.manifest.canaries
    canaries = (first.model_copy(update={"fires": not first.fires}), *rest)
    write_artifact(folder / "chat", artifact.manifest.model_copy(update={"canaries": canaries}), artifact.tensors)
    async with serving(engine(folder, "chat", accept_template=True), anonymous_role="operator") as served:
        status, verified, template, reason = await shown(served)
        assert (status, verified, template) == (503, False, "accepted")
        assert str(reason).startswith("canary 0: got a guard that")


async def test_the_flag_changes_nothing_where_nothing_differs(folder: Path) -> None:
    async with serving(engine(folder, "chat", accept_template=True), anonymous_role="operator") as served:
        assert await shown(served) == (200, True, "verified", None)


async def test_a_guard_that_nothing_binds_says_so(folder: Path) -> None:
    artifact = read_artifact(folder / "text")
    canaries = tuple(canary.model_copy(update={"text": None}) for canary in artifact.manifest.canaries)
    write_artifact(folder / "text", artifact.manifest.model_copy(update={"canaries": canaries}), artifact.tensors)
    async with serving(engine(folder, "text"), anonymous_role="operator") as served:
        assert await shown(served) == (200, True, "unbound", None)


THINKING = TEMPLATE + "{% if enable_thinking is defined and not enable_thinking %}.\n{% endif %}"
"""As Qwen3's: what a request says of thinking changes what is written behind the question."""
ON, OFF = {"enable_thinking": True}, {"enable_thinking": False}


def thinking_engine(folder: Path, *names: str, **options: Any) -> Any:
    (folder / "model" / "chat_template.jinja").write_text(THINKING)
    artifacts = tuple(folder / name for name in names)
    return EmbeddedEngine(EmbeddedOptions(model=str(folder / "model"), artifacts=artifacts, device="cpu", **options))


async def asked(served: Served, **fields: Any) -> tuple[int, str | None]:
    """Status and field of the error, the same in the Responses API and where a prompt is only checked or counted."""
    messages = [{"role": "user", "content": "1+2="}]
    answered = await served.post(CHAT, {"model": "model", "messages": messages, "max_tokens": 1, **fields})
    param = None if answered.status_code == 200 else answered.json()["error"]["param"]
    reasoning = {"effort": fields.get("reasoning_effort")}
    said = {name: value for name, value in fields.items() if name != "reasoning_effort"}
    response = await served.post(RESPONSES, {"model": "model", "input": messages, "reasoning": reasoning, **said})
    assert response.status_code == answered.status_code
    assert param is None or response.json()["error"]["param"] == param
    if "reasoning_effort" not in fields:
        for path in CHECKS, "/tokenize":
            told = await served.post(path, {"model": "model", "messages": messages, **fields})
            assert told.status_code == answered.status_code
    return answered.status_code, param


async def test_a_request_does_not_change_what_guards_were_calibrated_for(folder: Path) -> None:
    async with serving(thinking_engine(folder, "chat"), anonymous_role="operator") as served:
        assert await shown(served) == (200, True, "verified", None)
        for same in ({}, ON, {"other": "<eos>"}, {"other": [1, {"a": None}]}):
            assert await asked(served, chat_template_kwargs=same) == (200, None)
        assert await asked(served, reasoning_effort="high") == (200, None)
        refused = (400, "chat_template_kwargs")
        for other in (OFF, {**OFF, "other": 1}, {"enable_thinking": 0}):
            assert await asked(served, chat_template_kwargs=other) == refused
        assert await asked(served, reasoning_effort="none") == refused
        assert await asked(served, reasoning_effort="none", chat_template_kwargs=ON) == (200, None)


@pytest.mark.parametrize("guards", [(), ("chat",)])
async def test_what_the_template_is_given_anyway_is_not_a_requests_to_set(
    folder: Path, guards: tuple[str, ...]
) -> None:
    names = ["bos_token", "messages", "tools", "chat_template", "strftime_now", "tokenize"]
    async with serving(thinking_engine(folder, *guards, accept_template=True), anonymous_role="operator") as served:
        found = {name: (await asked(served, chat_template_kwargs={name: "x"}))[0] for name in names}
        assert found == dict.fromkeys(names, 400)


@pytest.mark.parametrize(("guards", "accept"), [((), False), (("chat",), True)])
async def test_where_nothing_is_bound_or_the_operator_takes_it(
    folder: Path, guards: tuple[str, ...], accept: bool
) -> None:
    async with serving(thinking_engine(folder, *guards, accept_template=accept), anonymous_role="operator") as served:
        assert await asked(served, chat_template_kwargs=OFF) == (200, None)
        messages = [{"role": "user", "content": "1+2="}]
        on, off = [
            (await served.post("/tokenize", {"messages": messages, "chat_template_kwargs": each})).json()["tokens"]
            for each in (ON, OFF)
        ]
        assert (off[: len(on)], len(off)) == (on, len(on) + 2)


async def test_the_operators_variables_are_part_of_what_is_verified(folder: Path) -> None:
    async with serving(thinking_engine(folder, "chat", chat_template_kwargs=OFF), anonymous_role="operator") as served:
        status, verified, template, reason = await shown(served)
        assert (status, verified, template) == (503, False, "changed")
        assert str(reason).startswith("canary 0: its messages gave")
    async with serving(
        thinking_engine(folder, "before", chat_template_kwargs=OFF), anonymous_role="operator"
    ) as served:
        assert "got variables of the chat template" in str((await shown(served))[3])
    loaded = load_model(folder / "model", "cpu", variables=OFF)
    options = SpanOptions(frames=("chat",), max_false_abstention=0.1, material="none", answers=0, longest=200)
    calibrate(loaded, *sources(), options).save(folder / "off", "sums")
    async with serving(thinking_engine(folder, "off", chat_template_kwargs=OFF), anonymous_role="operator") as served:
        assert await shown(served) == (200, True, "verified", None)
        assert await asked(served, chat_template_kwargs=OFF) == (200, None)
        assert await asked(served, chat_template_kwargs=ON) == (400, "chat_template_kwargs")
    async with serving(thinking_engine(folder, "off"), anonymous_role="operator") as served:
        assert (await shown(served))[2] == "changed"


async def test_a_template_that_does_not_end_is_a_400_and_others_go_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap = 3 * "{% for number in range(99999) %}" + 3 * "{% endfor %}"
    trapped = TEMPLATE + "{% if 'trap' in messages[-1].content %}" + trap + "{% endif %}"
    (folder / "model" / "chat_template.jinja").write_text(trapped)
    monkeypatch.setattr(rendering, "RENDER_SECONDS", 0.05)
    engine = EmbeddedEngine(EmbeddedOptions(model=str(folder / "model"), artifacts=(), device="cpu"))
    async with serving(engine) as served:  # type: ignore[arg-type]
        response = await served.post(CHAT, {"messages": [{"role": "user", "content": "a trap"}]})
        assert response.status_code == 400, response.text
        assert "takes more than 0.05 seconds" in response.json()["error"]["message"]
        said = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
        assert (await served.post(CHAT, said)).status_code == 200
        assert (await served.post(COMPLETIONS, {"prompt": "a trap", "max_tokens": 1})).status_code == 200
