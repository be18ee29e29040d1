"""Classification of the words of a text: named entities, slots.

A model has one output for each tag of the scheme BIO (Ramshaw and Marcus 1995): ``O`` outside of any entity, ``B-TYPE``
at the first word of one, ``I-TYPE`` at its further words. The first token of a word carries its tag; other tokens
(further word pieces, special tokens, padding) are read by the model and neither trained nor predicted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from influence_engine.errors import DataError, InputError, SettingsError
from influence_engine.names import did_you_mean, listing
from influence_engine.tasks.bio_tags import OUTSIDE, BioTags, confidence
from influence_engine.tasks.capabilities import classification_head
from influence_engine.tasks.contract import Array, Batch, Example, Head, Projection, Target, Unit
from influence_engine.tasks.fields import NONE, ExampleField, summary
from influence_engine.tasks.identity import digest_of_processor
from influence_engine.tasks.parts import Part
from influence_engine.tasks.targets import NO_TARGET
from influence_engine.tasks.text_words import (
    check_entity,
    encoded_words,
    places_of_span,
    places_of_tokens,
    words_within,
)
from influence_engine.tasks.tokenised_text import check_text, require_offsets, token_counts, token_units, unread_tokens

IGNORED = -100
"""In ``labels`` and ``targets`` of a batch: nothing is said of this position."""
AS_ONE_SPAN, AS_ONE_TAG = -102, -101
"""In ``targets``: this word is asked about, and the words that are have the likeliest tags of one span, or one tag."""

TARGET = "target"
"""The key of a query that holds what ``aim`` was given."""


class TokenClassification:
    """Entities of a text: spans of its characters, each with a type.

    A measurement is the sum of log-odds over the words of what is explained: of a span as a type, those of the tags
    that the span would have. Where nothing is named, it is the predicted entity that the model is most confident of;
    of a text without any, the one word that came nearest to being one, as no entity.

    An example's loss is the *sum* of the cross-entropies of its words, so that every word of the training data counts
    the same, as in the Trainer of ``transformers``, which takes the mean over the words of a batch.

    A batch holds what the tokenizer makes, and

    * ``labels [B, T]``: the taught tag of each word, at its first token, ``NO_TARGET`` there in a query, else
      ``IGNORED``;
    * ``targets [B, T]``: the tag that is explained at each word that is asked about, ``AS_ONE_SPAN`` or ``AS_ONE_TAG``
      there where the model is to say it, ``NO_TARGET`` at all words where nothing is named, else ``IGNORED``;
    * ``words [B, T, 2]``: first character of each word and one past its last, at its first token, else zeros;
    * ``mentions [B, T]``: at each word the number, from 1, of the taught entity that it is in, else 0;
    * ``characters [B, L]``: the text's code points.

    Args:
        tokenizer: A fast tokenizer of ``transformers``.
        labels: The entity types.
        max_length: Longer texts are cut to this many tokens; behind them nothing is tagged.
        text: Name of the field that holds the text.
        label: Name of the field that holds the entities, ``{"start", "end", "label"}`` each, in characters.
    """

    measurement_unit = "log-odds"

    def __init__(
        self,
        tokenizer: Any,
        labels: Sequence[str],
        *,
        max_length: int = 128,
        text: str = "text",
        label: str = "entities",
    ) -> None:
        if not labels or len(set(labels)) != len(labels):
            raise SettingsError(f"labels must be different names of entity types, got {list(labels)}", field="labels")
        for reserved in {OUTSIDE, NONE} & set(labels):
            raise SettingsError(
                f"an entity type cannot be called {reserved!r}: that stands for no entity", field="labels"
            )
        require_offsets(tokenizer)
        self.tokenizer = tokenizer
        self.labels = list(labels)
        self.max_length = max_length
        self.text = text
        self.label = label
        self._bio = BioTags(self.labels)

    @property
    def tags(self) -> list[str]:
        """The tags' names, in the order of the model's outputs."""
        return self._bio.names

    @property
    def fields(self) -> tuple[ExampleField, ...]:
        """The text and its entities."""
        return self.fields_for(self.labels, text=self.text, label=self.label)

    @staticmethod
    def fields_for(
        labels: Sequence[str], *, text: str = "text", label: str = "entities", **_: Any
    ) -> tuple[ExampleField, ...]:
        """The fields of a task with these arguments; the others do not matter."""
        return ExampleField(text, "text"), ExampleField(label, "spans", "target", tuple(labels))

    @property
    def processor(self) -> Any:
        """The tokenizer."""
        return self.tokenizer

    def head(self) -> Head:
        """One output for each tag."""
        return classification_head("AutoModelForTokenClassification", self.tags)

    def check(self, example: Example, *, labelled: bool) -> None:
        """Refuses a text that is missing, empty or not a string, and entities that are no spans of it."""
        check_text(example, self.text)
        entities = example.get(self.label)
        if entities is None and not labelled:
            return
        if not isinstance(entities, list | tuple):
            raise InputError(
                f"{self.label!r} must be a list of entities, got {type(entities).__name__}", field=self.label
            )
        if entities:
            try:
                self.collate([example])
            except DataError as error:
                raise InputError(error.message, field=self.label) from None

    def collate(self, examples: Sequence[Example]) -> Batch:
        """The batch; see the class.

        Raises:
            DataError: an entity is no span of its text, or two of them share a word.
            InputError: what is to be explained lies behind the tokens that are read.
        """
        texts = [example[self.text] for example in examples]
        encoded, words = encoded_words(self.tokenizer, texts, self.max_length)
        shape = encoded["input_ids"].shape
        labels, targets = np.full(shape, IGNORED, np.int64), np.full(shape, IGNORED, np.int64)
        mentions = np.zeros(shape, np.int64)
        for row, example in enumerate(examples):
            first = words[row, :, 1] > 0
            labels[row, first] = NO_TARGET
            entities = example.get(self.label)
            if entities is not None:
                labels[row, first] = self._bio.outside
                self._tag(labels[row], mentions[row], words[row], entities, texts[row])
            self._ask(targets[row], words[row], example.get(TARGET), texts[row])
        characters = np.zeros((len(texts), max(map(len, texts))), np.int64)
        for row, text in enumerate(texts):
            characters[row, : len(text)] = [*map(ord, text)]
        more = {
            "labels": labels,
            "targets": targets,
            "words": words,
            "mentions": mentions,
            "characters": characters,
        }
        return {name: torch.from_numpy(array) for name, array in {**encoded, **more}.items()}

    def sizes(self, examples: Sequence[Example]) -> list[int]:
        """Tokens of each example, from many texts at once."""
        return token_counts(self.tokenizer, examples, self.text, self.max_length)

    def unread(self, example: Example) -> str | None:
        """How many of its tokens are read, where it has more than ``max_length``."""
        return unread_tokens(self.tokenizer, example, self.text, self.max_length)

    def units(self, example: Example) -> list[Unit]:
        """Its tokens, with their characters in the text; special tokens stand for no part of it."""
        return token_units(self.tokenizer, example, self.text, self.max_length)

    def parts(self, example: Example) -> list[Part]:
        """What is outside of any entity, and each entity."""
        entities = [Part(self.text, one["start"], one["end"], one["label"]) for one in example.get(self.label, ())]
        return [Part(self.text), *entities]

    def model_inputs(self, batch: Batch) -> dict[str, Tensor]:
        """What the tokenizer made."""
        own = ("labels", "targets", "words", "mentions", "characters")
        return {name: tensor for name, tensor in batch.items() if name not in own}

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits ``[B, T, C]``."""
        logits: Tensor = model(**self.model_inputs(batch)).logits
        return logits

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Cross-entropies of each example's words, summed, ``[B]``.

        Raises:
            DataError: an example has no entities, not even none.
        """
        return self._losses(outputs, batch).sum(-1)

    def loss_parts(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The loss of the words outside of any entity, and of each entity's, ``[B, 1 + entities]``.

        Raises:
            DataError: as ``loss``.
        """
        losses, mentions = self._losses(outputs, batch), batch["mentions"]
        return losses.new_zeros(len(losses), int(mentions.max()) + 1).scatter_add(1, mentions, losses)

    def measurement(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Log-odds of the explained tags, each its logit minus the logsumexp of the others, summed, ``[B]``."""
        targets = self.choose_targets(outputs.detach(), batch)["targets"]
        asked = targets != IGNORED
        # Each example's own asked words only: at the others no number, not even an infinite one, may come in.
        named = targets.clamp_min(0).unsqueeze(-1)
        others = outputs.scatter(-1, named, float("-inf")).logsumexp(-1)
        return torch.where(asked, outputs.gather(-1, named).squeeze(-1) - others, 0.0).sum(-1)

    def needs_choice(self, batch: Batch) -> Tensor:
        """Whether a query names no target, or a span or tokens without a label."""
        targets = batch["targets"]
        return ((targets < 0) & (targets != IGNORED)).any(-1)

    def choose_targets(self, outputs: Tensor, batch: Batch) -> Batch:
        """Where a query names nothing: the entity that is predicted with most confidence, or the word that came nearest
        to being in one, as outside. Where it names words and no label: the tags that are predicted there.
        """
        open_rows = self.needs_choice(batch).nonzero().flatten().tolist()
        if not open_rows:
            return batch
        targets, logits = batch["targets"].clone(), outputs.detach().float()
        for row in open_rows:
            unnamed = bool((targets[row] == NO_TARGET).any())
            choose = _unnamed if unnamed else _as_predicted
            targets[row] = choose(self._bio, targets[row], logits[row])
        return {**batch, "targets": targets}

    def targets(self, batch: Batch) -> list[Target | None]:
        """``{"span", "label"}`` of what is explained, or ``{"tokens", "label"}`` of tags that no span would have."""
        return [
            _named(self._bio, row, words)
            for row, words in zip(batch["targets"].tolist(), batch["words"].tolist(), strict=True)
        ]

    def aim(self, example: Example, target: Target) -> Example:
        """The query with a span as an entity of a type, or as none, or tokens with a tag, as what is explained.

        Args:
            example: The query.
            target: ``{"span": [start, end], "label": TYPE}``: the characters from ``start`` to before ``end`` as one
                entity; ``"O"`` as the label says that they are in none; without a label they are what is predicted.
                ``{"tokens": [...], "label": TAG}``: positions of first tokens of words, all with one tag such as
                ``B-TYPE``; without a label what is predicted there.

        Raises:
            InputError: there are no such words, or there is no such label.
        """
        label = target.get("label") if isinstance(target, dict) else None
        if not isinstance(target, dict) or ("span" in target) == ("tokens" in target):
            raise InputError(
                'name words of the text: {"span": [start, end], "label": TYPE} or {"tokens": [...], "label": TAG}; '
                f"the types are {listing(self.labels)}",
                field="target",
            )
        known = [OUTSIDE, *self.labels] if "span" in target else self.tags
        if label is not None and label not in known:
            what = "span" if "span" in target else "token"
            raise InputError(
                f"unknown label {label!r}; of a {what} it is one of {listing(known)}.{did_you_mean(str(label), known)}",
                field="target",
            )
        aimed = {**example, TARGET: dict(target)}
        self.collate([aimed])
        return aimed

    def predictions(self, outputs: Tensor, batch: Batch) -> list[dict[str, Any]]:
        """``{"entities": [{"start", "end", "label", "confidence", "text"}]}`` of each example.

        A confidence is the probability that each word of the entity has its tag, were they independent.
        """
        shares, words = outputs.detach().float().softmax(-1).cpu(), batch["words"].cpu()
        characters = batch["characters"].cpu()
        found = []
        for row, places in enumerate(words[:, :, 1] > 0):
            probabilities, spans = shares[row][places], words[row][places].tolist()
            entities: list[dict[str, Any]] = []
            for first, last in self._bio.spans(probabilities.argmax(-1).tolist()):
                start, end = spans[first][0], spans[last - 1][1]
                entity = {"start": start, "end": end, "label": self._bio.label(int(probabilities[first].argmax()))}
                entity["confidence"] = float(confidence(probabilities, first, last))
                entity["text"] = "".join(map(chr, characters[row, start:end].tolist()))
                entities.append(entity)
            found.append({"entities": entities})
        return found

    def project(self, prediction: Mapping[str, Any]) -> Projection:
        """The types that were found, each once, and the least of the entities' confidences; every entity is counted."""
        found = [(one["label"], one["confidence"]) for one in prediction["entities"]]
        types = tuple(label for label, _ in found)
        return Projection(summary(types), min((share for _, share in found), default=None), types or (NONE,))

    def describe(self) -> dict[str, Any]:
        """Identity of this task for digests."""
        return {
            "type": "token_classification",
            "labels": self.labels,
            "max_length": self.max_length,
            "text": self.text,
            "label": self.label,
            "tokenizer_digest": digest_of_processor(self.tokenizer),
        }

    def _losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy of each word, ``[B, T]``; 0 elsewhere."""
        labels = batch["labels"]
        if bool((labels == NO_TARGET).any()):
            raise DataError(
                f"an example has no {self.label!r}; a loss needs them, an empty list where there are none",
                field=self.label,
            )
        return functional.cross_entropy(outputs.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")

    def _tag(
        self, labels: Array, mentions: Array, words: Array, entities: Sequence[Mapping[str, Any]], text: str
    ) -> None:
        """Writes the entities' tags and numbers to the places of their words, ``[T]`` each."""
        for number, entity in enumerate(entities, start=1):
            check_entity(entity, text, self.labels, self.label)
            places = words_within(words, entity["start"], entity["end"])
            taken = places[mentions[places] > 0]
            if len(taken):
                other = entities[mentions[taken[0]] - 1]
                raise DataError(
                    f"the entities at {other['start']} to {other['end']} and at {entity['start']} to {entity['end']} "
                    f"share the word {text[slice(*words[taken[0]])]!r}",
                    field=self.label,
                )
            labels[places] = self._bio.span(entity["label"], 2)[1]
            labels[places[:1]] = self._bio.span(entity["label"], 1)[0]
            mentions[places] = number

    def _ask(self, targets: Array, words: Array, target: Mapping[str, Any] | None, text: str) -> None:
        """Writes what is explained to the places of its words, ``[T]``."""
        if target is None:
            targets[words[:, 1] > 0] = NO_TARGET
            return
        label = target.get("label")
        if "tokens" in target:
            places = places_of_tokens(words, target["tokens"])
            targets[places] = AS_ONE_TAG if label is None else self._bio.number(label)
            return
        places = places_of_span(words, target["span"], text)
        targets[places] = AS_ONE_SPAN if label is None else self._bio.span(label, len(places))


def _as_predicted(bio: BioTags, targets: Tensor, logits: Tensor) -> Tensor:
    """Tags ``[T]`` of a query that names words and no label: of all that they could be named, the most probable."""
    places = (targets < IGNORED).nonzero().flatten()
    as_span = bool((targets[places] == AS_ONE_SPAN).any())
    candidates = bio.all_spans(len(places)) if as_span else [[tag] * len(places) for tag in range(len(bio.names))]
    logs, tags = logits[places].log_softmax(-1), torch.tensor(candidates, device=logits.device)
    return targets.index_copy(0, places, tags[logs.gather(-1, tags.T).sum(0).argmax()])


def _unnamed(bio: BioTags, targets: Tensor, logits: Tensor) -> Tensor:
    """Tags ``[T]`` of a query that names nothing."""
    places = (targets == NO_TARGET).nonzero().flatten()
    chosen, shares = torch.full_like(targets, IGNORED), logits[places].softmax(-1)
    tags = shares.argmax(-1)
    entities = list(bio.spans(tags.tolist()))
    if entities:
        first, last = max(entities, key=lambda one: float(confidence(shares, *one)))
        label = bio.label(int(tags[first]))
        chosen[places[first:last]] = torch.tensor(bio.span(label, last - first), device=tags.device)
    else:
        chosen[places[shares[:, bio.outside].argmin()]] = bio.outside
    return chosen


def _named(bio: BioTags, targets: Sequence[int], words: Sequence[Sequence[int]]) -> Target | None:
    """What an API calls the tags ``[T]`` that are explained."""
    places = [place for place, tag in enumerate(targets) if tag != IGNORED]
    tags = [targets[place] for place in places]
    if not places or min(tags) < 0:
        return None
    label = bio.label(tags[0])
    between = [place for place in range(places[0], places[-1] + 1) if words[place][1] > 0]
    if between == places and tags == bio.span(label, len(tags)):
        return {"span": [words[places[0]][0], words[places[-1]][1]], "label": label}
    return {"tokens": places, "label": bio.names[tags[0]]}
