"""The fast engine: decoder layers of Llama's, Mistral's and Qwen's shape, each as one step forward and one back.

    x --norm--> q k v --rotate, attend--> o --+ x--> x2 --norm--> gate up --swiglu--> down --+ x2--> next layer

Weights are frozen but for LoRA's, so a product needs no input kept for the sake of its weight. What LoRA's gradients
need is the input in the form in which it was multiplied: one cast to eight bits serves q, k, v and their adapters, and
one product gives all three. The passes between products are kernels of their own (engine/kernels.py), the same for
every layer: nothing is compiled that depends on depth.

The model stays transformers' and PEFT's: weights, names, generation. Training's pass over packed rows is this file's.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from medreason.batch import IGNORE_INDEX, LOGIT_ROWS, PackedBatch
from medreason.config import ConfigError, LoraConfig, Precision, Recompute
from medreason.engine import kernels
from medreason.engine.attention import Documents, attend, attend_backward
from medreason.engine.fp8 import PARTS, TAIL, Rows, product
from medreason.engine.weights import Weight, base_of, hold

HeldWeights = defaultdict[int, dict[str, Weight]]  # by layer and name of the first of the linears held together
ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True)
class How:
    """How a base is held and a pass is carried out. Of these, `precision` and `fp8` alone change numbers."""

    precision: Precision  # of what is held: nf4, fp8 or bf16
    fp8: bool  # frozen weights are multiplied in E4M3, else in 16 bits
    copies: int = 1  # of the weights as they are multiplied (engine/weights.py)
    recompute: Recompute = Recompute.none
    spared: int = 0  # last layers that recompute one step less

    def recompute_of(self, layer: int, layers: int) -> Recompute:
        steps = list(KEPT)
        return steps[max(0, steps.index(self.recompute) - (layer >= layers - self.spared))]


class Projection:
    """Linear layers that share an input, as one product, and their adapters.

    Adapters too are one product: all A's one below the other, and the B's along the diagonal of one matrix.
    """

    def __init__(
        self,
        owner: nn.Module,
        names: Sequence[str],
        how: How,
        device: torch.device,
        weights: dict[str, Weight],
        channels: bool = False,
    ) -> None:
        modules = [getattr(owner, name) for name in names]
        heights, width = [base_of(module).out_features for module in modules], base_of(modules[0]).in_features
        biases = [base_of(module).bias for module in modules]
        ranks = sum(module.r["default"] for module in modules if hasattr(module, "lora_A"))
        height = sum(heights)
        # where a product gives far more than it takes, a pass over what it gives costs more than channels do
        room, turned_room = (TAIL * (channels and how.fp8 and ratio >= 3) for ratio in (height / width, width / height))
        fit = 0 < PARTS * ranks <= TAIL
        self.tailed, self.tailed_back = fit and room > 0, fit and turned_room > 0
        key = names[0]
        if key in weights:
            weights[key].keep(how.copies)
        else:
            bases = [base_of(module) for module in modules]
            held = hold(bases, device, how.precision, how.fp8, room)
            weights[key] = Weight(held, how.fp8, how.copies, room, turned_room)
        self.weight = weights[key]
        self.weight.held.stand_in(owner, names)
        self.ratios = torch.zeros(2, device=device)  # what balances an adapter's channels, forward and backward
        self.dtype, self.factor = self.weight.dtype, 1.0
        self.bias: Tensor | None = None
        if any(bias is not None for bias in biases):
            parts = [torch.zeros(own) if bias is None else bias for bias, own in zip(biases, heights, strict=True)]
            self.bias = torch.cat([part.detach().to(device, self.dtype) for part in parts])
        self.parts: list[tuple[slice, slice]] = []  # of each adapter: columns of the result, its ranks
        self.parameters: list[nn.Parameter] = []  # A and B of each adapter, float32
        start = rank = 0
        for module, own in zip(modules, heights, strict=True):
            columns = slice(start, start + own)
            start = columns.stop
            if hasattr(module, "lora_A"):
                module.to(device)
                down, up = module.lora_A["default"].weight, module.lora_B["default"].weight
                self.parts.append((columns, slice(rank, rank + down.shape[0])))
                self.parameters += [down, up]
                self.factor, rank = module.scaling["default"], rank + down.shape[0]
        # the adapters as products take them, renewed at each pass
        self.down = torch.empty(rank, width, dtype=self.dtype, device=device)
        self.up = torch.zeros(height, rank, dtype=self.dtype, device=device)

    def copies(self) -> list[Tensor]:
        """Where the values of `parameters` go before a pass."""
        return [copy for columns, ranks in self.parts for copy in (self.down[ranks], self.up[columns, ranks])]

    def balance(self) -> None:
        """Renews `ratios`, which are 0."""
        if self.tailed and self.weight.scale is not None:
            kernels.largest_ratio(self.up, self.weight.scale, self.ratios[:1])
        if self.tailed_back and self.weight.turned_scale is not None:
            kernels.largest_ratio(self.down.t(), self.weight.turned_scale, self.ratios[1:])

    def narrow(self, x: Rows) -> Tensor:
        """What A makes of the rows, times LoRA's factor: (tokens, ranks)."""
        return kernels.narrow(x, self.down, self.factor)

    def taken(self, x: Rows) -> tuple[Rows, Tensor]:
        """Rows as they are multiplied, and what A makes of them; those that get channels come in 16 bits."""
        few = self.narrow(x)
        return (kernels.cast_with_tail(x.values, few, self.ratios[:1]) if self.tailed else x), few

    def wide(self, x: Rows, narrow: Tensor, other: Tensor | None = None) -> Tensor:
        """The product with the frozen weight, and what B makes of `narrow`, and the bias or `other`."""
        if self.bias is not None:
            other = self.bias.expand(len(narrow), -1)
        rows = self.weight.rows() if self.tailed else self.weight.rows().left(self.weight.shape[1])
        if self.parts and not self.tailed:
            return with_update(x, rows, narrow, self.up.t(), other, self.dtype)
        if self.tailed:
            write_tail(self.up, rows, self.ratios[:1])
        y = product(x, rows, self.dtype)
        return y if other is None else y.add_(other)

    def backward(self, grad: Rows, x: Rows, narrow: Tensor, wanted: bool = True) -> tuple[Tensor | None, list[Tensor]]:
        """Gradients of x, where it is wanted, and of `parameters`."""
        height, width = self.weight.shape
        turned = self.weight.turned() if wanted else None
        if turned is not None and not self.tailed_back:
            turned = turned.left(height)
        if not self.parts:
            return None if turned is None else product(grad, turned, self.dtype), []
        narrow_grad = kernels.narrow(grad, self.up.t(), self.factor)
        if self.tailed_back:
            grad = kernels.cast_with_tail(grad.values, narrow_grad, self.ratios[1:])
        up_grad = kernels.summed_outer(grad.left(height), narrow)
        down_grad = kernels.summed_outer(x.left(width), narrow_grad)
        grads = [one for columns, ranks in self.parts for one in (down_grad[ranks], up_grad[ranks, columns].t())]
        if turned is None:
            return None, grads
        if not self.tailed_back:
            return with_update(grad, turned, narrow_grad, self.down, None, self.dtype), grads
        write_tail(self.down.t(), turned, self.ratios[1:])
        return product(grad, turned, self.dtype), grads


def write_tail(update: Tensor, rows: Rows, ratio: Tensor) -> None:
    """Writes an adapter's channels beside a frozen weight."""
    assert rows.scale is not None
    kernels.write_tail(update, rows.scale, ratio, rows.values[:, -TAIL:])


def with_update(x: Rows, weight: Rows, few: Tensor, update: Tensor, other: Tensor | None, dtype: torch.dtype) -> Tensor:
    """x weight^T + few update + other."""
    if weight.scale is None:  # a product in 16 bits can add to what is there, so the small one goes first
        y = few @ update if other is None else torch.addmm(other, few, update)
        return y.addmm_(x.values, weight.values.t())
    return kernels.add_product(product(x, weight, dtype), few, update, other)


@dataclass
class Kept:
    """What a layer's forward pass leaves for the backward pass. None: computed again when it is needed."""

    x: Tensor
    normed: Rows | None = None
    qkv_narrow: Tensor | None = None
    heads: Tensor | None = None  # queries and keys before their norms, in models that have such
    qkv: Tensor | None = None  # after rotation
    attended: Tensor | None = None
    attention_state: Any = None
    o_rows: Rows | None = None
    o_narrow: Tensor | None = None
    x2: Tensor | None = None
    normed2: Rows | None = None
    gate_up_narrow: Tensor | None = None
    gate_up: Tensor | None = None
    activated: Rows | None = None
    down_narrow: Tensor | None = None


KEPT = {  # the gated unit is 70% of what a layer leaves; attention's part costs more to make again than it holds
    Recompute.none: tuple(field.name for field in fields(Kept)),
    Recompute.selective: ("x", "heads", "qkv", "attended", "attention_state", "x2"),
    Recompute.full: ("x",),
}


@dataclass(frozen=True)
class Row:
    """What all layers need to know of a row."""

    cos: Tensor  # (tokens, head)
    sin: Tensor
    documents: dict[int | None, Documents]  # by the window that a layer sees
    cast: list[tuple[Tensor, Rows]]  # the gradient that a layer hands down, in the form in which it is multiplied next

    def rows_of(self, grad: Tensor, fp8: bool) -> Rows:
        handed, rows = self.cast.pop() if self.cast else (None, None)
        return rows if rows is not None and handed is grad else kernels.cast_rows(grad, fp8=fp8)


class Layer:
    """One decoder layer over packed rows."""

    def __init__(
        self, module: Any, config: Any, how: How, recompute: Recompute, device: torch.device, weights: dict[str, Weight]
    ) -> None:
        self.fp8, self.eps, self.recompute = how.fp8, config.rms_norm_eps, recompute
        attention = module.self_attn
        self.head = attention.head_dim
        self.heads, self.key_heads = config.num_attention_heads, config.num_key_value_heads
        self.window: int | None = getattr(attention, "sliding_window", getattr(config, "sliding_window", None))
        self.norm = module.input_layernorm.to(device).weight
        self.norm2 = module.post_attention_layernorm.to(device).weight
        self.head_norms: list[Tensor] = [
            getattr(attention, name).to(device).weight for name in ("q_norm", "k_norm") if hasattr(attention, name)
        ]
        self.qkv = Projection(attention, ("q_proj", "k_proj", "v_proj"), how, device, weights)
        self.o = Projection(attention, ("o_proj",), how, device, weights)
        self.gate_up = Projection(module.mlp, ("gate_proj", "up_proj"), how, device, weights, channels=True)
        self.down = Projection(module.mlp, ("down_proj",), how, device, weights, channels=True)
        self.projections = (self.qkv, self.o, self.gate_up, self.down)
        self.cast_at_norm2 = self.fp8 and not self.gate_up.tailed
        self.cast_below = self.fp8 and not self.down.tailed_back
        self.parameters = [one for projection in self.projections for one in projection.parameters]

    def split_heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys, values, each (tokens, heads, head), as views of `qkv`."""
        counts = [self.heads, self.key_heads, self.key_heads]
        q, k, v = torch.split(qkv.view(len(qkv), -1, self.head), counts, 1)
        return q, k, v

    def normalise_heads(self, qkv: Tensor) -> Tensor:
        """Gives each query and key head of `qkv` its norm, in place; what they were before, (tokens, their columns)."""
        before = qkv[:, : (self.heads + self.key_heads) * self.head].clone()
        parts = zip(self.split_heads(qkv)[:2], self.split_heads_of(before), self.head_norms, strict=True)
        for part, raw, weight in parts:
            _, normed = kernels.rms_norm(raw.reshape(-1, self.head), weight, self.eps, fp8=False)
            part.copy_(normed.values.view(part.shape))
        return before

    def split_heads_of(self, queries_and_keys: Tensor) -> tuple[Tensor, ...]:
        heads = queries_and_keys.view(len(queries_and_keys), -1, self.head)
        return torch.split(heads, [self.heads, self.key_heads], 1)

    def heads_backward(self, grads: tuple[Tensor, Tensor, Tensor], before: Tensor | None, row: Row) -> Rows:
        """Gradients of queries, keys and values -> of `qkv` as its product gave it."""
        if not self.head_norms:
            return kernels.rotate_backward(*grads, row.cos, row.sin, fp8=self.fp8)
        assert before is not None
        qkv = kernels.rotate_backward(*grads, row.cos, row.sin, fp8=False).values
        parts = zip(self.split_heads(qkv)[:2], self.split_heads_of(before), self.head_norms, strict=True)
        for part, raw, weight in parts:
            grad, raw = part.reshape(-1, self.head), raw.reshape(-1, self.head)
            grad, _ = kernels.rms_norm_backward(grad, raw, weight, self.eps, fp8=False)
            part.copy_(grad.view(part.shape))
        return kernels.cast_rows(qkv, fp8=self.fp8)

    def attention(self, kept: Kept, row: Row) -> None:
        """Fills in what is missing up to x2."""
        if kept.normed is None:
            _, kept.normed = kernels.rms_norm(kept.x, self.norm, self.eps, fp8=self.fp8)
        if kept.qkv_narrow is None:
            kept.qkv_narrow = self.qkv.narrow(kept.normed)
        if kept.qkv is None:
            qkv = self.qkv.wide(kept.normed, kept.qkv_narrow)
            if self.head_norms:
                kept.heads = self.normalise_heads(qkv)
            kept.qkv = kernels.rotate(qkv, row.cos, row.sin, self.heads + self.key_heads)
        if kept.attended is None:
            attended, kept.attention_state = attend(*self.split_heads(kept.qkv), row.documents[self.window])
            kept.attended = attended.flatten(1)
        if kept.o_rows is None:
            kept.o_rows = kernels.cast_rows(kept.attended, fp8=self.fp8)
        if kept.o_narrow is None:
            kept.o_narrow = self.o.narrow(kept.o_rows)
        if kept.x2 is None:
            delta = self.o.wide(kept.o_rows, kept.o_narrow)
            kept.x2, kept.normed2 = kernels.rms_norm(kept.x, self.norm2, self.eps, delta, fp8=self.cast_at_norm2)

    def gated_unit(self, kept: Kept) -> None:
        """Fills in what is missing from x2 on."""
        assert kept.x2 is not None
        if kept.normed2 is None:
            _, kept.normed2 = kernels.rms_norm(kept.x2, self.norm2, self.eps, fp8=self.cast_at_norm2)
        if kept.gate_up_narrow is None:
            kept.normed2, kept.gate_up_narrow = self.gate_up.taken(kept.normed2)
        if kept.gate_up is None:
            kept.gate_up = self.gate_up.wide(kept.normed2, kept.gate_up_narrow)
        if kept.activated is None:
            kept.activated = kernels.swiglu(kept.gate_up, fp8=self.fp8)
        if kept.down_narrow is None:
            kept.down_narrow = self.down.narrow(kept.activated)


class LayerStep(torch.autograd.Function):
    """A layer in torch's graph. LoRA's weights are arguments only so that torch asks for their gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Layer, row: Row, *parameters: Tensor) -> Tensor:
        kept = Kept(x)
        layer.attention(kept, row)
        layer.gated_unit(kept)
        assert kept.activated is not None and kept.down_narrow is not None and kept.x2 is not None
        y = layer.down.wide(kept.activated, kept.down_narrow, kept.x2)
        ctx.kept = Kept(**{name: getattr(kept, name) for name in KEPT[layer.recompute]})
        ctx.layer, ctx.row = layer, row
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        layer, row, kept = ctx.layer, ctx.row, ctx.kept
        ctx.kept = None  # torch would hold it until the whole pass is over
        layer.attention(kept, row)
        layer.gated_unit(kept)
        rows = row.rows_of(grad, layer.cast_below)
        activated_grad, down_grads = layer.down.backward(rows, kept.activated, kept.down_narrow)
        kept.activated = None
        rows = kernels.swiglu_backward(activated_grad, kept.gate_up, fp8=layer.fp8)
        del activated_grad
        kept.gate_up = None
        normed_grad, gate_up_grads = layer.gate_up.backward(rows, kept.normed2, kept.gate_up_narrow)
        x2_grad, rows = kernels.rms_norm_backward(normed_grad, kept.x2, layer.norm2, layer.eps, grad, fp8=layer.fp8)
        kept.x2 = kept.normed2 = None

        attended_grad, o_grads = layer.o.backward(rows, kept.o_rows, kept.o_narrow)
        q, k, v = layer.split_heads(kept.qkv)
        attended, shaped_grad = (one.view(len(one), -1, layer.head) for one in (kept.attended, attended_grad))
        grads = attend_backward(shaped_grad, q, k, v, attended, kept.attention_state, row.documents[layer.window])
        rows = layer.heads_backward(grads, kept.heads, row)
        # the first layer's input is a frozen embedding
        wanted = ctx.needs_input_grad[0]
        normed_grad, qkv_grads = layer.qkv.backward(rows, kept.normed, kept.qkv_narrow, wanted)
        x_grad = None
        if wanted:
            x_grad, rows = kernels.rms_norm_backward(
                normed_grad, kept.x, layer.norm, layer.eps, x2_grad, fp8=layer.cast_below
            )
            row.cast.append((x_grad, rows))
        return x_grad, None, None, *qkv_grads, *o_grads, *gate_up_grads, *down_grads


class HeadLoss(torch.autograd.Function):
    """Last norm, head and cross entropy, a few tokens at a time; gradients are made with the loss, in one visit."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: Tensor, eps: float, head: Tensor, labels: Tensor, train: bool) -> Tensor:
        normed_grad = torch.empty_like(x) if train else None
        total = torch.zeros((), device=x.device)
        for start in range(0, len(x), LOGIT_ROWS):
            part = slice(start, start + LOGIT_ROWS)
            logits = head_logits(x[part], norm, eps, head)
            total += kernels.cross_entropy(logits, labels[part]).sum()
            if normed_grad is not None:
                torch.mm(logits, head, out=normed_grad[part])
            del logits  # else they would be there while the next are made: 0.6 GiB with Qwen's vocabulary
        ctx.eps = eps
        ctx.save_for_backward(normed_grad, x, norm)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        normed_grad, x, norm = ctx.saved_tensors
        x_grad, _ = kernels.rms_norm_backward(normed_grad, x, norm, ctx.eps, fp8=False)
        return x_grad.mul_(grad), None, None, None, None, None


def head_logits(x: Tensor, norm: Tensor, eps: float, head: Tensor) -> Tensor:
    """Last norm and head, (tokens, vocabulary)."""
    _, normed = kernels.rms_norm(x, norm, eps, fp8=False)
    logits: Tensor = normed.values @ head.t()
    return logits


def shifted(labels: Tensor) -> Tensor:
    """To each token the label of the next."""
    return torch.nn.functional.pad(labels[1:], (0, 1), value=IGNORE_INDEX)


class PackedPass:
    """Takes the decoder layers of a PEFT model over; `loss` is training's pass over packed rows.

    `weights`, of each layer, are taken from there where an earlier pass over the same base has left them.
    """

    def __init__(self, model: Any, how: How, device: torch.device, weights: HeldWeights) -> None:
        causal = model.base_model.model  # PeftModel -> LoraModel -> transformers' model
        self.causal, self.fp8 = causal, how.fp8
        modules = causal.model.layers
        self.layers = [
            Layer(module, causal.config, how, how.recompute_of(index, len(modules)), device, weights[index])
            for index, module in enumerate(modules)
        ]
        self.windows = {layer.window for layer in self.layers}
        model.to(device)
        self.projections = [projection for layer in self.layers for projection in layer.projections]
        pairs = [pair for one in self.projections for pair in zip(one.copies(), one.parameters, strict=True)]
        # torch copies a list in one kernel only where all of it is contiguous, which parts of a diagonal are not
        parts = [[pair for pair in pairs if pair[0].is_contiguous() is whole] for whole in (True, False)]
        self.renewed = [part for part in parts if part]

    def loss(self, input_ids: Tensor, labels: Tensor, position_ids: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """Cross entropy summed over labels that are not negative; float32, shape ().

        The first three are (tokens,) int64; labels are not shifted. `lengths` are those of the documents.
        """
        x = self.hidden(input_ids, position_ids, lengths)
        norm, head = self.causal.model.norm, self.causal.lm_head.weight
        loss: Tensor = HeadLoss.apply(
            x, norm.weight, norm.variance_epsilon, head, shifted(labels), torch.is_grad_enabled()
        )
        return loss

    @torch.no_grad()
    def token_losses(self, batch: PackedBatch) -> Tensor:
        """Cross entropy of each label of a batch, 0 where it is negative; (tokens,) float32, at the token before it."""
        tokens, labels, positions = (one.flatten() for one in (batch.input_ids, batch.labels, batch.position_ids))
        norm, head = self.causal.model.norm, self.causal.lm_head.weight
        with torch.autocast(tokens.device.type, enabled=False):
            x = self.hidden(tokens, positions, batch.lengths)
            parts = zip(torch.split(x, LOGIT_ROWS), torch.split(shifted(labels), LOGIT_ROWS), strict=True)
            logits = ((head_logits(part, norm.weight, norm.variance_epsilon, head), own) for part, own in parts)
            return torch.cat([kernels.cross_entropy(some, own) for some, own in logits])

    def hidden(self, input_ids: Tensor, position_ids: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """What the last decoder layer leaves, (tokens, hidden)."""
        decoder = self.causal.model
        with torch.no_grad():
            for pairs in self.renewed:
                torch._foreach_copy_([copy for copy, _ in pairs], [value for _, value in pairs])
            torch._foreach_zero_([projection.ratios for projection in self.projections])
            for projection in self.projections:
                projection.balance()
            x = decoder.embed_tokens(input_ids)
            cos, sin = (one[0].contiguous() for one in decoder.rotary_emb(x[None], position_ids[None]))
        documents = {window: Documents.of(lengths, window, x.device) for window in self.windows}
        row = Row(cos, sin, documents, [])
        for layer in self.layers:
            x = LayerStep.apply(x, layer, row, *layer.parameters)
        last: Tensor = x
        return last

    def step(self, batch: PackedBatch) -> Tensor:
        """`loss` of a batch; 0 for one that counts for nothing."""
        tokens, labels, positions = (one.flatten() for one in (batch.input_ids, batch.labels, batch.position_ids))
        with torch.autocast(tokens.device.type, enabled=False):
            loss = self.loss(tokens, labels, positions, batch.lengths)
        return loss if batch.targets else 0 * loss


def load_base(path: str, revision: str | None, precision: Precision) -> Any:
    """transformers' model for `adapt`, its weights where they came from or in four bits on the device.

    Raises ConfigError for a model of another architecture, and for one whose weights are already held in other bits.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = AutoConfig.from_pretrained(path, revision=revision)
    check_architecture(settings)
    check_held(settings, precision)
    quantised: dict[str, Any] = {}
    if precision is Precision.nf4:
        quantised["device_map"] = {"": device_here()}  # a weight is rounded as it arrives
        if getattr(settings, "quantization_config", None) is None:
            quantised["quantization_config"] = four_bits(torch.bfloat16)
    # else the base goes through the host's memory, a layer at a time: the card never holds it in 16 bits and in 8
    return AutoModelForCausalLM.from_pretrained(path, revision=revision, dtype=torch.bfloat16, **quantised)


def four_bits(dtype: torch.dtype) -> Any:
    """What has transformers hold a base as Unsloth and QLoRA do (Dettmers et al. 2023)."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def device_here() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def adapt(base: Any, lora: LoraConfig, how: How, seed: int, weights: HeldWeights | None = None) -> Any:
    """A PEFT model around a transformers model, whose weights it uses, in training mode; on the current GPU if any.

    Its attribute `packed` is its PackedPass. LoRA is float32, the base as `how` says. `weights` is filled, for the next
    adapter of the same base, whose own weights then hold nothing. TrainConfig refuses kinds of LoRA that it lacks.
    """
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    torch.manual_seed(seed)
    model = get_peft_model(
        base,
        PeftConfig(
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.target_modules,
            use_rslora=lora.rslora,
            task_type="CAUSAL_LM",
        ),
    )
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    model.packed = PackedPass(model, how, device_here(), defaultdict(dict) if weights is None else weights)
    return model.train()


def check_architecture(config: Any) -> None:
    """Raises ConfigError for a model that this engine would not compute as transformers does."""
    instead = "use model.engine=unsloth with model.precision=nf4 or half"
    if config.model_type not in ARCHITECTURES:
        *others, last = ARCHITECTURES
        raise ConfigError(
            f"model.engine=fast knows {', '.join(others)} and {last} models, not {config.model_type}; {instead}"
        )
    if getattr(config, "mlp_bias", False) or config.hidden_act != "silu":
        raise ConfigError(f"model.engine=fast knows layers with SiLU whose gated unit has no biases; {instead}")


def check_held(config: Any, precision: Precision) -> None:
    """Raises ConfigError for a model whose files hold its weights in other bits than those asked for."""
    held = getattr(config, "quantization_config", None)
    if held is None:
        return
    method = held.get("quant_method") if isinstance(held, dict) else getattr(held, "quant_method", None)
    four = held.get("load_in_4bit") if isinstance(held, dict) else getattr(held, "load_in_4bit", False)
    if not (precision is Precision.nf4 and four):
        name = "4 bits" if four else str(getattr(method, "value", method))
        cure = "use model.precision=nf4" if four else "name the model's own weights in 16 bits"
        raise ConfigError(f"model.precision={precision.value}: this model's files hold it in {name} already; {cure}")
