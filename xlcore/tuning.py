"""Methods that move more than a prompt, on the same draws: what freezing is compared with.

Stands beside training: the same jobs, but each trains a copy of the backbone of its own.
SPT section 4: "model tuning" trains the same prompt with all weights; the others are baselines.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from peft import LoraConfig, LoraModel, PrefixEncoder, PrefixTuningConfig
from torch import Tensor, nn
from transformers import DynamicCache

from xlcore import evaluation, training
from xlcore.backbones import Backbone, Tokens, causal
from xlcore.devices import mixed_precision
from xlcore.errors import choose
from xlcore.prompts import Layout, Verbalizer
from xlcore.training import (
    Job,
    Labelled,
    Settings,
    check_finite,
    descend,
    label_loss,
)

SCOPES = ("all", "body")  # which weights full tuning moves; body leaves out the embedding matrix
LORA = dict(r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear")


def lora_layers(model: nn.Module, seed: int) -> LoraModel:
    """Put low-rank updates beside all linear layers of a model, which `unload` takes off again."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LoraModel(model, LoraConfig(**LORA), "default")


class DeepPrefix(PrefixEncoder):
    """Keys and values (L, 2, H, n, d_h) of n positions in every layer."""

    def __init__(self, n: int, layers: int, heads: int, width: int, seed: int) -> None:
        config = PrefixTuningConfig(
            num_virtual_tokens=n, num_layers=layers, num_attention_heads=heads,
            token_dim=heads * width,
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            super().__init__(config)
        self.shape = (n, layers, 2, heads, width)

    def forward(self) -> Tensor:
        places = torch.arange(self.shape[0], device=self.embedding.weight.device)
        flat = super().forward(places)  # (n, L * 2 * H * d_h)
        return flat.view(self.shape).permute(1, 2, 3, 0, 4)


class Tuner:
    """What a method trains on a backbone of its own, and how it reads a text's label state."""

    mixed = False  # whether training multiplies in bfloat16

    def __init__(self, backbone: Backbone, job: Job, max_length: int, scope: str) -> None:
        self.backbone = backbone
        self.layout = Layout((len(job.prompt),), max_length, job.prompt.position)

    def parameters(self) -> list[nn.Parameter]:
        """Return what is trained."""
        raise NotImplementedError

    def states(self, backbone: Backbone, tokens: Tokens) -> Tensor:
        """Return the label states (B, 1, d); without a prompt, those of the texts' last tokens."""
        return backbone.text_states(tokens)

    def weights(self) -> dict[str, Tensor]:
        """Return the backbone's weights as the method leaves them, {} if it never moves them."""
        return self.backbone.model.state_dict()


class FineTuning(Tuner):
    """All weights, no prompt: the label word is read right behind the text."""

    def __init__(self, backbone: Backbone, job: Job, max_length: int, scope: str) -> None:
        super().__init__(backbone, job, max_length, scope)
        left_out = [backbone.model.get_input_embeddings().weight] if scope == "body" else []
        left_out += [backbone.model.get_output_embeddings().weight] if scope == "body" else []
        self.moved = [p for p in backbone.model.parameters() if not any(p is x for x in left_out)]

    def parameters(self) -> list[nn.Parameter]:
        return self.moved


class JointTuning(FineTuning):
    """The prompt and all weights together: the paper's comparator, "model tuning"."""

    def __init__(self, backbone: Backbone, job: Job, max_length: int, scope: str) -> None:
        super().__init__(backbone, job, max_length, scope)
        self.prompt = job.prompt

    def parameters(self) -> list[nn.Parameter]:
        return [*self.moved, *self.prompt.parameters()]

    def states(self, backbone: Backbone, tokens: Tokens) -> Tensor:
        return backbone.whole_pass(tokens, self.prompt.vectors(), self.layout)


class LoRA(Tuner):
    """Low-rank updates of every linear layer (Hu et al. 2022), by PEFT, merged after training."""

    def __init__(self, backbone: Backbone, job: Job, max_length: int, scope: str) -> None:
        super().__init__(backbone, job, max_length, scope)
        self.lora = lora_layers(backbone.model, job.seed)

    def parameters(self) -> list[nn.Parameter]:
        return [p for p in self.lora.parameters() if p.requires_grad]

    def weights(self) -> dict[str, Tensor]:
        return self.lora.merge_and_unload().state_dict()


class PrefixTuning(Tuner):
    """Trained keys and values before the text in every layer (Li & Liang 2021), by PEFT."""

    def __init__(self, backbone: Backbone, job: Job, max_length: int, scope: str) -> None:
        super().__init__(backbone, job, max_length, scope)
        n, pairs = len(job.prompt), backbone.encode(job.train.tokens.rows([0])).pairs
        _, H, _, width = pairs[0][0].shape
        self.encoder = DeepPrefix(n, len(pairs), H, width, job.seed).to(backbone.device)

    def parameters(self) -> list[nn.Parameter]:
        return list(self.encoder.parameters())

    def states(self, backbone: Backbone, tokens: Tokens) -> Tensor:
        layers = self.encoder().to(backbone.dtype)  # (L, 2, H, n, d_h)
        B, n = len(tokens.ids), layers.shape[-2]
        pairs = [(k.expand(B, *k.shape), v.expand(B, *v.shape)) for k, v in layers]
        mask = torch.cat([tokens.mask.new_ones(B, n), tokens.mask], 1)
        seen = causal(Tokens(mask, mask).positions, mask)[:, n:]  # (B, T, n + T)
        return backbone.text_states(tokens, DynamicCache(pairs), n, seen)

    def weights(self) -> dict[str, Tensor]:
        return {}


TUNERS: dict[str, type[Tuner]] = {
    "joint_tuning": JointTuning,
    "fine_tuning": FineTuning,
    "lora": LoRA,
    "prefix_tuning": PrefixTuning,
}


@dataclass
class Tuned:
    """A trained method at one epoch, on a backbone that holds its weights, ready to be read."""

    backbone: Backbone
    method: Tuner
    trained: int  # how many numbers were trained
    history: list[dict]  # epoch, train_loss, dev_loss, dev_accuracy, kept

    @torch.no_grad()
    def score(self, texts: Sequence[str], verbalizer: Verbalizer, max_tokens: int) -> Tensor:
        """Return the label words' scores (1, N, K), in the texts' order."""
        tokens = self.backbone.tokenize(texts, max_tokens)
        words = torch.tensor(verbalizer.ids, device=self.backbone.device)
        out = torch.zeros(1, len(texts), len(words))
        for rows, batch in evaluation.batches(tokens):
            states = self.method.states(self.backbone, batch)  # (B, 1, d)
            out[0, rows] = self.backbone.logits(states, words)[:, 0].cpu()
        return out


def tune(
    fresh: Callable[[torch.dtype], Backbone],
    like: Backbone,
    job: Job,
    method: str,
    verbalizer: Verbalizer,
    settings: Settings,
    scope: str = "all",
    selection: str = "best_dev",
    progress: bool = True,
) -> Tuned:
    """Train one job by a method of TUNERS and return it at its best dev epoch, or its last.

    fresh: makes an untouched copy of the backbone in a dtype. Weights are kept in fp32 and
    multiplied in the dtype of `like`, the study's frozen backbone, which is not touched. Batch
    order, loss, schedule and clipping are those of `training.fit`. Raises InputError for an unknown
    method, scope or selection, TrainingDiverged if a loss is not finite.
    """
    kind = TUNERS[choose("method", method, TUNERS)]
    choose("scope", scope, SCOPES)
    choose("selection", selection, training.SELECTIONS)
    own = fresh(torch.float32)
    own.model.to(like.device)
    made = kind(own, copy.deepcopy(job), settings.max_length, scope)
    made.mixed = like.dtype == torch.bfloat16
    history = _train(made, job, verbalizer, settings, selection, progress)
    trained = sum(p.numel() for p in made.parameters())
    ready, weights = like, made.weights()
    if weights:
        ready = Backbone(like.name, copy.deepcopy(like.model), like.tokenizer, like.family)
        ready.model.load_state_dict(weights)
    return Tuned(ready, made, trained, history)


def _train(made, job, verbalizer, settings, selection, progress) -> list[dict]:
    """Train the method's parameters and no others."""
    parameters = made.parameters()
    for p in made.backbone.model.parameters():
        p.requires_grad_(any(p is moved for moved in parameters))

    def measure(side: Labelled, rows: Tensor) -> tuple[Tensor, Tensor]:
        return _measure(made, side, rows, verbalizer, settings)

    def check(loss: float, epoch: int) -> None:
        check_finite([job], [loss], epoch, settings)

    groups = [dict(params=parameters, lr=job.rate(settings))]
    return descend(
        groups, measure, job.train, job.dev, job.seed, settings, check, selection, progress
    )


def _measure(
    made: Tuner, side: Labelled, rows: Tensor, verbalizer: Verbalizer, settings: Settings
) -> tuple[Tensor, Tensor]:
    """Return the mean loss of these rows, with its gradient, and their accuracy."""
    backbone, parts = made.backbone, evaluation.halves(side.tokens, rows)
    labels = side.labels[torch.cat(parts)]
    with mixed_precision(backbone.device, made.mixed):
        read = [made.states(backbone, side.tokens.rows(part)) for part in parts]
        hidden = torch.cat(read)  # (B, 1, d)
        loss = label_loss(backbone, hidden, labels, verbalizer, settings.loss).mean()
        words = torch.tensor(verbalizer.ids, device=hidden.device)
        guess = backbone.logits(hidden.detach(), words)[:, 0].argmax(-1).cpu()
    return loss, (guess == labels).float().mean()
