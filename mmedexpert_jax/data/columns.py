"""Columns of a Parquet file of cases: lists as Parquet names them, images as `datasets` shows them."""

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa


def listed(kind: pa.DataType) -> pa.DataType:
    """A list as Parquet names it."""
    return pa.list_(pa.field("element", kind))


TEXT = pa.string()
TEXTS = listed(TEXT)
IMAGE = pa.struct({"bytes": pa.binary(), "path": TEXT})
IMAGES = listed(IMAGE)


def schema(columns: Mapping[str, pa.DataType], lists: str = "Sequence") -> pa.Schema:
    """The schema of a file with these columns, which carries the features that `datasets` reads.

    Args:
        columns: kind by name, in order.
        lists: name of a list's feature: "Sequence" is read by datasets 3, which has no "List", and by 4 and later.
    """

    def feature(kind: pa.DataType) -> dict[str, Any]:
        if pa.types.is_list(kind):
            inner = {"_type": "Image"} if kind.value_type == IMAGE else feature(kind.value_type)
            return {"feature": inner, "_type": lists}
        return {"dtype": "bool" if pa.types.is_boolean(kind) else "string", "_type": "Value"}

    features = {"info": {"features": {name: feature(kind) for name, kind in columns.items()}}}
    return pa.schema(list(columns.items()), metadata={"huggingface": json.dumps(features)})


def row(case: object, of: pa.Schema, **own: Any) -> dict[str, Any]:
    """The values of a schema's columns: `own`, and of the others the case's attributes of their names."""
    values = {name: own[name] if name in own else getattr(case, name) for name in of.names}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
