"""Protobuf schemas: descriptors out of classes, of a registry's texts, and of columns."""

from __future__ import annotations

import base64
import binascii
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
from millstream.connectors.protobuf_types import protobuf_driver
from millstream.connectors.schema_registry import Registered
from millstream.engine.errors import JobError, SchemaError

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor, FileDescriptor

_MAIN: Final = "millstream_value.proto"
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_WELL_KNOWN: Final = ("any", "duration", "empty", "field_mask", "struct", "timestamp", "wrappers")
_SECONDS: Final = 60


def given_message(message: Any) -> Descriptor:
    """Return the descriptor of a generated class, or one that is given.

    Raises:
        JobError: it is neither.
    """
    protobuf_driver()
    from google.protobuf.descriptor import Descriptor

    found = getattr(message, "DESCRIPTOR", message)
    if not isinstance(found, Descriptor):
        raise JobError(f"a Protobuf message is a generated class or a descriptor, got {str(message)[:80]!r}")
    return found


def file_of(schema: Registered) -> FileDescriptor:
    """Return the file of a schema as a registry has it: a text, or a serialized descriptor in base64.

    Raises:
        SchemaError: it is no Protobuf.
    """
    if schema.kind != "PROTOBUF":
        raise SchemaError(f"it is {schema.kind}, not PROTOBUF")
    found = _serialized(schema.text)
    if found is None:
        return _linked(_compiled(schema.text, {name: one.text for name, one in schema.references.items()}))
    files = []
    for name, one in schema.references.items():
        file = _serialized(one.text)
        if file is None:
            raise SchemaError(f"{name!r}, which it refers to, is a text where a serialized descriptor was expected")
        file.name = name
        files.append(file)
    found.name = found.name or _MAIN
    return _linked([*files, found])


def message_of(file: FileDescriptor, path: Iterable[int]) -> Descriptor:
    """Return a message by its place: among the file's, and then among those nested in it.

    Raises:
        SchemaError: there is none.
    """
    found: Any = None
    for index in path:
        within = list(file.message_types_by_name.values()) if found is None else list(found.nested_types)
        if not 0 <= index < len(within):
            raise SchemaError(f"it has no message at {list(path)}")
        found = within[index]
    return found


def path_to(message: Descriptor) -> list[int]:
    """Undo ``message_of``."""
    path: list[int] = []
    while message is not None:
        within = message.containing_type
        among = message.file.message_types_by_name.values() if within is None else within.nested_types
        path.insert(0, [other.full_name for other in among].index(message.full_name))
        message = within
    return path


def registered_text(message: Descriptor) -> str:
    """Return the file of a message as registries take it, serialized, in base64.

    Raises:
        SchemaError: it imports files other than Google's.
    """
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

    others = [file.name for file in message.file.dependencies if not file.name.startswith("google/protobuf/")]
    if others:
        raise SchemaError(
            f"{message.file.name} imports {', '.join(others)}: register such files with the tools of the registry, and "
            "pass auto_register=False without message=, which takes the latest schema"
        )
    proto = FileDescriptorProto()
    message.file.CopyToProto(proto)
    return base64.b64encode(proto.SerializeToString(deterministic=True)).decode()


def proto_of(schema: pa.Schema, name: str) -> str:
    """Return a proto3 file with a message whose fields are these columns, numbered from 1, all of them optional.

    Args:
        schema: the columns.
        name: the message's name; what no name may contain becomes ``_``.

    Raises:
        SchemaError: a column, which it names, has no form in Protobuf.

    >>> print(proto_of(pa.schema({"id": pa.int64(), "tags": pa.list_(pa.string())}), "orders"), end="")
    syntax = "proto3";
    message orders {
      optional int64 id = 1;
      repeated string tags = 2;
    }
    """
    named = re.sub(r"[^A-Za-z0-9_]", "_", name)
    lines = _message_lines(list(schema), named if _NAME.fullmatch(named) else f"m{named}")
    text = "\n".join(lines)
    times = [kind for kind in ("duration", "timestamp") if f"protobuf.{kind.title()}" in text]
    imports = [f'import "google/protobuf/{kind}.proto";' for kind in times]
    return "\n".join(['syntax = "proto3";', *imports, text]) + "\n"


def _message_lines(fields: list[pa.Field], name: str) -> list[str]:
    lines: list[str] = []
    for number, field in enumerate(fields, 1):
        if not _NAME.fullmatch(field.name):
            raise SchemaError(
                f"Protobuf takes no field called {field.name!r}: names are letters, digits and _, and begin with a "
                "letter: rename the column before"
            )
        try:
            within, type_ = _proto_type(field.type, f"{field.name}_of_{name}")
        except SchemaError as error:
            raise SchemaError(f"column {field.name!r}: {error}") from None
        lines += [f"  {line}" for line in within]
        lines.append(f"  {type_} {field.name} = {number};")
    return [f"message {name} {{", *lines, "}"]


def _proto_type(type_: pa.DataType, name: str) -> tuple[list[str], str]:
    """Return the messages that a field needs, and its type with what stands before it."""
    kind = pa.types
    if kind.is_list(type_) or kind.is_large_list(type_) or kind.is_fixed_size_list(type_):
        within, item = _single_type(type_.value_type, name)
        return within, f"repeated {item}"
    if kind.is_map(type_):
        if not (kind.is_string(type_.key_type) or kind.is_integer(type_.key_type)):
            raise SchemaError(f"keys of maps are texts or whole numbers in Protobuf, not {type_.key_type}")
        within, item = _single_type(type_.item_type, name)
        return within, f"map<{_single_type(type_.key_type, name)[1]}, {item}>"
    within, single = _single_type(type_, name)
    return within, f"optional {single}"


def _single_type(type_: pa.DataType, name: str) -> tuple[list[str], str]:
    kind = pa.types
    if kind.is_struct(type_) and type_.num_fields:
        return _message_lines(list(type_), name), name
    if (kind.is_timestamp(type_) or kind.is_duration(type_)) and type_.unit != "ns":
        return [], f"google.protobuf.{'Timestamp' if kind.is_timestamp(type_) else 'Duration'}"
    if kind.is_integer(type_):
        return [], f"{'u' * kind.is_unsigned_integer(type_)}int{max(32, type_.bit_width)}"
    for is_kind, single in _SIMPLE:
        if is_kind(type_):
            return [], single
    raise SchemaError(f"Protobuf has no type for {type_}: cast it to another, such as text, or leave it out before")


_SIMPLE: Final = (
    (pa.types.is_boolean, "bool"),
    (pa.types.is_float64, "double"),
    (pa.types.is_floating, "float"),
    (pa.types.is_string, "string"),
    (pa.types.is_large_string, "string"),
    (pa.types.is_binary, "bytes"),
    (pa.types.is_large_binary, "bytes"),
    (pa.types.is_fixed_size_binary, "bytes"),
)


def _serialized(text: str) -> Any:
    """Return the file descriptor that a text is in base64; None: it is something else."""
    from google.protobuf.descriptor_pb2 import FileDescriptorProto
    from google.protobuf.message import DecodeError

    try:
        return FileDescriptorProto.FromString(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError, DecodeError):
        return None


def _compiled(text: str, references: Mapping[str, str]) -> list[Any]:
    """Compile a text; return its file and those that it imports, before it. Raises SchemaError, JobError."""
    from google.protobuf.descriptor_pb2 import FileDescriptorSet

    with tempfile.TemporaryDirectory(prefix="millstream-proto-") as folder:
        out = Path(folder) / "set"
        for name, content in {**references, _MAIN: text}.items():
            path = (Path(folder) / "in" / name).resolve()
            if not path.is_relative_to(Path(folder).resolve()):
                raise SchemaError(f"it imports {name!r}, which is no name for a file")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        command = [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"-I{Path(folder) / 'in'}",
            *_google(),
            "--include_imports",
        ]
        command += [f"--descriptor_set_out={out}", _MAIN]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        if done.returncode:
            raise SchemaError(f"this is no Protobuf schema: {done.stderr.strip()[:500]}")
        return list(FileDescriptorSet.FromString(out.read_bytes()).file)


def _google() -> list[str]:
    """Where Google's files are. Raises JobError if the compiler is not installed."""
    from importlib.util import find_spec

    found = find_spec("grpc_tools")
    if found is None or found.origin is None:
        raise JobError(
            "the registry has Protobuf schemas as texts, and grpcio-tools, which compiles them, is not installed: "
            "pip install 'millstream[kafka-schemas]'"
        )
    return [f"-I{Path(found.origin).parent / '_proto'}"]


def _linked(files: list[Any]) -> FileDescriptor:
    """Return the last of some files, of which each may import those before it."""
    from importlib import import_module

    from google.protobuf.descriptor_pool import DescriptorPool

    pool = DescriptorPool()
    present = {file.name for file in files}
    for name in _WELL_KNOWN:
        own = import_module(f"google.protobuf.{name}_pb2").DESCRIPTOR
        if own.name not in present:
            pool.AddSerializedFile(own.serialized_pb)
    try:
        for file in files:
            pool.AddSerializedFile(file.SerializeToString())
        return pool.FindFileByName(files[-1].name)
    except (TypeError, KeyError) as error:
        raise SchemaError(f"this is no Protobuf schema: {error}") from None
