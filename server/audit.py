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
        for hit in event.hits:
            score = hit.score
            logger.info(
                "%s key=%s guard=%s skill=%s mode=%s stage=%s layers=%s position=%d score=%.6g tau=%s",
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
            )

    return observe
