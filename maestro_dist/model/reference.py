"""The method in plain torch, one sample at a time: the place to start reading, and the oracle of the tests.

MAESTRO: arXiv 2509.25278. The numbers (1) to (11) below are the steps of the method, in the order of the paper. Nothing
here is fast: no batch, no padding, one expert and one head after the other. `maestro.Maestro` computes the same in
evaluation mode, and both use the same parameters. Left out are the options that the paper does not have: stem, summary
token, attention pooling, hidden layer of the head, and a budget that is reallocated or sees the content.

Letters: M modalities, D_j variates, T_j steps, W_j words of w_j steps, L tokens, H heads, d width, C outputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from maestro_dist.config.model import ModelConfig
from maestro_dist.config.word_length import word_length
from maestro_dist.types import Modality

Tokens = tuple[Tensor, Tensor]
"""Tokens x [L, d] of one modality, and which are observed, bool [L]. Missing tokens have any value."""


class ReferenceModel:
    """The forward of one sample in evaluation mode, from the parameters of a `Maestro` (its `state_dict`)."""

    def __init__(self, config: ModelConfig, modalities: Sequence[Modality], weights: Mapping[str, Tensor]) -> None:
        extra = config.stem or config.summary != "none" or config.pooling != "mean" or config.head_hidden
        if extra or config.budget == "reallocate" or config.budget_inputs != "presence":
            raise NotImplementedError("the reference has no stem, summary, attention pool, deep head or reallocation")
        self.config, self.weights = config, weights
        self.modalities = sorted(modalities, key=lambda modality: modality.name)
        self.words = {m.name: word_length(config.word, m.name) for m in self.modalities}

    def __call__(self, sample: Mapping[str, Tensor]) -> Tensor:
        """Windows [T_j, D_j] of the present modalities, NaN for a gap -> logits [C]."""
        config, names = self.config, [modality.name for modality in self.modalities]
        encoded = {m.name: self.embed(m, sample[m.name]) for m in self.modalities if m.name in sample}
        present = [name in encoded and bool(encoded[name][1].any()) for name in names]
        budgets = self.budgets(torch.tensor(present))
        for j, name in enumerate(names):
            for depth in range(config.encoder_layers if present[j] else 0):
                (encoded[name],) = self.layer(f"encoders.{name}.layers.{depth}", [encoded[name]], budgets[j])
        # an absent modality costs nothing and changes nothing: from here on it does not exist
        last = {name: encoded[name] for j, name in enumerate(names) if present[j]}
        joint = [self.with_modality_and_time(name, last[name]) for name in last]
        for depth in range(config.fusion_layers if joint else 0):
            joint = self.layer(f"fusion.{depth}", joint, torch.tensor(config.fusion_beta).to(self.weights["head.bias"]))
        return self.heads(last, joint)

    def embed(self, modality: Modality, window: Tensor) -> Tokens:
        """(1) z-normalize, average over words (piecewise aggregate approximation), symbols by SAX, 0 for missing.
        (2) Embed the symbols; add the time of each word's centre."""
        config, word, prefix = self.config, self.words[modality.name], f"embeddings.{modality.name}.symbols"
        x = F.pad(window.double(), (0, 0, 0, -len(window) % word), value=math.nan)
        observed = x.isfinite()
        mean = torch.tensor(modality.mean or [0.0] * modality.variates, dtype=torch.float64)
        std = torch.tensor(modality.std or [1.0] * modality.variates, dtype=torch.float64)
        if config.normalize == "window":  # z is 0 for a constant variate
            mean = x.nanmean(0).nan_to_num()
            std = (x - mean).square().nanmean(0).sqrt().nan_to_num()
            std[std <= 1e-13 * mean.abs()] = math.inf
        std = torch.where(std > 0, std, 1.0)
        z = torch.where(observed, (x - mean) / std, 0).unflatten(0, (-1, word))  # [W, w, D]
        seen = observed.unflatten(0, (-1, word))
        average = z.sum(1) / seen.sum(1)
        cuts = torch.special.ndtri(torch.arange(1, config.alphabet, dtype=torch.float64) / config.alphabet)
        symbols = torch.where(seen.any(1), 1 + (average[..., None] >= cuts).sum(-1), 0)  # (1): [W, D]
        dtype = self.weights["modality_embedding.weight"].dtype
        if config.embedding == "ordinal":
            tokens = self.linear(f"{prefix}", "linear", symbols.to(dtype) / config.alphabet)
        else:
            table = self.weights[f"{prefix}.weight" if config.embedding == "table" else f"{prefix}.table.weight"]
            row = symbols + torch.arange(modality.variates) * (config.alphabet + 1)
            tokens = table[row].sum(1)
        if config.embedding == "patch":  # and the samples inside each word
            samples = torch.cat((z.clamp(-1000, 1000), seen), -1).flatten(1)
            tokens = tokens + self.linear(prefix, "linear", samples.to(dtype))
        return tokens + self.time_code(modality, len(tokens), 1), (symbols > 0).any(1)

    def time_code(self, modality: Modality, count: int, stride: int) -> Tensor:
        """Sinusoids [count, d] of the times of words 0, stride, 2 stride, ... in seconds: sines, then cosines."""
        word, pairs = self.words[modality.name], -(-self.config.width // 2)
        finest = min(self.words[m.name] / m.rate_hz for m in self.modalities)
        longest = max(4 * max(m.seconds for m in self.modalities), 2 * finest)
        share = torch.arange(pairs, dtype=torch.float64) / max(1, pairs - 1)
        periods = 2 * finest * (longest / (2 * finest)) ** share
        seconds = (torch.arange(count, dtype=torch.float64) * stride * word + word / 2) / modality.rate_hz
        angles = 2 * math.pi * seconds[:, None] / periods
        code = torch.cat((angles.sin(), angles.cos()), 1)[:, : self.config.width]
        return code.to(self.weights["modality_embedding.weight"].dtype)

    def budgets(self, present: Tensor) -> Tensor:
        """(3) Adaptive budget u_j = sigmoid(G(m + eps (1 - m))) beta, G an MLP with ReLU; m bool [M] -> u [M]."""
        if "gate.absent.eps" not in self.weights:
            return torch.full(present.shape, self.config.beta).to(self.weights["head.bias"])
        m = torch.where(present, 1.0, self.weights["gate.absent.eps"])
        return self.linear("gate", "out", self.linear("gate", "hidden", m).relu()).sigmoid() * self.config.beta

    def layer(self, prefix: str, parts: list[Tokens], budget: Tensor) -> list[Tokens]:
        """(6) A layer, of one modality or of several together: attention, residual and norm; downsampling inside each
        modality; feed-forward or experts, residual and norm."""
        x, mask = torch.cat([tokens for tokens, _ in parts]), torch.cat([observed for _, observed in parts])
        branch = torch.zeros_like(x)
        branch[mask] = self.attention(f"{prefix}.attention", x[mask], budget)
        x = self.norm(f"{prefix}.attention", x, branch)
        pieces = [*zip(x.split([len(m) for _, m in parts]), (m for _, m in parts), strict=True)]
        if self.config.downsample:
            pieces = [self.downsample(f"{prefix}.downsample.convolution", *piece) for piece in pieces]
        x = torch.cat([tokens for tokens, _ in pieces])
        feed = self.experts if f"{prefix}.feed.router.weight" in self.weights else self.feed_forward
        x = self.norm(f"{prefix}.feed", x, feed(f"{prefix}.feed", x))
        return [*zip(x.split([len(m) for _, m in pieces]), (m for _, m in pieces), strict=True)]

    def attention(self, prefix: str, x: Tensor, budget: Tensor) -> Tensor:
        """ProbSparse attention of the observed tokens x [L, d]. (4) P(q) = max_k q.k - mean_k q.k over ceil(c ln L)
        sampled keys. (5) The query ranked r by P gets w_r softmax attention + (1 - w_r) mean(V), w_r = clamp(n - r, 0,
        1), with a real-valued number of queries n = min(u ln L, L)."""
        length, weight = len(x), {name: self.weights[f"{prefix}.{name}"] for name in ATTENTION}
        query = F.linear(x, weight["query_weight"], weight["query_bias"])
        key, value = F.linear(x, weight["key_weight"]), F.linear(x, weight["value_weight"], weight["value_bias"])
        size = min(length, max(1, math.ceil(self.config.sample_factor * math.log(length))))
        sampled = [(2 * i + 1) * length // (2 * size) for i in range(size)]  # in training they are drawn
        queries = torch.minimum(budget * math.log(length), torch.tensor(float(length)))
        heads = []
        for q, k, v in zip(*(part.chunk(self.config.heads, 1) for part in (query, key, value)), strict=True):
            attended = (q @ k.T / math.sqrt(q.shape[1])).softmax(1) @ v
            if self.config.attention == "sparse":
                products = q @ k[sampled].T
                metric = (products.amax(1) - products.mean(1)).float()  # (4)
                order = metric.argsort(descending=True, stable=True)
                w = torch.empty_like(queries.expand(length))
                w[order] = (queries - torch.arange(length)).clamp(0, 1).to(w)
                attended = w[:, None] * attended + (1 - w[:, None]) * v.mean(0)  # (5)
            heads.append(attended)
        return F.linear(torch.cat(heads, 1), weight["output_weight"], weight["output_bias"])

    def downsample(self, prefix: str, x: Tensor, mask: Tensor) -> Tokens:
        """(7) Halve the tokens: convolution plus max-pool, both of kernel 3, stride 2, padding 1; missing counts in
        neither."""
        weight = self.weights[f"{prefix}.weight"].unflatten(1, (3, -1)).transpose(1, 2)  # [out, in, 3]
        zeros, low = x.masked_fill(~mask[:, None], 0), x.masked_fill(~mask[:, None], torch.finfo(x.dtype).min)
        convolved = F.conv1d(zeros.T[None], weight, self.weights[f"{prefix}.bias"], stride=2, padding=1)[0].T
        seen = F.max_pool1d(mask.to(x.dtype)[None, None], 3, 2, 1)[0, 0] > 0
        largest = F.max_pool1d(low.T[None], 3, 2, 1)[0].T
        return convolved + torch.where(seen[:, None], largest, 0), seen

    def with_modality_and_time(self, name: str, tokens: Tokens) -> Tokens:
        """(8) Before the cross-modal layers: z_j + ME_j + PE, the learned embedding of the modality and the time."""
        j = [modality.name for modality in self.modalities].index(name)
        stride = 2**self.config.encoder_layers if self.config.downsample else 1
        code = self.time_code(self.modalities[j], len(tokens[0]), stride)
        return tokens[0] + self.weights["modality_embedding.weight"][j] + code, tokens[1]

    def experts(self, prefix: str, x: Tensor) -> Tensor:
        """(9) Sparse mixture of experts: softmax scores of the router, the k best experts, weighted by their scores."""
        scores = F.linear(x, self.weights[f"{prefix}.router.weight"]).softmax(1)
        chosen = (scores + self.weights.get(f"{prefix}.bias", torch.zeros(()))).topk(self.config.moe.top_k).indices
        out = torch.zeros_like(x)
        for e in range(self.config.moe.experts):
            expand, contract = (self.weights[f"{prefix}.experts.{name}"][e] for name in ("expand", "contract"))
            score = torch.where((chosen == e).any(1), scores[:, e], 0)
            out = out + score[:, None] * (F.gelu(x @ expand) @ contract)
        return out + self.feed_forward(f"{prefix}.shared", x) if self.config.moe.shared else out

    def heads(self, encoded: dict[str, Tokens], joint: list[Tokens]) -> Tensor:
        """(10) A linear head on the mean of the observed tokens of the last layer. (11) `head: additive` adds the
        weighted sum of one small head per modality, on its own tokens."""
        pooled = self.weights["head.weight"].new_zeros(self.config.width)
        if joint:
            pooled = torch.cat([x[mask] for x, mask in joint]).mean(0)
        logits = F.linear(pooled, self.weights["head.weight"], self.weights["head.bias"])  # (10)
        if self.config.head == "additive":
            weight, bias, share = (self.weights[f"modality_heads.{name}"] for name in ("weight", "bias", "share"))
            for j, modality in enumerate(self.modalities):
                if modality.name in encoded:
                    x, mask = encoded[modality.name]
                    logits = logits + share[j] * (x[mask].mean(0) @ weight[j] + bias[j])  # (11)
        return logits

    def linear(self, prefix: str, name: str, x: Tensor) -> Tensor:
        """A linear layer."""
        return F.linear(x, self.weights[f"{prefix}.{name}.weight"], self.weights[f"{prefix}.{name}.bias"])

    def feed_forward(self, prefix: str, x: Tensor) -> Tensor:
        """Linear, GELU, linear."""
        return self.linear(prefix, "contract", F.gelu(self.linear(prefix, "expand", x)))

    def norm(self, prefix: str, x: Tensor, branch: Tensor) -> Tensor:
        """LayerNorm of the residual sum; a LayerScale, if there is one, multiplies the branch."""
        scale = self.weights.get(f"{prefix}_scale.scale", torch.ones(()))
        weight, bias = self.weights[f"{prefix}_norm.weight"], self.weights[f"{prefix}_norm.bias"]
        return F.layer_norm(x + scale * branch, (x.shape[1],), weight, bias)


ATTENTION = (
    "query_weight", "query_bias", "key_weight", "value_weight", "value_bias", "output_weight", "output_bias",
)  # fmt: skip
"""Parameters of a layer of attention. The key projection has no bias: it would change no softmax."""
