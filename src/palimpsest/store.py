"""Reading and writing artifacts: whole or not at all, with the recipe inside, and refused with a remedy when damaged.

A file is written beside its place and renamed when it is complete, so the right name never stands for half an artifact. A description
with an open seal is sealed (palimpsest.seal).
"""

from __future__ import annotations

import errno
import io
import json
import os
import platform
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palimpsest import seal

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    import pyarrow as pa
    from torch import Tensor

META = b"palimpsest"


class CorruptArtifact(RuntimeError):
    """An artifact that cannot be read. The message names the file and the command that brings it back."""


def node() -> str:
    """This machine's name as it stands in the names of half-written files."""
    return re.sub(r"\W", "_", platform.node()) or "unknown"


def _corrupt(path: Path, cause: Exception) -> CorruptArtifact:
    return CorruptArtifact(
        f"{path} cannot be read ({type(cause).__name__}: {cause}). Delete it and run `snakemake` again to recompute it, "
        f"or `dvc checkout --force {path}` to bring back the shared copy."
    )


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends well, remove it when it does not."""
    path = Path(path)
    # the writer's name tells a later run whether it is still at work (palimpsest.runlock)
    part = path.with_name(f"{path.name}.{node()}-{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with open(part, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(part, path)
    except Exception as error:
        if _is_full(error):
            raise _disk_full(path, part) from error
        raise
    finally:
        part.unlink(missing_ok=True)


def _is_full(error: Exception) -> bool:
    """Whether a write failed for want of space; libraries wrap the system's error in kinds of their own."""
    known = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return known or bool(re.search(r"no space left|quota exceeded", str(error), re.IGNORECASE))


def _disk_full(path: Path, part: Path) -> OSError:
    place = next(folder for folder in path.absolute().parents if folder.is_dir())
    written = part.stat().st_size if part.exists() else 0
    free = shutil.disk_usage(place).free
    return OSError(
        errno.ENOSPC,
        f"no space left to write {path}: {free / 2**20:.1f} MiB were free on the disk of {place} after {written / 2**20:.1f} MiB of it. "
        "Nothing of it was stored. Free some space, then run `snakemake` again: what is done stays done",
    )


def write_json(value: Any, path: str | Path) -> None:
    """Write JSON with sorted keys, indented, ending in a newline."""
    with atomic(path) as part:
        part.write_text(
            json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        seal.close(part)


def read_json(path: str | Path) -> Any:
    """Read JSON. Raises CorruptArtifact when the file is not JSON."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise _corrupt(path, error) from error


def write_parquet(
    table: pa.Table | pl.DataFrame,
    path: str | Path,
    meta: Mapping[str, Any] | None = None,
    image_columns: Sequence[str] = (),
    row_group_size: int = 100,
) -> None:
    """Write a table with `meta` (JSON) in its schema metadata; equal tables give equal bytes.

    image_columns: columns of struct{bytes: binary, path: string} holding PNG data; they are marked as Hugging Face `Image` features
    and stored uncompressed.
    """
    import polars as pl
    import pyarrow as pa
    import pyarrow.parquet as pq

    if isinstance(table, pl.DataFrame):
        table = table.to_arrow(compat_level=pl.CompatLevel.oldest())
    table = table.cast(pa.schema([pa.field(column.name, _plain(column.type)) for column in table.schema]))
    described = {META: json.dumps(dict(meta or {}), sort_keys=True, ensure_ascii=False).encode()}
    schema_meta = described | features(table.schema, image_columns)
    compression = compressions(table.schema, image_columns)
    with atomic(path) as part:
        pq.write_table(
            table.replace_schema_metadata(schema_meta),
            part,
            row_group_size=row_group_size,
            compression=compression,
        )
        seal.close(part)


def features(schema: pa.Schema, image_columns: Sequence[str]) -> dict[bytes, bytes]:
    """What tells `datasets` which columns hold images; nothing for a table without any."""
    if not image_columns:
        return {}
    kinds = {name: _feature(schema.field(name), image_columns) for name in schema.names}
    return {b"huggingface": json.dumps({"info": {"features": kinds}}, sort_keys=True).encode()}


def compressions(schema: pa.Schema, image_columns: Sequence[str]) -> dict[str, str]:
    """How each column is compressed: PNG data is so already."""
    plain = {name: "zstd" for name in schema.names if name not in image_columns}
    return plain | {
        f"{name}.{part}": kind
        for name in image_columns
        for part, kind in (("bytes", "none"), ("path", "zstd"))
    }


def _plain(kind: pa.DataType) -> pa.DataType:
    """The same type with 32-bit offsets: `datasets` takes a column for an Image only if it is struct<bytes: binary, path: string>."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _plain(field.type)) for field in kind])
    if pa.types.is_large_list(kind) or pa.types.is_list(kind):
        return pa.list_(_plain(kind.value_type))
    return {pa.large_string(): pa.string(), pa.large_binary(): pa.binary()}.get(kind, kind)


def _feature(column: pa.Field, image_columns: Sequence[str]) -> dict[str, str]:
    import pyarrow as pa

    if column.name in image_columns:
        return {"_type": "Image"}
    names = {pa.string(): "string", pa.float64(): "float64", pa.float32(): "float32"}
    return {"_type": "Value", "dtype": names.get(column.type, str(column.type))}


def read_parquet(path: str | Path, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """Read a table. Raises CorruptArtifact for a damaged file."""
    import polars as pl

    path = Path(path)
    try:
        return pl.read_parquet(path, columns=list(columns) if columns is not None else None)
    except FileNotFoundError:
        raise
    except Exception as error:  # polars raises several kinds for damaged files
        raise _corrupt(path, error) from error


def read_meta(path: str | Path) -> dict[str, Any]:
    """The description stored inside a Parquet or safetensors artifact. Raises CorruptArtifact for a damaged file."""
    import pyarrow.parquet as pq

    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, "np") as handle:
                return json.loads((handle.metadata() or {}).get(META.decode(), "{}"))
        return json.loads((pq.read_schema(path).metadata or {}).get(META, b"{}"))
    except FileNotFoundError:
        raise
    except Exception as error:
        raise _corrupt(path, error) from error


def write_tensors(
    tensors: Mapping[str, Tensor], path: str | Path, meta: Mapping[str, Any] | None = None
) -> None:
    """Write tensors as safetensors with `meta` (JSON) in the header; tensors are moved to the CPU and made contiguous."""
    from safetensors.torch import save_file

    ready = {name: value.detach().to("cpu").contiguous() for name, value in sorted(tensors.items())}
    header = {META.decode(): json.dumps(dict(meta or {}), sort_keys=True, ensure_ascii=False)}
    with atomic(path) as part:
        save_file(ready, part, metadata=header)
        seal.close(part)


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and description of a safetensors artifact. Raises CorruptArtifact for a damaged file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    try:
        return load_file(path), read_meta(path)
    except SafetensorError as error:
        raise _corrupt(path, error) from error


def encode_png(image: np.ndarray) -> bytes:
    """PNG bytes of a uint8 [H, W, 3] image; equal images give equal bytes."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def decode_png(data: bytes) -> np.ndarray:
    """The uint8 [H, W, 3] image in PNG bytes."""
    import numpy as np
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
