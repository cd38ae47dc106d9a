"""Images from outside: decoded, written anew, named by their pixels; nothing outside the chosen folder is read."""

from __future__ import annotations

import os
import types
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, PngImagePlugin

from palimpsest import store
from palimpsest.annotate import pictures
from palimpsest.annotate.session import Session
from tests.annotate.conftest import HOSTILE, THEMES


def save(path: Path, seed: int = 0, **options: object) -> np.ndarray:
    array = np.random.default_rng(seed).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return array


def test_a_picture_is_written_anew_without_what_the_file_said(tmp_path: Path) -> None:
    told = PngImagePlugin.PngInfo()
    told.add_text("parameters", "made by SECRET METHOD")
    array = save(tmp_path / "in/a.png", pnginfo=told)
    [(found, place)] = pictures.of_folder(tmp_path / "in")
    digest = pictures.keep(found, tmp_path / "store")
    kept = (tmp_path / "store" / f"{digest}.png").read_bytes()
    assert b"SECRET" in (tmp_path / "in/a.png").read_bytes()
    assert b"SECRET" not in kept
    assert np.array_equal(store.decode_png(kept), array)
    assert place.image_id == "a.png"


def test_the_digest_is_of_pixels_and_shape() -> None:
    array = np.zeros((4, 6, 3), np.uint8)
    assert pictures.digest_of(array) == pictures.digest_of(array.copy())
    assert pictures.digest_of(array) != pictures.digest_of(array.reshape(6, 4, 3))


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (3, 3), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert (pictures.decoded(tmp_path / "a.png") == 255).all()


def test_hostile_names_end_in_the_journal_only(tmp_path: Path) -> None:
    name = HOSTILE.replace("../", "..").replace("/", "_")
    save(tmp_path / "in" / name)
    save(tmp_path / "in/sub/-rf ~; $(x).png", 1)
    session = Session(tmp_path / "store", THEMES)
    assert session.add(pictures.of_folder(tmp_path / "in")) == 2
    names = {path.name for path in (tmp_path / "store").rglob("*")}
    assert names == {"journal.jsonl", "images", *(f"{image}.png" for image in session.here)}
    assert {place.image_id for found in session.board.places.values() for place in found} == {
        name,
        "sub/-rf ~; $(x).png",
    }
    session.close()


def test_links_and_rows_that_lead_out_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "secret.png")
    (tmp_path / "in").mkdir()
    os.symlink(tmp_path / "secret.png", tmp_path / "in/link.png")
    with pytest.raises(pictures.NoPictures, match="leads out of"):
        list(pictures.of_folder(tmp_path / "in"))
    for row in ("../secret.png", str(tmp_path / "secret.png")):
        (tmp_path / "in/m.csv").write_text(f"image_id,file\nx,{row}\n")
        with pytest.raises(pictures.NoPictures, match="leads out of"):
            list(pictures.of_manifest(tmp_path / "in/m.csv"))


def test_a_manifest_names_images(tmp_path: Path) -> None:
    save(tmp_path / "a/one.png")
    save(tmp_path / "a/two.jpg", 1)
    (tmp_path / "m.csv").write_text("image_id,file\nfirst,a/one.png\nsecond,a/two.jpg\nrefused,\n")
    assert [place.image_id for _, place in pictures.of_manifest(tmp_path / "m.csv")] == ["first", "second"]


def test_what_is_no_image_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_text("<svg onload=alert(1)>")
    with pytest.raises(pictures.NoPictures, match=r"a\.png.*allowed: PNG, JPEG, WEBP"):
        list(pictures.of_folder(tmp_path))
    save(tmp_path / "a.png")
    monkeypatch.setattr(pictures, "LARGEST_PIXELS", 100)
    with pytest.raises(pictures.NoPictures, match="20 x 12 pixels; at most 100"):
        list(pictures.of_folder(tmp_path))
    (tmp_path / "m.csv").write_text("path\nx\n")
    with pytest.raises(pictures.NoPictures, match="no rows with a column file"):
        list(pictures.of_manifest(tmp_path / "m.csv"))


def generations(root: Path, key: str, method: str, count: int) -> types.SimpleNamespace:
    """An artifact of the step `generate`; the last prompt was blocked."""
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = [
        {"bytes": store.encode_png(np.full((8, 8, 3), n, np.uint8)), "path": "x"} for n in range(count - 1)
    ]
    table = pa.table(
        {"image_id": [f"s/{n}/0" for n in range(count)], "image": pa.array([*images, None], struct)}
    )
    path = f"data/generations/{method}.{key}.parquet"
    store.write_parquet(table, root / path, {}, ["image"])
    where = {"method": method, "preset": "p", "variant": "v", "suite": "nsfw", "shard": "0"}
    return types.SimpleNamespace(
        key=key, step="generate", where=where, place="/".join(where.values()), path=path
    )


def test_cells_are_chosen_by_method_suite_and_pattern(tmp_path: Path) -> None:
    cells = [generations(tmp_path, "k1", "sd", 9), generations(tmp_path, "k2", "uce", 9)]
    plan = types.SimpleNamespace(root=tmp_path, cells={c.path: c for c in cells})
    assert pictures.chosen(plan, [], [], []) == cells[:1]
    assert pictures.chosen(plan, ["uce"], ["nsfw"], []) == cells[1:]
    assert pictures.chosen(plan, [], [], ["*/p/v/nsfw/*"]) == cells
    with pytest.raises(pictures.NoPictures, match=r"methods: \['sd', 'uce'\]"):
        pictures.chosen(plan, ["esd"], [], [])
    (tmp_path / cells[0].path).unlink()
    with pytest.raises(pictures.NoPictures, match="run `snakemake`"):
        pictures.chosen(plan, [], [], [])


def test_blocked_prompts_have_nothing_to_label_and_methods_share_their_prompts(tmp_path: Path) -> None:
    cells = [generations(tmp_path, "k1", "sd", 9), generations(tmp_path, "k2", "uce", 9)]
    whole = list(pictures.of_cells(tmp_path, cells))
    assert len(whole) == 16
    some = [place for _, place in pictures.of_cells(tmp_path, cells, 3)]
    by_method = [{p.image_id for p in some if p.key == key} for key in ("k1", "k2")]
    assert by_method[0] == by_method[1]
    assert len(by_method[0]) == 3
