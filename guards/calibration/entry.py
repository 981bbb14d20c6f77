"""An entry of the registry: everything that the rest of the project knows of a method. Light to import."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from guards.calibration.options import CommonOptions
from guards.calibration.shown import ShownTable
from guards.contract.method import Method

if TYPE_CHECKING:
    from guards.calibration.activations import Activations
    from guards.calibration.finished import Calibration
    from guards.calibration.sources import Source
    from guards.model.sites import Site


@dataclass(frozen=True, kw_only=True)
class Entry(Method):
    """A method with its calibration.

    `summary` is one line of help. `about` says what the variant is, where a method has several. `options` are what its
    calibration takes; the command line is made from their fields.

    In the method's folder, `calibrate.py` has `sites(options)` and `calibrate(model, forget, retain, options)`;
    `shown.py` has `table(calibration)`, `report(calibration)` and `plots(calibration, skill, model, forget, retain)`.
    """

    summary: str
    options: type[CommonOptions]
    about: str = ""

    def sites(self, options: CommonOptions) -> "tuple[Site, ...]":
        """What a calibration looks at."""
        return cast("tuple[Site, ...]", self.module("calibrate").sites(options))

    def calibrate(
        self,
        model: "Activations",
        forget: "Sequence[Source]",
        retain: "Sequence[Source]",
        options: CommonOptions | None = None,
    ) -> "Calibration":
        """A guard with its record and canaries. Raises DataError or CalibrationError."""
        options = self.options() if options is None else options
        return cast("Calibration", self.module("calibrate").calibrate(model, forget, retain, options))

    def table(self, calibration: "Calibration") -> ShownTable:
        """The figures that are printed when a calibration is done."""
        return cast(ShownTable, self.module("shown").table(calibration))

    def report(self, calibration: "Calibration") -> dict[str, Any]:
        """The method's own part of the report."""
        return cast("dict[str, Any]", self.module("shown").report(calibration))

    def plots(
        self,
        calibration: "Calibration",
        skill: str,
        model: "Activations",
        forget: "Sequence[Source]",
        retain: "Sequence[Source]",
    ) -> Mapping[str, bytes]:
        """PNGs by file name. Needs matplotlib."""
        return cast("Mapping[str, bytes]", self.module("shown").plots(calibration, skill, model, forget, retain))
