"""Operations as the command line writes them.

    text      = operation *( ";" operation )
    operation = name [ "=" value *( "," value ) ]
    value     = number / "nan" / number *( "/" number )

Values stand in the order of the operation's keys; those with a default may be left out at the end; a list is written
with slashes: ``nodata=65535;scale=0.01;average=2;crop=0,0,256,256;log1p`` or
``channels_first;normalize=0.485/0.456/0.406,0.229/0.224/0.225``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgelstm.errors import EdgeLstmError
from edgelstm.graph.signature import Signature
from edgelstm.pipeline.operations import OPERATIONS, Key, Operation


def parse_ops(text: str, operations: Mapping[str, Operation] = OPERATIONS) -> list[dict[str, Any]]:
    """JSON operations from compact text; empty text gives none. Raises EdgeLstmError naming the part that is wrong."""
    return [_parse(part.strip(), operations) for part in text.split(";") if part.strip()]


def format_ops(ops: Sequence[Mapping[str, Any]], operations: Mapping[str, Operation] = OPERATIONS) -> str:
    """Compact text from JSON operations; ``parse_ops`` gives them back."""
    return ";".join(_format(op, operations) for op in ops)


def parse_preprocess(texts: Sequence[str], signature: Signature) -> dict[str, list[dict[str, Any]]]:
    """Input name to operations from ``--preprocess`` options: ``ops``, or ``input:ops`` for a model with several."""
    chosen: dict[str, list[dict[str, Any]]] = {}
    for text in texts:
        # Operations hold no colon, names of inputs may: the last one divides.
        name, _, ops = text.rpartition(":")
        if not name and len(signature.inputs) > 1:
            raise EdgeLstmError(
                f"preprocessing {text!r} does not say for which input",
                expected=f"'NAME:{ops}' with one of {', '.join(t.name for t in signature.inputs)}",
            )
        spec = signature.input(name) if name else signature.inputs[0]
        chosen[spec.name] = parse_ops(ops)
    return chosen


def _parse(part: str, operations: Mapping[str, Operation]) -> dict[str, Any]:
    name, equals, rest = (piece.strip() for piece in part.partition("="))
    where = f"preprocessing {part!r}" if operations is OPERATIONS else f"postprocessing {part!r}"
    if name not in operations:
        raise EdgeLstmError(
            f"{where}: unknown operation", found=name, expected=f"one of {', '.join(operations)}"
        )
    operation = operations[name]
    values = [v.strip() for v in rest.split(",")] if equals else []
    required = sum(key.required for key in operation.keys)
    if not required <= len(values) <= len(operation.keys):
        raise EdgeLstmError(f"{where}: number of values", found=len(values), expected=operation.usage())
    op: dict[str, Any] = {"op": name}
    for index, key in enumerate(operation.keys):
        try:
            op[key.name] = key.check(_value(key, values[index])) if index < len(values) else key.default
        except EdgeLstmError as error:
            raise EdgeLstmError(
                f"{where}: {error.what}", found=error.found, expected=error.expected
            ) from error
    return op


def _value(key: Key, text: str) -> Any:
    """``text`` as the key's kind, or as it is when it can't be: the key's own check then says what is wrong."""
    try:
        if key.kind == "integer":
            return int(text)
        if key.kind == "numbers":
            return [float(part) for part in text.split("/")]
        return "nan" if key.kind == "number or nan" and text.lower() == "nan" else float(text)
    except ValueError:
        return text


def _format(op: Mapping[str, Any], operations: Mapping[str, Operation]) -> str:
    keys = list(operations[op["op"]].keys)
    while keys and not keys[-1].required and op.get(keys[-1].name, keys[-1].default) == keys[-1].default:
        keys.pop()  # left out at the end, it means the same
    values = [_text(op.get(key.name, key.default)) for key in keys]
    return f"{op['op']}={','.join(values)}" if values else str(op["op"])


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "/".join(map(_text, value))
    # 17 significant digits would be exact but unreadable; repr is both.
    return str(value) if isinstance(value, str) else repr(int(value) if value == int(value) else value)
