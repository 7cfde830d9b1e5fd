"""Protobuf fields as Arrow columns: types, and values there and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
from millstream.engine.errors import JobError, SchemaError

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

Take = Callable[[Any], Any]
"""From a value of one side to that of the other."""

_SCALARS: Final[Mapping[str, pa.DataType]] = {
    "DOUBLE": pa.float64(),
    "FLOAT": pa.float32(),
    "INT64": pa.int64(),
    "UINT64": pa.uint64(),
    "INT32": pa.int32(),
    "FIXED64": pa.uint64(),
    "FIXED32": pa.uint32(),
    "BOOL": pa.bool_(),
    "STRING": pa.string(),
    "BYTES": pa.binary(),
    "UINT32": pa.uint32(),
    "SFIXED32": pa.int32(),
    "SFIXED64": pa.int64(),
    "SINT32": pa.int32(),
    "SINT64": pa.int64(),
}
_WRAPPERS: Final = frozenset(
    f"google.protobuf.{kind}Value"
    for kind in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
)
_MILLION: Final = 1_000_000


def protobuf_driver() -> Any:
    """Import protobuf. Raises JobError if it is not installed."""
    try:
        import google.protobuf.message
    except ImportError as error:
        raise JobError(
            f"Protobuf needs protobuf, which cannot be loaded ({error}): pip install 'millstream[kafka-schemas]'"
        ) from None
    return google.protobuf


@dataclass(frozen=True, slots=True)
class Form:
    """What a field, or an item of it, is in Arrow.

    Attributes:
        type: of the column.
        read: from Protobuf's value to what ``pa.array`` takes; None: it is the same.
        write: from a value of ``counted`` to what Protobuf takes; None: it is the same.
        counted: the type with the numbers that times are made of.
    """

    type: pa.DataType
    read: Take | None
    write: Take | None
    counted: pa.DataType


def form_of(field: FieldDescriptor, within: tuple[str, ...] = ()) -> Form:
    """Return what a field is in Arrow.

    Raises:
        SchemaError: it contains itself.
    """
    if is_map(field):
        entry = field.message_type.fields_by_name
        keys, items = _single(entry["key"], within), _single(entry["value"], within)
        types = [pa.map_(keys.type, items.type), pa.map_(keys.counted, items.counted)]
        return Form(types[0], _of_map(items.read, dict.items), _of_map(items.write, dict.items, dict), types[1])
    single = _single(field, within)
    if is_repeated(field):
        return Form(pa.list_(single.type), _of_list(single.read), _of_list(single.write), pa.list_(single.counted))
    return single


def is_repeated(field: FieldDescriptor) -> bool:
    """Whether it has many values."""
    # Newer versions say it as a property, and warn of `label`.
    return bool(field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED)


def is_map(field: FieldDescriptor) -> bool:
    """Whether it is a map."""
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def has_default(field: FieldDescriptor) -> bool:
    """Whether its absence is a value, so that it is never null."""
    return not field.has_presence and not is_repeated(field)


def getter(field: FieldDescriptor, form: Form) -> Take:
    """Return what takes a field's value out of a message; null if it has none."""
    get, read, name = attrgetter(field.name), form.read, field.name
    if field.has_presence:
        taken: Take = get if read is None else lambda message: read(get(message))
        return lambda message: taken(message) if message.HasField(name) else None
    return get if read is None else lambda message: read(get(message))


def struct_of(message: Descriptor, within: tuple[str, ...]) -> Form:
    """Return what a message within a message is in Arrow. Raises SchemaError."""
    if message.full_name in within:
        raise SchemaError(f"{message.full_name} contains itself, and so has no column type")
    forms = {field.name: form_of(field, (*within, message.full_name)) for field in message.fields}
    if not forms:
        raise SchemaError(f"{message.full_name} has no fields, and so no column type")
    getters = {name: getter(message.fields_by_name[name], form) for name, form in forms.items()}
    writers = {name: form.write for name, form in forms.items()}
    never_null = [field.name for field in message.fields if has_default(field)]

    def read(value: Any) -> dict[str, Any]:
        return {name: get(value) for name, get in getters.items()}

    def write(value: Mapping[str, Any]) -> dict[str, Any]:
        for name in never_null:
            if value[name] is None:
                raise ValueError(f"{message.full_name}.{name} is null, and its absence would be a value")
        return {
            name: write(value[name]) if write is not None else value[name]
            for name, write in writers.items()
            if value[name] is not None
        }

    types = [pa.struct([(name, getattr(form, of)) for name, form in forms.items()]) for of in ("type", "counted")]
    return Form(types[0], read, write, types[1])


def _single(field: FieldDescriptor, within: tuple[str, ...]) -> Form:
    if field.enum_type is not None:
        return Form(pa.string(), _name_of(field.enum_type), _number_of(field.enum_type), pa.string())
    message = field.message_type
    if message is None:
        type_ = _SCALARS[_kind(field)]
        return Form(type_, None, None, type_)
    if message.full_name in _TIMES:
        return _TIMES[message.full_name]
    if message.full_name in _WRAPPERS:
        type_ = _SCALARS[_kind(message.fields_by_name["value"])]
        return Form(type_, attrgetter("value"), lambda value: {"value": value}, type_)
    return struct_of(message, within)


def _kind(field: FieldDescriptor) -> str:
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto

    return str(FieldDescriptorProto.Type.Name(field.type)).removeprefix("TYPE_")


def _micros(value: Any) -> int:
    return int(value.seconds * _MILLION + int(value.nanos / 1000))


def _moment(micros: int) -> dict[str, int]:
    """A timestamp's nanoseconds count forward."""
    seconds, rest = divmod(micros, _MILLION)
    return {"seconds": seconds, "nanos": rest * 1000}


def _span(micros: int) -> dict[str, int]:
    """A duration's seconds and nanoseconds have one sign."""
    sign = -1 if micros < 0 else 1
    seconds, rest = divmod(abs(micros), _MILLION)
    return {"seconds": sign * seconds, "nanos": sign * rest * 1000}


_TIMES: Final = {
    "google.protobuf.Timestamp": Form(pa.timestamp("us", "UTC"), _micros, _moment, pa.int64()),
    "google.protobuf.Duration": Form(pa.duration("us"), _micros, _span, pa.int64()),
}


def _name_of(enum: EnumDescriptor) -> Take:
    names = {number: value.name for number, value in enum.values_by_number.items()}
    return lambda number: names.get(number) or str(number)


def _number_of(enum: EnumDescriptor) -> Take:
    numbers = {value.name: value.number for value in enum.values}
    return lambda name: numbers[name] if name in numbers else int(name)


def _of_list(take: Take | None) -> Take:
    return list if take is None else lambda values: [value if value is None else take(value) for value in values]


def _of_map(take: Take | None, items: Take, made: Take = list) -> Take:
    if take is None:
        return lambda entries: made(dict(entries).items())
    return lambda entries: made((key, value if value is None else take(value)) for key, value in items(dict(entries)))
