from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from palimpsest import store


def image_frame(count: int = 3) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (8, 8, 3), dtype=np.uint8) for _ in range(count)]
    cells = [{"bytes": store.encode_png(p), "path": f"{i}.png"} for i, p in enumerate(pictures)]
    return pl.DataFrame(
        {"image_id": [f"a/{i}" for i in range(count)], "score": [0.5, None, 1.0][:count], "image": cells}
    )


def test_equal_tables_give_equal_bytes_and_round_trip(tmp_path):
    frame = image_frame()
    for name in ("a", "b"):
        store.write_parquet(frame, tmp_path / f"{name}.parquet", {"key": "k"}, image_columns=["image"])
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert store.read_parquet(tmp_path / "a.parquet").equals(frame)
    assert store.read_meta(tmp_path / "a.parquet") == {"key": "k"}


def test_hugging_face_datasets_decodes_the_image_column(tmp_path):
    datasets = pytest.importorskip("datasets")
    path = tmp_path / "g.parquet"
    frame = image_frame()
    store.write_parquet(frame, path, {}, image_columns=["image"])
    loaded = datasets.load_dataset(
        "parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
    )
    decoded = np.asarray(loaded[1]["image"].convert("RGB"))
    assert np.array_equal(decoded, store.decode_png(frame["image"][1]["bytes"]))


def test_truncated_parquet_is_refused_with_path_and_remedy(tmp_path):
    path = tmp_path / "g.parquet"
    store.write_parquet(image_frame(), path, {})
    path.write_bytes(path.read_bytes()[:-20])
    for read in (store.read_parquet, store.read_meta):
        with pytest.raises(store.CorruptArtifact, match="g.parquet.*snakemake.*dvc checkout --force"):
            read(path)


def test_truncated_tensors_are_refused(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "w.safetensors"
    store.write_tensors({"w": torch.arange(6.0).reshape(2, 3).T}, path, {"fit": {"losses": [1.0]}})
    tensors, meta = store.read_tensors(path)
    assert torch.equal(tensors["w"], torch.arange(6.0).reshape(2, 3).T) and meta == {"fit": {"losses": [1.0]}}
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(store.CorruptArtifact, match="w.safetensors"):
        store.read_tensors(path)


def test_a_failing_write_leaves_the_old_file_and_no_part(tmp_path):
    path = tmp_path / "x.json"
    store.write_json({"a": 1}, path)

    def half_a_write() -> None:
        with store.atomic(path) as part:
            part.write_text("half")
            raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="the disk is full"):
        half_a_write()
    assert store.read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_json_that_is_none_is_refused(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"a": ')
    with pytest.raises(store.CorruptArtifact, match="x.json"):
        store.read_json(path)
