"""One evaluation from its parts: reads, runs, measures, writes."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from guards.artifact.exchange import replace_file
from guards.core.version import tool_name
from server.evaluation.arms import Arm
from server.evaluation.figures import figures, require_matplotlib
from server.evaluation.folder import RunFolder
from server.evaluation.options import EvaluationOptions
from server.evaluation.results import own_suites, results_of
from server.evaluation.runner import run_arms
from server.evaluation.sandbox import probe
from server.evaluation.scorer import Scorer
from server.evaluation.scoring import score_answers
from server.evaluation.suites import Suite
from server.evaluation.tables import markdown


@dataclass(frozen=True)
class Evaluation:
    """What is to be measured. `engine`: the in-process engine's own settings, part of a run's settings."""

    arms: Sequence[Arm]
    suites: Sequence[Suite]
    options: EvaluationOptions
    own: Sequence[str] = ()
    engine: Any = None
    scorer: Scorer | None = None
    """Of toxicity. It decides no answer, so that the settings do not hold it."""

    def settings(self) -> dict[str, Any]:
        """All that decides the answers. No path and no address: a run folder may move."""
        code = any(suite.kind.traits.blocking for suite in self.suites)
        return {
            "tool": tool_name(),
            "model": self.arms[0].model,
            "engine": self.engine,
            "guards": {arm.name: [asdict(guard) for guard in arm.guards] for arm in self.arms},
            "suites": {
                suite.label: {
                    "kind": suite.kind_name,
                    "source": suite.source,
                    "shots": suite.shots,
                    "items": len(suite.items),
                    "sha256": suite.sha256,
                }
                for suite in self.suites
            },
            "asked": self.options.model_dump(exclude={"concurrency"}),
            "sandbox": asdict(probe()) if code else None,
        }


def evaluate(evaluation: Evaluation, output: Path, *, plots: bool, quiet: bool = False) -> dict[str, Any]:
    """Runs, or goes on with, the evaluation in a folder, and writes its results there. Raises SkillguardError."""
    if plots:
        require_matplotlib()
    arms, suites, options = evaluation.arms, evaluation.suites, evaluation.options
    own = own_suites(arms, suites, evaluation.own)
    with RunFolder(output, evaluation.settings()) as folder:
        timings = asyncio.run(run_arms(arms, suites, options, folder, quiet=quiet))
        if evaluation.scorer is not None:
            score_answers(arms, suites, options, folder, evaluation.scorer, quiet=quiet)
        results = results_of(folder.settings, arms, suites, options, own, folder.records, timings, evaluation.scorer)
        text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False)
        written = {"results.json": f"{text}\n".encode(), "results.md": markdown(results).encode()}
        for name, data in (written | (figures(results) if plots else {})).items():
            replace_file(output / name, data)
    return results
