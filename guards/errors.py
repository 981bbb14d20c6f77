"""Errors of the guards package.

SkillguardError
├── ArtifactError            a file on disk is refused
│   ├── ArtifactMismatchError    well formed, but made for another model
│   └── UntrustedArtifactError   well formed, but not the one that was pinned, or not signed by a trusted key
├── SigningKeyError          a file is no key that artifacts are signed with, or not kept as one
├── UnsupportedModelError    the model has no site we know, or hides it
├── DataError                a forget or retain source cannot be read as asked
│   └── PromptRefusedError       the chat template, or the lack of one, does not allow a conversation
│       └── TemplateTimeError        the chat template does not come to an end
├── CalibrationError         the data do not allow a guard that keeps its promise
├── PolicyError              a rule names no guard, or a threshold that decides nothing
├── MethodError              an installed package brings a method that cannot be used
├── AttachError              a guard could not be installed on every site it needs
└── GuardReadingError        a guard gave no reading, or a non-finite one, for a position that needs it

Each message says what, got, wanted and the next step, and names an option in backticks by its field; the command line
prints that as a flag. `raise` is for what a caller or a file can cause;
`assert` only for our own mistakes.
"""


class SkillguardError(Exception):
    """Root of every error this project raises on purpose; its text may be shown to the operator."""


class ArtifactError(SkillguardError):
    """A file on disk is not a valid artifact. Nothing of it was used."""


class ArtifactMismatchError(ArtifactError):
    """The artifact is well formed but was calibrated for another model, dtype or weights."""


class UntrustedArtifactError(ArtifactError):
    """The artifact is well formed, but has another digest than it is pinned to, or no trusted key's signature."""


class SigningKeyError(SkillguardError):
    """A file cannot be used as a key for signatures: it is none, or others may read a private one."""


class UnsupportedModelError(SkillguardError):
    """The model family is unknown, has no single key vector (mixture of experts), or hides it."""


class DataError(SkillguardError):
    """A data source cannot be read as asked."""


class PromptRefusedError(DataError):
    """The chat template, or the lack of one, does not allow this conversation."""


class TemplateTimeError(PromptRefusedError):
    """The chat template did not come to an end in its time; it was ended."""


class CalibrationError(SkillguardError):
    """The examples given do not allow a guard that keeps the promise asked for."""


class PolicyError(SkillguardError):
    """A policy cannot be used: it names a guard that is not there, or a threshold that is no number."""


class MethodError(SkillguardError):
    """A method that an installed package brings cannot be loaded, or has the name of another."""


class AttachError(SkillguardError):
    """A guard could not be installed on every site it needs; nothing stays installed."""


class GuardReadingError(SkillguardError):
    """A forward pass gave no finite reading for a position that must have one. Never treated as a pass."""
