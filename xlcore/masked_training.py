"""Training a ticket's weights and no others: packed values move, all the rest stays to the bit.

Takes a model and a `Ticket`; a soft prompt beside them is an ordinary parameter of the optimizer.
LTP section 3: back to the pretrained weights, then update the selected weights and the prompt.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from xlcore.devices import return_large_buffers
from xlcore.tickets import Tensors, Ticket


@dataclass(eq=False)
class _Part:
    """The active weights of one parameter, a few places in a dense tensor."""

    weight: nn.Parameter  # dense, the model's own
    index: Tensor  # (active,) flat places in it
    before: Tensor = field(init=False)  # (active,) what stood there, in the model's dtype
    packed: nn.Parameter = field(init=False)  # (active,) what the optimizer moves

    def __post_init__(self) -> None:
        self.before = self.weight.detach().reshape(-1)[self.index.long()]
        # In bf16, a step of a hundredth of a percent would be rounded away.
        dtype = torch.promote_types(self.before.dtype, torch.float32)
        self.packed = nn.Parameter(self.before.to(dtype, copy=True))

    def collect(self, weight: nn.Parameter) -> None:
        """Add the active entries of a finished dense gradient to the packed one; drop the rest."""
        held, wanted = weight.detach().reshape(-1)[self.index.long()], self.packed.to(weight.dtype)
        # Values are compared, for a fused optimizer leaves no trace in a tensor's version.
        if not torch.allclose(held, wanted, rtol=0, atol=0, equal_nan=True):
            raise RuntimeError("the optimizer has moved the weights: call write() after step()")
        if weight.grad is None:
            raise RuntimeError("another ticket trains on this model: remove() that one first")
        fresh = weight.grad.reshape(-1)[self.index.long()].to(self.packed.dtype)
        self.packed.grad = fresh if self.packed.grad is None else self.packed.grad.add_(fresh)
        weight.grad = None

    @torch.no_grad()
    def put(self, values: Tensor) -> None:
        """Write values (active,) to their places, rounded to the model's dtype."""
        self.weight.view(-1)[self.index.long()] = values.to(self.weight.dtype)


class MaskedWeights:
    """A model's active weights as packed parameters that any optimizer can drive.

    The obvious way to train a ticket multiplies every dense gradient by a dense mask, keeps Adam's
    two moments for every weight, and puts the frozen weights back after each step. This class
    gives the same weights and holds something for the active ones only. Its parameters are one
    vector for each tensor of the ticket, with its active weights in fp32. Whenever a backward pass
    has finished a dense gradient, a hook adds the active entries to the vector's gradient and
    drops the dense one before the next layer makes its own; that of word embeddings in scope which
    are the head's matrix, too, lives from the head's part to theirs. Accumulation, clipping, weight
    decay and the optimizer see vectors alone, so no inactive weight can move:

        with MaskedWeights(model, ticket) as weights:
            optimizer = torch.optim.AdamW([*weights.parameters(), *prompt.parameters()])
            for batch in batches:
                loss(model, prompt, batch).backward()
                optimizer.step()
                weights.write()  # from the vectors into the model
                optimizer.zero_grad()
            found = weights.values()

    Leaving the block gives the model back as it was, to the bit. With `values`, the block holds
    the model as a ticket trained before made it. With `accelerate`, prepare the model first. All
    other parameters of the model are frozen meanwhile. Raises InputError if ticket, values and
    model do not fit, and RuntimeError among several processes, which would each see other data.
    """

    def __init__(self, model: nn.Module, ticket: Ticket, values: Tensors | None = None) -> None:
        group = torch.distributed
        if group.is_available() and group.is_initialized() and group.get_world_size() > 1:
            raise RuntimeError("a ticket trains in one process; run seeds side by side instead")
        weights = ticket.of(model)
        return_large_buffers(weights.values())
        self._ticket = ticket
        self._parts = {n: _Part(w, ticket.indices(n).to(w.device)) for n, w in weights.items()}
        if values is not None:
            self.write(values)
        self._flags = [(p, p.requires_grad) for p in model.parameters()]
        model.requires_grad_(False).zero_grad()
        self._hooks = [
            part.weight.requires_grad_().register_post_accumulate_grad_hook(part.collect)
            for part in self._parts.values()
            if len(part.index)
        ]

    def __enter__(self) -> "MaskedWeights":
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def parameters(self) -> list[nn.Parameter]:
        """Return the packed weights (active,) of each tensor that has any, for an optimizer."""
        return [part.packed for part in self._parts.values() if len(part.index)]

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Return the packed weights (active,) of all tensors by name, those without any too."""
        return {name: part.packed for name, part in self._parts.items()}

    def values(self) -> dict[str, Tensor]:
        """Return copies of the active weights (active,) by parameter name, in fp32."""
        return {name: part.packed.detach().clone() for name, part in self._parts.items()}

    @torch.no_grad()
    def write(self, values: Tensors | None = None) -> None:
        """Bring the model up to the packed weights, after a step, or both up to given values.

        Raises InputError for values that do not fit the ticket.
        """
        if values is not None:
            self._ticket.check_values(values)
        for name, part in self._parts.items():
            if values is not None:
                part.packed.copy_(values[name])
            part.put(part.packed)

    def remove(self) -> None:
        """Take the ticket off: the weights of before come back, and what could be trained then."""
        for hook in self._hooks:
            hook.remove()
        for part in self._parts.values():
            part.put(part.before)
        for parameter, flag in self._flags:
            parameter.requires_grad_(flag)
