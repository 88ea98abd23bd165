"""Two encoders that run once, and the decoders that follow them word by word.

A decoder is a step whose last word is one of its states, fed back as an integer: h, c and ``token`` go in, and what comes out is the
log-probability of each word and the likeliest one, which is the next ``token``. Word 0 stands before a sentence and ends it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

END = 0
Outputs = dict[str, Tensor]
#: token [B, 1] int64; h and c [B, units].
State = tuple[Tensor, Tensor, Tensor]


class Reader(nn.Module):
    """A bidirectional LSTM over a whole sequence: x [B, T, inputs] -> memory [B, T, 2 units], keys [B, T, attention].

    The keys are the part of the attention's score that is the same for every word, so they are computed here, once.
    """

    def __init__(self, inputs: int, units: int, attention: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, units, batch_first=True, bidirectional=True)
        self.keys = nn.Linear(2 * units, attention)

    def forward(self, x: Tensor) -> Outputs:
        memory = self.lstm(x)[0]
        return {"memory": memory, "keys": self.keys(memory)}


class Writer(nn.Module):
    """Decoder with additive attention (Bahdanau et al. 2015, section 3.1 and appendix A, with an LSTM in place of the GRU).

    memory [B, T, context], keys [B, T, attention], token, h, c -> outputs, the next (token, h, c).
    """

    def __init__(self, words: int, units: int, context: int, attention: int, embedding: int = 16) -> None:
        super().__init__()
        self.units, self.context = units, context
        self.embed = nn.Embedding(words, embedding)
        self.query = nn.Linear(units, attention, bias=False)
        self.score = nn.Linear(attention, 1, bias=False)
        self.cell = nn.LSTMCell(embedding + context, units)
        self.head = nn.Linear(units + context, words)

    def forward(
        self, memory: Tensor, keys: Tensor, token: Tensor, h: Tensor, c: Tensor
    ) -> tuple[Outputs, State]:
        weights = self.score((keys + self.query(h)[:, None]).tanh()).softmax(1)
        context = (weights * memory).sum(1)
        h, c = self.cell(torch.cat([self.embed(token[:, 0]), context], 1), (h, c))
        log_probs = self.head(torch.cat([h, context], 1)).log_softmax(1)
        token = log_probs.argmax(1, keepdim=True)
        return {"log_probs": log_probs, "word": token}, (token, h, c)


class Eye(nn.Module):
    """Two convolutions and a linear layer: pictures [B, 1, colours, 16, 16], a window of one -> seen [B, features]."""

    def __init__(self, colours: int, features: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(colours, 16, 5, stride=2, padding=2),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 5, stride=2, padding=2),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, features),
            nn.BatchNorm1d(
                features
            ),  # as large as embedded words; without it the decoder hardly learns to look
        )

    def forward(self, x: Tensor) -> Outputs:
        return {"seen": self.layers(x[:, 0])}


class Captioner(nn.Module):
    """Decoder that sees the picture once (Vinyals et al. 2015, equations 10 to 12): where the word before the first would be.

    seen [B, features], token, h, c -> outputs, the next (token, h, c). ``seen`` counts in the first step only.
    """

    def __init__(self, words: int, units: int, features: int) -> None:
        super().__init__()
        self.units = units
        self.embed = nn.Embedding(words, features)
        self.cell = nn.LSTMCell(features, units)
        nn.init.ones_(
            self.cell.bias_ih.data[units : 2 * units]
        )  # forgets little at first: the picture is seen but once
        self.head = nn.Linear(units, words)

    def forward(self, seen: Tensor, token: Tensor, h: Tensor, c: Tensor) -> tuple[Outputs, State]:
        x = torch.where(token == END, seen, self.embed(token[:, 0]))
        h, c = self.cell(x, (h, c))
        log_probs = self.head(h).log_softmax(1)
        token = log_probs.argmax(1, keepdim=True)
        return {"log_probs": log_probs, "word": token}, (token, h, c)
