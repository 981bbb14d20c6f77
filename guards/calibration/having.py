"""Where a method may look, and whether the model has what it reads there: asked before anything is run."""

from collections.abc import Iterable

from guards.calibration.activations import Activations
from guards.calibration.options import CANDIDATE_LAYERS
from guards.errors import UnsupportedModelError
from guards.model.sites import Place, Site

_ELSEWHERE = (
    "Key Space Detection reads the residual stream instead with `site` residual, or names a layer that has the site "
    "with `layer`"
)


def candidate_layers(count: int, few: int = CANDIDATE_LAYERS) -> tuple[int, ...]:
    """Of a model of `count` layers: at most `few`, evenly spaced, from a fifth of it to four fifths."""
    first, last = count // 5, min(4 * count // 5, count - 1)
    wanted = min(few, last - first + 1)
    return tuple(last - round(i * (last - first) / max(1, wanted - 1)) for i in reversed(range(wanted)))


def require_site(model: Activations, site: Site, layers: Iterable[int]) -> None:
    """Raises UnsupportedModelError where one of these layers lacks a site, which says why and what to do."""
    without = [layer for layer in layers if Place(layer, site) in model.lacking]
    if without:
        raise UnsupportedModelError(
            f"{len(without)} of the layers that are wanted have no {site} site, first layer {without[0]}: "
            f"{model.lacking[Place(without[0], site)]}. {_ELSEWHERE}"
        )


def layers_having(model: Activations, site: Site, layers: tuple[int, ...]) -> tuple[int, ...]:
    """Those of some layers that have a site. Raises UnsupportedModelError where none does."""
    found = tuple(layer for layer in layers if Place(layer, site) not in model.lacking)
    if not found:
        require_site(model, site, layers)
    return found
