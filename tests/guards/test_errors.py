"""The error tree: one root, and every class documented in the module's drawing."""

from guards import errors


def _tree(root: type[Exception]) -> set[type[Exception]]:
    return {root}.union(*(_tree(child) for child in root.__subclasses__() if child.__module__ == errors.__name__))


def test_every_error_descends_from_the_root_and_is_drawn() -> None:
    classes = {value for value in vars(errors).values() if isinstance(value, type)}
    assert classes == _tree(errors.SkillguardError)
    assert errors.__doc__ is not None
    for error in classes:
        assert error.__name__ in errors.__doc__
        assert error.__doc__


def test_a_mismatch_is_an_artifact_error() -> None:
    assert issubclass(errors.ArtifactMismatchError, errors.ArtifactError)
