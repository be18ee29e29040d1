"""Entities of a text: the shipped task on a small BERT, whose tokenizer cuts some words into pieces."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertForTokenClassification, PreTrainedTokenizerFast

from influence_engine.tasks import TokenClassification
from tests.small_models import FILLERS, WORDS, small_bert
from tests.tasks.toys.base import Toy, with_ids

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "##ly", "##er", "new", "york", *WORDS["negative"], *WORDS["positive"]]


def piece_tokenizer() -> PreTrainedTokenizerFast:
    """Pieces of words, as BERT has them: ``badly`` is ``bad`` and ``##ly``."""
    vocabulary = {piece: number for number, piece in enumerate([*PIECES, *FILLERS])}
    pieces = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    pieces.normalizer = normalizers.Lowercase()
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pieces.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=pieces, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def tagged(draw: random.Random) -> dict[str, Any]:
    """A sentence with some of: a word that blames, one that praises, a place of two words."""
    names = {"blame": ["Badly", "dull", "slower"], "praise": ["good", "warmly", "fun"], "place": ["New York"]}
    wanted = draw.sample([None, *names], k=draw.randint(1, 3))
    text, entities = draw.choice(FILLERS), []
    for name in wanted:
        text += " "
        if name is not None:
            words = draw.choice(names[name])
            entities.append({"start": len(text), "end": len(text) + len(words), "label": name})
            text += words + " "
        text += " ".join(draw.choices(FILLERS, k=draw.randint(1, 2)))
    return {"text": text, "entities": entities}


def entities(folder: Path) -> Toy:
    draw = random.Random(3)
    return Toy(
        "entities",
        TokenClassification(piece_tokenizer(), ["blame", "praise", "place"], max_length=16),
        lambda seed: small_bert(BertForTokenClassification, num_labels=7, vocab_size=32, seed=seed),
        with_ids([tagged(draw) for _ in range(20)]),
        [{"text": "the film is badly dull"}, {"text": "a good story of New York"}],
        [
            {"span": [12, 17], "label": "blame"},
            {"span": [12, 22], "label": "place"},
            {"span": [18, 22], "label": "O"},
            {"tokens": [4], "label": "I-place"},
        ],
        {"span": [12, 17], "label": "person"},
        plain=False,
        learning_rate=0.003,
    )
