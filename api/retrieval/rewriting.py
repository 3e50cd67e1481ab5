"""Ask a chat model to put a question in other words, within a time that a search can wait."""

import asyncio
import contextlib
from collections.abc import Sequence

from api.chat.generation import answer, question
from api.chat.passing import begin
from api.chat.schemas import GenerateParams, GenerateRequest
from api.chat.service import newest_model, target_of
from api.unit_of_work import Services, Unit
from db.errors import InvalidInput, NotFound, Unavailable
from retrieval.variants import prompt_for, variants_in
from serving.backends.roster import Backends
from serving.openai_compatible import read_error

ANSWER_TOKENS = 200


def rewriting_model(unit: Unit, backends: Backends) -> str:
    """Which model rewrites, unless the caller knows one: the setting's, whoever serves it, else the one
    published last.

    Raises:
        InvalidInput: there is none.
    """
    named = unit.settings.rewrite_model
    try:
        if named is None:
            return newest_model(unit)
        # One that cannot be asked now is for `rewrite` to tell.
        with contextlib.suppress(Unavailable):
            target_of(unit, backends, named)
    except NotFound as error:
        wrong = f"LATHE_REWRITE_MODEL names {named!r}. " if named is not None else ""
        raise InvalidInput(
            f"rewrite_query needs a chat model. {wrong}{error.message} Publish one, set "
            "LATHE_REWRITE_MODEL to one that there is, or leave rewrite_query out.",
            param="rewrite_query",
            code="no_rewrite_model",
        ) from error
    return named


async def rewrite(services: Services, texts: Sequence[str], model: str) -> list[str]:
    """Put a question in other words.

    Args:
        texts: all ask the same.
        model: as a caller of chat names it.
    Raises:
        NotFound: there is no such model.
        Unavailable: it does not answer, not in time, or with nothing that can be used.
    """
    target = await services.run_in_transaction(lambda unit: target_of(unit, services.backends, model))
    # Greedy: the same question finds the same passages.
    params = GenerateParams(n_predict=ANSWER_TOKENS, temp=0)
    asked = question(GenerateRequest(prompt=prompt_for(texts), params=params), thinking=False)
    seconds = services.settings.rewrite_timeout_seconds
    try:
        async with asyncio.timeout(seconds):
            upstream, content = await begin(target, "chat", asked)
    except TimeoutError:
        raise Unavailable(f"Model {model!r} took longer than {seconds:g} s to rewrite it.") from None
    raw = content or b""
    if upstream.status >= 400:
        raise Unavailable(f"Model {model!r} does not rewrite it: {read_error(raw, upstream.status)[0]}")
    said = answer(raw, model)
    variants = variants_in(said.text, texts, cut_off=said.finish_reason == "length")
    if not variants:
        raise Unavailable(f"Model {model!r} gave no other words for it.")
    return variants
