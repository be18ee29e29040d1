"""A service that knows nothing of audits: every kind of method that BentoML has."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Generator
from typing import Any

import bentoml
from pydantic import BaseModel, ConfigDict


class Review(BaseModel):
    body: str
    stars: int | None = None


class Verdict(BaseModel):
    model_config = ConfigDict(frozen=True)

    sentiment: str
    probability: float


class Named(BaseModel):
    prediction_id: str | None = None
    sentiment: str


def judge(text: str) -> Verdict:
    if text == "fail":
        raise ValueError("this service fails on purpose")
    dull = sum(word in text for word in ("dull", "bad", "boring"))
    return Verdict(sentiment="negative" if dull else "positive", probability=0.75)


@bentoml.service(traffic={"timeout": 30})
class Reviews:
    def __init__(self) -> None:
        self.greeting = "hello"

    @bentoml.api
    def plain(self, text: str, shout: bool = False) -> dict[str, Any]:
        found = judge(text)
        return {
            "answer": {"sentiment": found.sentiment.upper() if shout else found.sentiment},
            "greeting": self.greeting,
        }

    @bentoml.api
    async def nested(self, review: Review) -> Verdict:
        return judge(review.body)

    @bentoml.api
    async def flat(self, review: Review, /) -> Named:
        return Named(sentiment=judge(review.body).sentiment)

    @bentoml.api
    async def with_context(self, text: str, ctx: bentoml.Context) -> Verdict:
        ctx.response.headers["x-own"] = "kept"
        ctx.response.status_code = 203
        return judge(text)

    @bentoml.api
    def listed(self, reviews: list[Review]) -> list[Verdict]:
        return [judge(review.body) for review in reviews]

    @bentoml.api
    def silent(self, text: str) -> dict[str, Any]:
        return {}

    @bentoml.api(batchable=True, max_batch_size=16)
    def batched(self, texts: list[str]) -> list[Verdict]:
        return [judge(text) for text in texts]

    @bentoml.api(batchable=True, max_batch_size=16)
    async def batched_named(self, reviews: list[Review]) -> list[Named]:
        return [Named(sentiment=judge(review.body).sentiment) for review in reviews]

    @bentoml.api
    async def streamed(self, text: str) -> AsyncGenerator[str, None]:
        yield "thinking\n"
        yield json.dumps(judge(text).model_dump()) + "\n"

    @bentoml.api
    def streamed_sync(self, text: str) -> Generator[str, None, None]:
        yield from judge(text).sentiment
