"""What BentoML itself costs an explanation: a service that depends on another, and both do nothing."""

from __future__ import annotations

import bentoml


@bentoml.service(name="no_op_engine", workers=1)
class NoOpEngine:
    @bentoml.api
    async def explain(self, text: str) -> dict[str, str]:
        return {"text": text}


@bentoml.service(name="no_op")
class NoOp:
    engine = bentoml.depends(NoOpEngine)

    @bentoml.api
    async def explain(self, text: str) -> dict[str, str]:
        return await self.engine.explain(text=text)
