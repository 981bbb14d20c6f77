"""The audit log: one line for each hit of a guard, enforced or in shadow mode. It never holds text of a prompt."""

import logging
from collections.abc import Callable

from server.engines.base import Event, Finish

logger = logging.getLogger("skillguard.audit")


def audit_observer(request_id: str, caller: str) -> Callable[[Event], None]:
    """Logs the hits of one answer when it finishes."""

    def observe(event: Event) -> None:
        if not isinstance(event, Finish):
            return
        inside = [(hits.first, f" prompt_positions={hits.positions}") for hits in event.prompt_hits]
        for hit, more in [*((hit, "") for hit in event.hits), *inside]:
            score = hit.score
            logger.info(
                "%s key=%s guard=%s skill=%s mode=%s stage=%s layers=%s position=%d score=%.6g tau=%s%s",
                request_id,
                caller,
                score.guard,
                score.skill,
                hit.mode.value,
                score.stage.value,
                ",".join(map(str, score.layers)),
                score.position,
                score.score,
                score.tau,
                more,
            )

    return observe
