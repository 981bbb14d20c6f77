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


OF_THE_AUDIT_LOG: dict[str, object] = {
    "audit_failure": "answer",
    "audit_max_bytes": 5000,
    "audit_fsync": True,
    "audit_scores": ("ksd",),
    "audit_text": True,
    "audit_redact": ("a",),
}


@pytest.mark.parametrize("field", OF_THE_AUDIT_LOG)
def test_nothing_is_asked_of_an_audit_log_that_is_not_there(field: str) -> None:
    value = OF_THE_AUDIT_LOG[field]
    with pytest.raises(ValidationError, match=f"(?s){field}.*there is no audit log .* give audit_dir too"):
        ServerConfig.model_validate({field: value})
    assert ServerConfig.model_validate({field: value, "audit_dir": "log"})
    default = ServerConfig.model_fields[field].default
    assert ServerConfig.model_validate({field: default}), "as `check-config` shows it"


def test_every_setting_of_the_audit_log_needs_one() -> None:
    assert {name for name in ServerConfig.model_fields if name.startswith("audit_")} == {"audit_dir", *OF_THE_AUDIT_LOG}


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
