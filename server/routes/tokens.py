"""POST /tokenize and POST /detokenize, outside /v1 as in vLLM. Nothing here runs the model."""

from fastapi import APIRouter, Request

from server.context import CallerDep, ContextDep, ServicesDep
from server.generation import while_connected
from server.openai import DetokenizeRequest, TokenizeRequest
from server.openai.calling import require_tools
from server.openai.history import log_dropped, require_shown
from server.routes.generation import require_model
from server.routes.posted import PostedRoute

router = APIRouter(route_class=PostedRoute)


@router.post("/tokenize")
async def tokenize(
    body: TokenizeRequest, request: Request, services: ServicesDep, context: ContextDep, caller: CallerDep
) -> dict[str, object]:
    """The token ids that a request of this prompt would be judged and continued from."""
    running, encoder = services.readiness.require_running(), services.encoder
    require_model(body.model or None, running)
    if body.messages is not None:
        log_dropped(body.messages, context.request_id)
        require_shown(body.messages, running.info)
        said, shown = [each.to_engine() for each in body.messages], [each.to_engine() for each in body.tools or ()]
        require_tools(shown, running.info)
        answered = body.add_generation_prompt is not False
        encoding = encoder.chat(caller.tenant, said, shown, body.chat_template_kwargs or {}, answered=answered)
    else:
        assert body.prompt is not None, "the protocol model holds one of the two"
        encoding = encoder.text(caller.tenant, body.prompt, opened=body.add_special_tokens is not False)
    tokens = await while_connected(request.receive, encoding)
    return {
        "count": len(tokens),
        "max_model_len": running.info.max_model_tokens,
        "tokens": list(tokens),
        "token_strs": list(services.engine.spell(tokens)) if body.return_token_strs else None,
    }


@router.post("/detokenize")
async def detokenize(
    body: DetokenizeRequest, request: Request, services: ServicesDep, caller: CallerDep
) -> dict[str, object]:
    """The text of token ids."""
    running = services.readiness.require_running()
    require_model(body.model or None, running)
    reading = services.encoder.read(caller.tenant, body.tokens)
    return {"prompt": await while_connected(request.receive, reading)}
