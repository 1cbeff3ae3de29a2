"""A strict stand-in for the `tensorrt` module of one version: only what that version has, and answers that are real.

The surface comes from tests/trt_api: what a version lacks raises AttributeError, wrong arguments raise TypeError,
deprecated members warn. Behind it the builder reads the ONNX file, a "plan" carries the graph, and
``execute_async_v3`` puts work on the stream: when that is run or replayed, it reads the input at its device address,
runs the graph in ONNX Runtime and writes the outputs at their device addresses, in the memory of tests/cuda_standin.
"""

from __future__ import annotations

import ctypes
import json
import types
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fake_tensorrt_parts as parts

API = Path(__file__).parents[1] / "trt_api"
VERSIONS = [path.stem for path in sorted(API.glob("*.json"))]


@dataclass
class Fake:
    """Switches for faults, and what was seen; reached as ``module.fake``."""

    version: str
    major: int
    is_rtx: bool
    surface: dict[str, Any]
    used: set[str] = field(default_factory=set)  # every method and property that was touched, as Class.member
    misuse: list[str] = field(default_factory=list)
    live: int = 0  # runtimes, engines and contexts not yet destroyed
    builds: int = 0
    refuses_strong_typing: bool = False
    runs_in: str | None = None  # a builder that builds every layer in this precision
    fails_to_build: bool | str = False  # a text: for this reason
    refuses_graph: bool = False  # a parser that does not know an operator of it
    refuses_context: bool = False
    refuses_addresses: bool = False
    fails_on_frame: bool = False
    fails_in_capture: bool = False  # an engine that cannot be recorded as a CUDA graph
    kernel_s: float = 0.0  # time in what a GPU would do, of all frames
    map_offset: float = 0.0  # an engine that computes something else
    build_hook: Any = None  # called while building
    dla_cores: int = 0  # of the device
    dla_takes_nothing: bool = False
    needs_cuda: bool = True  # a CUDA context must be current where engines are made and destroyed


class Enum:
    """An enumeration member: no int, but has one."""

    def __init__(self, kind: str, name: str, number: int):
        self._kind, self.name, self.value = kind, name, number

    def __int__(self) -> int:
        return self.value

    def __index__(self) -> int:
        return self.value

    def __repr__(self) -> str:
        return f"{self._kind}.{self.name}"


class _ClassMeta(type):
    """As with the real bindings: a subclass must call its base's ``__init__``, most classes cannot be made at all."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        made = super().__call__(*args, **kwargs)
        if "_impl" not in made.__dict__:
            raise TypeError(f"{cls.__name__}.__init__() must be called when overriding __init__")
        return made


def make_module(version: str) -> Any:
    """The module ``tensorrt`` (or ``tensorrt_rtx``) of one version file."""
    surface = json.loads((API / f"{version}.json").read_text())
    is_rtx = version.startswith("tensorrt_rtx")
    number = version.rpartition("-")[2]
    module: Any = types.ModuleType("tensorrt_rtx" if is_rtx else "tensorrt")
    fake = Fake(number, int(number.partition(".")[0]), is_rtx, surface)
    module.__dict__["fake"] = fake
    for name, members in surface["enums"].items():
        kind = type(name.rpartition(".")[2], (), {member: Enum(name, member, n) for member, n in members.items()})
        if "." not in name:
            setattr(module, name, kind)
        else:
            surface.setdefault("nested", {})[name] = kind
    for name in _bases_first(surface["classes"]):
        if "." not in name and name not in surface["enums"]:
            setattr(module, name, _make_class(module, fake, name, surface["classes"][name]))
    for name, value in surface["module_attr_values"].items():
        kind_name, _, member = value.partition(".")
        setattr(module, name, getattr(getattr(module, kind_name), member) if member else number)
    return module


def _bases_first(classes: dict[str, Any]) -> list[str]:
    done: list[str] = []

    def add(name: str) -> None:
        for base in classes[name].get("bases", ()):
            if base in classes:
                add(base)
        if name not in done:
            done.append(name)

    for name in classes:
        add(name)
    return done


def _make_class(module: Any, fake: Fake, name: str, facts: dict[str, Any]) -> type:
    deprecated = set(facts.get("warns_deprecated", ()))
    namespace: dict[str, Any] = {}
    for method in facts["methods"]:
        if method not in ("__init__", "__del__", "__enter__", "__exit__"):
            namespace[method] = _method(fake, name, method, facts["overloads"].get(method, [[]]), method in deprecated)
    for attribute in facts["properties"]:
        is_readonly = attribute in facts.get("readonly_properties", ())
        namespace[attribute] = _property(fake, name, attribute, is_readonly, attribute in deprecated)
    for attribute in facts.get("class_attrs", ()):
        nested = fake.surface.get("nested", {}).get("ILogger.Severity")
        if name in ("ILogger", "Logger"):
            namespace[attribute] = nested if attribute == "Severity" else getattr(nested, attribute)
    bases = tuple(getattr(module, base) for base in facts.get("bases", ()) if hasattr(module, base))
    implementation = getattr(parts, name, parts.Nothing)

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        if not facts.get("constructible", True):
            raise TypeError(f"{name}: No constructor defined!")
        _check_arguments(f"{name}.__init__", facts["overloads"].get("__init__", [[]]), args, kwargs)
        self.__dict__["_impl"] = implementation(module, *args, **kwargs)

    def set_attribute(self: Any, attribute: str, value: Any) -> None:
        is_subclass = type(self).__module__ != "tensorrt"
        if not is_subclass and not isinstance(getattr(type(self), attribute, None), property):
            raise AttributeError(f"'{name}' object has no attribute '{attribute}'")
        object.__setattr__(self, attribute, value)

    namespace |= {"__init__": init, "__setattr__": set_attribute, "__module__": "tensorrt"}
    return _ClassMeta(name, bases or (object,), namespace)


def _check_arguments(what: str, overloads: list[list[str]], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for overload in overloads:
        names = [argument.rstrip("=") for argument in overload if argument != "*"]
        required = [argument for argument in overload if not argument.endswith("=") and argument != "*"]
        given = set(names[: len(args)]) | set(kwargs)
        fits = len(args) <= len(names) and set(kwargs) <= set(names[len(args) :])
        if fits and given >= set(required):
            return
    raise TypeError(f"{what}(): incompatible function arguments: {args} {kwargs}, expected one of {overloads}")


def _note(fake: Fake, name: str, is_deprecated: bool) -> None:
    fake.used.add(name)
    if is_deprecated:
        warnings.warn(f"{name} is deprecated", DeprecationWarning, stacklevel=3)


def _method(fake: Fake, name: str, method: str, overloads: list[list[str]], is_deprecated: bool) -> Any:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        _note(fake, f"{name}.{method}", is_deprecated)
        _check_arguments(f"{name}.{method}", overloads, args, kwargs)
        return getattr(self._impl, method)(*args, **kwargs)

    return call


def _property(fake: Fake, name: str, attribute: str, is_readonly: bool, is_deprecated: bool) -> property:
    def get(self: Any) -> Any:
        _note(fake, f"{name}.{attribute}", is_deprecated)
        return getattr(self._impl, attribute)

    def put(self: Any, value: Any) -> None:
        _note(fake, f"{name}.{attribute}", is_deprecated)
        if not hasattr(self._impl, attribute):
            raise NotImplementedError(f"the fake has no behaviour for {name}.{attribute}")
        setattr(self._impl, attribute, value)

    return property(get, None if is_readonly else put)


def wrap(module: Any, name: str, *args: Any) -> Any:
    """An object of a class that the user cannot make, such as INetworkDefinition."""
    kind = getattr(module, name)
    made = object.__new__(kind)
    made.__dict__["_impl"] = getattr(parts, name)(module, *args)
    return made


def cuda_driver() -> Any:
    """The driver library of this process: the stand-in, which checks every address."""
    return ctypes.CDLL("libcuda.so.1")


parts.wrap, parts.cuda_driver = wrap, cuda_driver
