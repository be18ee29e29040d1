"""The sentiment model as one would serve it by hand: the same ONNX file, tokenizer and threads, nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import bentoml
import numpy as np
import onnxruntime
from transformers import AutoTokenizer

from audit_service.config import load_config
from audit_service.schemas import Prediction, TextInput


@bentoml.service
class Bare:
    def __init__(self) -> None:
        config = load_config(os.environ["BENTO_AUDIT_CONFIG"])
        folder = Path(config.onnx_folder)
        options = onnxruntime.SessionOptions()
        if config.serve.threads is not None:
            options.intra_op_num_threads = config.serve.threads
        self.labels, self.max_length = config.task.labels, config.task.max_length
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        self.session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])

    @bentoml.api
    async def predict(self, request: TextInput, /) -> Prediction:
        encoded = self.tokenizer(
            [request.text], padding=True, truncation=True, max_length=self.max_length, return_tensors="np"
        )
        (logits,) = self.session.run(None, dict(encoded))[0]
        exponents = np.exp(logits - logits.max())
        probabilities = (exponents / exponents.sum()).tolist()
        best = max(range(len(probabilities)), key=probabilities.__getitem__)
        scores = dict(zip(self.labels, probabilities, strict=True))
        return Prediction(label=self.labels[best], confidence=probabilities[best], scores=scores)
