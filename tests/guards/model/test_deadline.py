"""Work that does not end by itself is ended, and nothing else is."""

import itertools
import threading

import pytest

from guards.errors import TemplateTimeError, UnsupportedModelError
from guards.model import rendering
from guards.model.deadline import TimeUpError, ended_after
from guards.model.encoding import TextCodec
from tests.guards.tiny import TEMPLATE, tiny_tokenizer

BRIEF, AMPLE = 0.05, 60.0
ENDLESS = 3 * "{% for number in range(99999) %}" + 3 * "{% endfor %}"


def _endless() -> None:
    for _ in itertools.count():
        pass


def test_what_does_not_end_is_ended() -> None:
    with pytest.raises(TimeUpError), ended_after(BRIEF):
        _endless()


def test_no_handler_of_errors_keeps_it_going() -> None:
    def stubborn() -> None:
        try:
            _endless()
        except Exception:
            _endless()

    with pytest.raises(TimeUpError), ended_after(BRIEF):
        stubborn()


def test_what_ends_in_time_is_left_alone_and_so_is_what_follows() -> None:
    for _ in range(1000):
        with ended_after(AMPLE):
            pass
    with ended_after(BRIEF):
        pass
    later = threading.Event()
    timer = threading.Timer(3 * BRIEF, later.set)
    timer.start()
    while not later.is_set():
        pass


def test_threads_have_ends_of_their_own() -> None:
    ended: list[str] = []

    def work(name: str, seconds: float, done: threading.Event) -> None:
        try:
            with ended_after(seconds):
                while not done.is_set():
                    pass
                ended.append(f"{name} done")
        except TimeUpError:
            ended.append(f"{name} cut")

    never, go = threading.Event(), threading.Event()
    cut = threading.Thread(target=work, args=("a", BRIEF, never))
    kept = threading.Thread(target=work, args=("b", AMPLE, go))
    kept.start()
    cut.start()
    cut.join(30)
    go.set()
    kept.join(30)
    assert ended == ["a cut", "b done"]


def test_an_error_of_the_work_is_its_own() -> None:
    with pytest.raises(ValueError, match="own"), ended_after(AMPLE):
        raise ValueError("own")


@pytest.fixture
def _brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "RENDER_SECONDS", BRIEF)


@pytest.mark.usefixtures("_brief")
def test_a_template_that_does_not_end_is_refused_with_its_folder() -> None:
    with pytest.raises(UnsupportedModelError, match=r"takes more than 0.05 seconds for four short messages"):
        TextCodec(tiny_tokenizer(TEMPLATE + ENDLESS))


@pytest.mark.usefixtures("_brief")
def test_a_template_that_does_not_end_for_some_messages_refuses_these() -> None:
    codec = TextCodec(tiny_tokenizer(TEMPLATE + "{% if 'trap' in messages[-1].content %}" + ENDLESS + "{% endif %}"))
    with pytest.raises(TemplateTimeError, match="chat template takes more than"):
        codec.encode_chat([{"role": "user", "content": "a trap"}])
    assert codec.encode_chat([{"role": "user", "content": "a"}]), "the codec goes on"
