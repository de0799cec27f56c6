"""Methods that live outside of the package: one Python file, with one configuration class.

Whoever calls this runs that file. Whether it may is decided before, in `outmodal.launch.code`.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from functools import cache
from importlib.abc import ExecutionLoader
from importlib.util import decode_source, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, cast, get_args

from pydantic import create_model
from pydantic.errors import PydanticUndefinedAnnotation, PydanticUserError

from outmodal.errors import UserError
from outmodal.train.methods.settings import MethodSettings

KEYS = ("path", "sha256")
"""Keys that the configuration of every such method has beside its own."""


class OutsideSettings(MethodSettings):
    """What is put beside the keys of a method from outside.

    Attributes:
        path: Its file.
        sha256: Of the file, so that a run does not go on with other code.
        source: The file's content.
    """

    path: str
    sha256: str = ""
    source: ClassVar[bytes] = b""


def read_code(path: str | Path) -> bytes:
    """The content of a method's file.

    Raises:
        UserError: There is no such file, it is no Python file, or it cannot be read.
    """
    file = Path(path)
    if file.suffix != ".py":
        raise UserError(f"method.path {path}: give a Python file, my_method.py for instance")
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise UserError(f"method.path {path}: there is no such file") from None
    except OSError as error:
        raise UserError(f"method.path {path}: cannot be read: {error.strerror}") from None


def digest(source: bytes) -> str:
    """sha256 of a file's content, in hexadecimal digits."""
    return hashlib.sha256(source).hexdigest()


@cache
def outside_method(path: str, source: bytes, taken: frozenset[str]) -> type[OutsideSettings]:
    """Run a method's file, and return its configuration class with `KEYS` added.

    Args:
        path: The file, for messages and tracebacks.
        source: Its content; the same content is run once.
        taken: Names of the package's own methods.

    Raises:
        UserError: The file cannot be run, or does not define one configuration class with a name
            of its own and a `build`.
    """
    cls = _the_class(_module(path, source), path)
    name = _name(cls, path)
    if name in taken:
        raise UserError(
            f"method.path {path}: '{name}' is a method of outmodal: give {cls.__name__} another "
            f"name, as name: Literal['my_{name}'] = 'my_{name}'"
        )
    for key in KEYS:
        if key in cls.model_fields:
            raise UserError(
                f"method.path {path}: {cls.__name__} has the key `{key}`, which every method from "
                "outside has already: call it something else"
            )
    if inspect.isabstract(cls):
        raise UserError(
            f"method.path {path}: {cls.__name__} lacks {', '.join(sorted(cls.__abstractmethods__))}"
            "(self, context), which returns the method: add it"
        )
    texts: dict[str, Any] = {"__module__": cls.__module__, "__doc__": cls.__doc__}
    made = cast(
        type[OutsideSettings], create_model(cls.__name__, __base__=(cls, OutsideSettings), **texts)
    )
    made.source = source
    return made


class _Code(ExecutionLoader):
    """Runs the bytes that were hashed, and writes no compiled file beside them."""

    def __init__(self, path: str, source: bytes) -> None:
        self._path, self._source = path, source

    def get_filename(self, fullname: str) -> str:
        return self._path

    def get_source(self, fullname: str) -> str:
        return decode_source(self._source)


def _module(path: str, source: bytes) -> ModuleType:
    """The module of a file, among Python's modules under a name of its own, so that annotations
    that are text are understood."""
    name = f"outmodal_method_{digest(source)[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    loader = _Code(path, source)
    spec = spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    module = sys.modules[name] = module_from_spec(spec)
    try:
        loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever it does at import is the file's mistake
        del sys.modules[name]
        raise UserError(_mistake(error, path)) from error
    return module


def _mistake(error: BaseException, path: str) -> str:
    if isinstance(error, SyntaxError) and error.filename == path:
        return f"method.path {path}:{error.lineno}: {error.msg}: mend it"
    return (
        f"method.path {path}{_line(error, path)}: {type(error).__name__}: {error}, while the file "
        "was imported: mend it"
    )


def _line(error: BaseException, path: str) -> str:
    """ ":LINE" of the file where an error came from; "" where it did not."""
    found, trace = "", error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == path:
            found = f":{trace.tb_lineno}"
        trace = trace.tb_next
    return found


def _the_class(module: ModuleType, path: str) -> type[MethodSettings]:
    """The configuration class that a file defines; what it imports does not count."""
    own = [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, MethodSettings)
        and value.__module__ == module.__name__
    ]
    if not own:
        raise UserError(
            f"method.path {path}: the file defines no configuration of a method: add a class that "
            "derives from MethodSettings of outmodal.train.methods, or from a method's own "
            "configuration such as ErmConfig"
        )
    named = [cls for cls in dict.fromkeys(own) if _names_itself(cls)]
    if not named:
        raise UserError(
            f"method.path {path}: {own[0].__name__} has no name of its own: add name: "
            "Literal['my_method'] = 'my_method' to it"
        )
    if len(named) > 1:
        raise UserError(
            f"method.path {path}: the file defines {len(named)} methods, "
            f"{', '.join(cls.__name__ for cls in named)}: leave one in it, and put the others "
            "into files of their own"
        )
    return _complete(named[0], path)


def _names_itself(cls: type[MethodSettings]) -> bool:
    """Whether a class has a name that it did not inherit."""
    bases = [base for base in cls.__mro__[1:] if issubclass(base, MethodSettings)]
    return _default(cls) not in (None, *map(_default, bases))


def _default(cls: type[MethodSettings]) -> object:
    field = cls.model_fields.get("name")
    return None if field is None else field.default


def _complete(cls: type[MethodSettings], path: str) -> type[MethodSettings]:
    try:
        cls.model_rebuild()
    except (PydanticUndefinedAnnotation, PydanticUserError) as error:
        first = str(error).splitlines()[0]
        raise UserError(
            f"method.path {path}: the keys of {cls.__name__} cannot be understood: {first}: import "
            "what their types name"
        ) from None
    return cls


def _name(cls: type[MethodSettings], path: str) -> str:
    """What a class is called in recipes."""
    field = cls.model_fields["name"]
    if not isinstance(field.default, str) or get_args(field.annotation) != (field.default,):
        raise UserError(
            f"method.path {path}: {cls.__name__}.name must be one text that never changes: write "
            "name: Literal['my_method'] = 'my_method'"
        )
    return field.default
