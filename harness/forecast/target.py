"""Target: the model of a forecast, from a published shape, a checkpoint's headers or a packed store.

Sizes are those on the disk and in memory of the machine in question: MLX on a CPU widens 16-bit floats.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.cache.slot_layout import slot_bytes
from engine.checkpoint.built.model import BuiltModel
from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.experts import AFFINE_BITS
from engine.checkpoint.places.hub import repository
from engine.errors import HeadraceError, did_you_mean
from engine.knobs import GB
from engine.shapes.as_checkpoint import as_checkpoint
from engine.shapes.formats import BF16, affine
from engine.shapes.library import names, shape
from engine.shapes.shape import GROUP_SIZE, Shape, Source

LOWER = (4, 3, 2)  # bits of the experts of a shape that are forecast besides its own
DEFAULT_BITS = 4  # of a conversion, where MLX does not compute with the published format
TRACE = "routing_trace.parquet"


@dataclass(frozen=True)
class Width:
    """One expert at one width: bytes that are read, and bytes that a slot takes without widened floats."""

    bits: int
    expert_bytes: int
    own: bool  # whether the model has this width, not a conversion of it


@dataclass(frozen=True)
class Target:
    """A model's sizes. `resident_bytes` are all weights but the routed experts, of which a token does not read the
    `embedding_bytes`. `half_bytes` are the 16-bit floats among them. `shape` gives the module, as far as mlx-lm has it."""

    name: str
    title: str
    layers: int  # with routed experts
    all_layers: int
    experts: int  # of a layer
    top_k: int
    widths: tuple[Width, ...]  # the widest first
    resident_bytes: int
    embedding_bytes: int
    half_bytes: int
    shape: Shape
    base_bits: int | None  # of the conversion that is meant; None: the model's own formats
    checkpoint: Checkpoint | None = None  # None: mlx-lm lacks the architecture
    files: tuple[Path, ...] = ()  # on the disk to measure
    trace: Path | None = None

    def disk_gb(self, width: Width) -> float:
        return (self.resident_bytes + self.layers * self.experts * width.expert_bytes) / GB

    def resident_gb(self, *, widened: bool) -> float:
        return (self.resident_bytes + (self.half_bytes if widened else 0)) / GB

    def slot_gb(self, width: Width, *, widened: bool) -> float:
        """A slot, GB. Widening doubles the scales and biases, whatever the bits are."""
        if self.checkpoint is None:
            return width.expert_bytes / GB
        layer = max(self.checkpoint.layers, key=lambda one: one.expert_bytes)
        base = layer.at(dict.fromkeys(layer.projections, layer.bits(layer.projections[0])))
        if widened:
            import mlx.core as mx

            more = slot_bytes(base, {}, mx.float32) - base.expert_bytes
        else:
            more = slot_bytes(base, {}, None) - base.expert_bytes
        return (width.expert_bytes + more) / GB


def target(what: str, trace: Path | None = None) -> Target:
    """The model that `what` names: a folder, ORG/NAME that is downloaded, or a published shape. Raises `HeadraceError`."""
    path = Path(what).expanduser()
    if path.exists() or (what not in names() and repository(what) is not None):
        return _of_checkpoint(what, trace)
    if what not in names():
        near = did_you_mean(what, [*names()])
        hint = f"{near} (headrace shapes lists all)" if near.startswith("did") else "headrace shapes lists the shapes"
        raise HeadraceError(f"{what} is neither a folder nor a published shape; {hint}")
    return _of_shape(shape(what), trace)


def _of_shape(model: Shape, trace: Path | None) -> Target:
    runs = bool(model.experts_format.mode)
    base = None if runs else DEFAULT_BITS
    bits = [model.experts_format.bits] * runs + [n for n in LOWER if not runs or n < model.experts_format.bits]
    widths = tuple(
        Width(n, model.expert_bytes(None if runs and n == bits[0] else n), own=n == bits[0]) for n in bits
    )  # fmt: skip
    found = as_checkpoint(model, base) if model.has_module else None
    text = {**model.config, **model.config.get("text_config", {})}
    built = model.built if model.has_module else None
    vocabulary, hidden = (built.vocabulary, built.hidden) if built is not None else (text["vocab_size"], text["hidden_size"])
    return Target(
        name=model.name, title=model.title, layers=model.layers, all_layers=layers_of(model), experts=model.experts,
        top_k=model.top_k, widths=widths, resident_bytes=model.resident_bytes(base),
        embedding_bytes=_embedding(text, vocabulary, hidden, base), half_bytes=0 if found is None else found.half_bytes,
        shape=model, base_bits=base, checkpoint=found, trace=trace,
    )  # fmt: skip


def _of_checkpoint(what: str, trace: Path | None) -> Target:
    found = Checkpoint.open(what)
    built: BuiltModel = found.built
    text = found.text_config
    largest = max(found.layers, key=lambda layer: layer.experts)
    widths = tuple(
        Width(n, found.layers[0].at(dict.fromkeys(found.layers[0].projections, n)).expert_bytes, own=True)
        for n in sorted(found.levels or (found.expert_bits,), reverse=True)
    )
    how = found.config.get("quantization") or found.config.get("quantization_config") or {}
    bits = how.get("bits") if isinstance(how.get("bits"), int) else None  # of everything, not of the experts alone
    computed = bits or (found.expert_bits if found.expert_bits in AFFINE_BITS else None)
    form = BF16 if computed is None else affine(computed, GROUP_SIZE)
    config = {k: v for k, v in found.config.items() if k not in ("quantization", "quantization_config")}
    model = Shape(found.name, found.name, config, form, form, None, None, (), Source(str(found.path), str(found.path), ""))
    return Target(
        name=found.name, title=found.name, layers=len(found.layers), all_layers=int(built.layers), experts=largest.experts,
        top_k=found.top_k, widths=widths, resident_bytes=found.rest_bytes,
        embedding_bytes=_embedding(text, built.vocabulary, built.hidden, bits), half_bytes=found.half_bytes, shape=model,
        base_bits=computed, checkpoint=found, files=found.files, trace=trace or trace_of(found, largest.experts),
    )  # fmt: skip


def layers_of(model: Shape) -> int:
    """Layers that compute, those without routed experts too."""
    return int(model.built.layers) if model.has_module else model.layers


def _embedding(text: dict[str, Any], vocabulary: int, hidden: int, bits: int | None) -> int:
    """Bytes of the embedding, of which a token reads one row; 0 where it is the head as well."""
    return 0 if text.get("tie_word_embeddings") else round(vocabulary * hidden * (2 if bits is None else (bits + 0.5) / 8))


def trace_of(found: Checkpoint, experts: int) -> Path | None:
    """A trace beside the checkpoint or in the folder above it, if its description is that of the model."""
    import pyarrow.parquet as pq

    for folder in (found.path, found.path.parent):
        file = folder / TRACE
        if file.is_file():
            known = pq.read_schema(file).metadata or {}
            sizes = [int(known.get(key, b"0")) for key in (b"num_layers", b"num_experts", b"top_k")]
            if sizes == [len(found.layers), experts, found.top_k]:
                return file
    return None
