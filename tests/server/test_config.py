import pytest
from pydantic import ValidationError

from server.config import ServerConfig


def test_unknown_setting_is_named() -> None:
    with pytest.raises(ValidationError, match="hold_back"):
        ServerConfig.model_validate({"hold_back": 3})


def test_config_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        ServerConfig().port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("port", 70000),
        ("abstain_style", "polite"),
        ("abstain_text", "  "),
        ("hold_back_tokens", -1),
        ("shadow", ("a", "b", "a")),
        ("allowed_origins", ("chat.example.org",)),
        ("allowed_origins", ("https://chat.example.org/",)),
        ("max_body_bytes", 0),
        ("max_answers", 0),
        ("default_max_tokens", 0),
    ],
)
def test_bad_value_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        ServerConfig.model_validate({field: value})


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.0.2", False),
        ("example.org", False),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert ServerConfig(host=host).listens_on_loopback is loopback


def test_every_setting_says_what_it_is() -> None:
    assert all(field.description for field in ServerConfig.model_fields.values())
