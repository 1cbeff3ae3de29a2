"""Reads other programs' checkpoints without running anything that is in them."""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor

from rdedge.errors import WeightsError

REMEDY = "pass a checkpoint of the official RD4AD code or of anomalib's ReverseDistillation"
_MAX_PICKLE_BYTES = 64 << 20  # names and numbers only; the tensors lie beside it
_MAX_MODULES, _MAX_DEPTH = 10_000, 32  # a module may be made to hold itself
_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# What a checkpoint with settings or a whole module may name. None of it is imported: each becomes an Inert.
_NAMED_PACKAGES = {
    *("torch", "torchvision", "torchmetrics", "timm", "lightning", "pytorch_lightning", "lightning_fabric", "anomalib"),
    *("omegaconf", "jsonargparse", "collections", "pathlib", "enum", "typing", "numpy", "_codecs", "copyreg"),
}
_NAMED_BUILTINS = {"set", "frozenset", "slice", "complex", "bytearray", "list", "dict", "tuple", "object"}


class Inert:
    """Stands for an object of a class that is not loaded: its class's ``name``, ``arguments`` and ``state``."""

    name = ""

    def __init__(self, *arguments: object, **named: object):
        self.arguments = arguments
        self.state: object = {}

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __setitem__(self, key: object, value: object) -> None:
        """Contents of a foreign dictionary: not looked at. So are those of a list or set."""

    def append(self, value: object) -> None:
        """See ``__setitem__``."""

    extend = add = append


def read_checkpoint(path: Path) -> object:
    """What ``torch.save`` wrote, with real tensors, dictionaries and numbers; all else is ``Inert``.

    Raises WeightsError on a damaged file, and on one that names what no checkpoint needs.
    """
    try:
        if not zipfile.is_zipfile(path):  # torch's format before 1.6; its tensor-only loader reads it
            return torch.load(path, map_location="cpu", weights_only=True)
        with zipfile.ZipFile(path) as archive:
            return _Unpickler(archive).load()
    except Exception as exc:  # a damaged pickle raises almost any type
        reason = (str(exc).splitlines() or [type(exc).__name__])[0]
        raise WeightsError(f"{path}: not a readable checkpoint ({reason})", remedy=REMEDY) from exc


def module_state(module: object, path: Path) -> dict[str, Tensor]:
    """The state dict of an inert ``torch.nn.Module``; empty if it is none. ``path`` is only for messages.

    Raises WeightsError if it has no end.
    """
    state: dict[str, Tensor] = {}
    waiting = [("", module)]
    for _ in range(_MAX_MODULES):
        if not waiting:
            return state
        prefix, one = waiting.pop()
        if prefix.count(".") > _MAX_DEPTH:
            break
        if not isinstance(one, Inert) or not isinstance(one.state, dict):
            continue
        for kind in ("_parameters", "_buffers", "_modules"):
            entries = one.state.get(kind)
            for key, value in entries.items() if isinstance(entries, dict) else ():
                if isinstance(value, Tensor):
                    state[f"{prefix}{key}"] = value
                elif kind == "_modules":
                    waiting.append((f"{prefix}{key}.", value))
    raise WeightsError(f"{path}: a module in it holds too many others, or itself", remedy=REMEDY)


class _Unpickler(pickle.Unpickler):
    """Of torch's zip format: ``<name>/data.pkl`` and one ``<name>/data/<key>`` for each storage, all uncompressed."""

    def __init__(self, archive: zipfile.ZipFile):
        self._archive = archive
        names = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(names) != 1:
            raise pickle.UnpicklingError("no data.pkl in it")
        self._root = names[0].removesuffix("data.pkl")
        byte_order = f"{self._root}byteorder"
        if byte_order in archive.namelist() and self._read(byte_order, 16) != b"little":
            raise pickle.UnpicklingError("written on a big-endian machine")
        self._storages: dict[str, Tensor] = {}
        super().__init__(archive.open(self._checked(names[0], _MAX_PICKLE_BYTES)), encoding="utf-8")

    def find_class(self, module: str, name: str) -> object:
        """Never imports."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _parameter
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        is_builtin = module in ("builtins", "__builtin__")
        if not (name in _NAMED_BUILTINS if is_builtin else module.partition(".")[0] in _NAMED_PACKAGES):
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no checkpoint needs")
        return type(name.rpartition(".")[2] or "Inert", (Inert,), {"name": f"{module}.{name}"})

    def persistent_load(self, pid: object) -> Tensor:
        """One storage as a flat tensor."""
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage" or not isinstance(pid[1], torch.dtype):
            raise pickle.UnpicklingError("a storage of unknown kind")
        _, dtype, key, _, count = pid
        if key not in self._storages:
            data = self._read(f"{self._root}data/{key}", count * dtype.itemsize)
            if len(data) != count * dtype.itemsize:
                raise pickle.UnpicklingError(f"storage {key} has {len(data)} bytes, expected {count * dtype.itemsize}")
            self._storages[key] = (
                torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
            )
        return self._storages[key]

    def _read(self, name: str, most_bytes: int) -> bytes:
        return self._archive.read(self._checked(name, most_bytes))

    def _checked(self, name: str, most_bytes: int) -> zipfile.ZipInfo:
        info = self._archive.getinfo(name)
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > most_bytes:
            raise pickle.UnpicklingError(f"{name} is compressed or larger than it may be")
        return info


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Tensor:
    """A view of a storage; torch refuses one that leaves it."""
    view = storage.as_strided(size, stride, offset)
    if view.numel() > storage.numel():
        raise pickle.UnpicklingError("a tensor larger than its storage")
    return view


def _parameter(tensor: Tensor, *_: object) -> Tensor:
    return tensor
