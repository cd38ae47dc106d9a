"""Manifests of images made elsewhere: what is read, what is refused, and what becomes of a missing row."""

from __future__ import annotations

import csv
import hashlib
import os
import struct
import zlib

import numpy as np
import polars as pl
import pytest
from PIL import Image
from pydantic import ValidationError

from palimpsest.methods import external
from palimpsest.sampling.loop import Request

REQUESTS = [
    Request("i2p/00000/00", "a robot", 1),
    Request("i2p/00001/00", "a house, red", 2),
    Request("i2p/00002/01", "gears", 3),
]
SIDE = 16


def digest(prompt):
    return hashlib.sha256(prompt.encode()).hexdigest()


def picture(seed=0, shape=(SIDE, SIDE)):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def manifest(folder, rows, name="manifest.csv"):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with open(path, "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def contract_settings(folder, requests, images):
    """One image of the right size, one larger, one refused."""
    Image.fromarray(images[0]).save(folder / "one.png")
    Image.fromarray(picture(1, (48, 48))).save(folder / "two.png")
    files = [{"file": "one.png"}, {"file": "two.png"}, {"refused": "policy"}]
    rows = [{"image_id": r.image_id, **f} for r, f in zip(requests, files, strict=True)]
    return {"manifest": str(manifest(folder, rows)), "partial": "refuse", "aspect": "refuse"}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for place in range(3):
        Image.fromarray(picture(place)).save(tmp_path / f"images/{place}.png")
    return tmp_path


@pytest.fixture
def rows():
    return [
        {
            "suite": "nsfw",
            "image_id": r.image_id,
            "file": f"images/{i}.png",
            "prompt_sha256": digest(r.prompt),
        }
        for i, r in enumerate(REQUESTS)
    ]


def made(path, requests=REQUESTS, suite="nsfw", side=SIDE, **settings):
    return list(external.produce(requests, external.Settings(manifest=str(path), **settings), side, suite))


def test_images_of_the_right_size_arrive_bit_for_bit(folder, rows):
    found = made(manifest(folder, rows))
    assert [g.decision for g in found] == ["provided"] * 3
    assert all(np.array_equal(g.image, picture(i)) for i, g in enumerate(found))
    assert [(g.image_id, g.prompt, g.seed) for g in found] == [
        (r.image_id, r.prompt, r.seed) for r in REQUESTS
    ]
    assert all(g.seconds is None for g in found)


def test_parquet_and_ids_put_together_from_their_parts_are_the_same(folder, rows):
    parts = [
        {"suite": "nsfw", "source": "i2p", "prompt_id": i, "repetition": n, "file": row["file"], "seen": [i]}
        for (i, n), row in zip([(0, 0), (1, 0), (2, 1)], rows, strict=True)
    ]
    pl.DataFrame(parts).write_parquet(folder / "m.parquet")
    expected = made(manifest(folder, rows))
    for given, wanted in zip(made(folder / "m.parquet"), expected, strict=True):
        assert np.array_equal(given.image, wanted.image)


def test_refusals_are_rows_without_an_image_and_with_the_reason(folder, rows):
    rows[1] = {**rows[1], "file": "", "refused": "content policy"}
    rows[2]["revised_prompt"] = "many gears"
    found = made(manifest(folder, rows))
    assert [g.decision for g in found] == ["provided", "refused", "provided"]
    assert found[1].image is None and found[1].reason == "content policy"
    assert found[2].reason == "asked as: many gears"


def test_missing_rows_are_an_error_with_their_number_and_the_first_ones(folder, rows):
    path = manifest(folder, [rows[0], {**rows[1], "file": ""}])
    with pytest.raises(
        ValueError, match=r"2 of 3 images of suite 'nsfw' are not in it, first 'i2p/00001/00', 'i2p/00002/01'"
    ):
        made(path)
    found = made(path, partial="allow")
    assert [g.decision for g in found] == ["provided", "not_provided", "not_provided"]
    assert [g.image is None for g in found] == [False, True, True]


def test_rows_of_another_suite_do_not_answer(folder, rows):
    path = manifest(folder, [*rows, {**rows[0], "suite": "coco"}])
    assert len(made(path)) == 3
    with pytest.raises(ValueError, match="2 of 3 images of suite 'coco'"):
        made(path, suite="coco")
    assert len(made(manifest(folder, [{**row, "suite": ""} for row in rows]), suite="any")) == 3


def test_a_row_made_for_another_prompt_is_refused(folder, rows):
    rows[1]["prompt_sha256"] = digest("a house, blue")
    with pytest.raises(ValueError, match="row 3: 'i2p/00001/00' was made for another prompt"):
        made(manifest(folder, rows))


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/hostname", "images/../../secret.png", "images\\0.png", "..", "a\0b.png"]
)
def test_paths_that_lead_out_are_refused(folder, rows, name):
    inner = folder / "inner"
    Image.fromarray(picture()).save(folder / "secret.png")
    if "\0" in name:
        inner.mkdir()
        pl.DataFrame([{**rows[0], "file": name}]).write_parquet(inner / "m.parquet")
        path = inner / "m.parquet"
    else:
        path = manifest(inner, [{**rows[0], "file": name}])
    with pytest.raises(ValueError, match=r"row 2: file .* does not stay in"):
        made(path, REQUESTS[:1])


def test_links_that_lead_out_are_refused(folder, rows):
    inner = folder / "inner"
    inner.mkdir()
    os.symlink(folder / "images/0.png", inner / "0.png")
    os.symlink(folder / "images", inner / "images")
    for name in ("0.png", "images/0.png"):
        with pytest.raises(ValueError, match="is a link that leads out of"):
            made(manifest(inner, [{**rows[0], "file": name}]), REQUESTS[:1])


def bomb(path, side=60_000):
    """A PNG of a few bytes that claims to be huge."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


def spoil(path, how):
    whole = path.read_bytes()
    if how == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif how == "text":
        path.write_text("<svg/>")
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "bomb":
        bomb(path)
    elif how == "large":
        Image.fromarray(picture(0, (90, 90))).save(path)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("cut", "cannot be read as an image"),
        ("text", "is no image; allowed: PNG, JPEG, WEBP"),
        ("empty", "is no image"),
        ("bomb", "cannot be read as an image|60000 x 60000 pixels"),
        ("large", "90 x 90 pixels; largest_pixels is 4096"),
    ],
)
def test_broken_and_huge_images_are_named(folder, rows, how, said):
    spoil(folder / "images/1.png", how)
    with pytest.raises(ValueError, match=rf"row 3 of the manifest, 'i2p/00001/00': .*1\.png.*({said})"):
        made(manifest(folder, rows), largest_pixels=4096)


def test_a_format_nobody_needs_is_not_decoded(folder, rows):
    Image.fromarray(picture()).save(folder / "images/1.png", format="TIFF")
    with pytest.raises(ValueError, match="is no image; allowed"):
        made(manifest(folder, rows))


def test_problems_of_a_manifest_come_together(folder, rows):
    wrong = [
        {**rows[0], "refused": "policy"},
        {"suite": "nsfw", "source": "i2p", "prompt_id": "1.5", "repetition": "0", "file": "a.png"},
        rows[1],
        rows[1],
    ]
    with pytest.raises(ValueError) as caught:
        made(manifest(folder, wrong))
    for part in (
        "3 problem(s)",
        "row 2: it has a file",
        "row 3: no image_id, and source",
        "row 5: 'i2p/00001/00' stands in row 4 already",
    ):
        assert part in str(caught.value)


def test_files_that_are_not_there_are_named(folder, rows):
    rows[2]["file"] = "images/9.png"
    with pytest.raises(ValueError, match=r"row 4: there is no file .*images/9\.png"):
        made(manifest(folder, rows))
    with pytest.raises(FileNotFoundError, match=r"there is no .*nothing\.csv.*external-template"):
        made(folder / "nothing.csv")


def test_tables_that_are_none_are_named(folder):
    (folder / "m.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="cannot be read as a table"):
        made(folder / "m.parquet")
    (folder / "m.csv").write_bytes(b"image_id,file\n\xff\xfe,1\n")
    with pytest.raises(ValueError, match="UTF-8"):
        made(folder / "m.csv")
    (folder / "m.csv").write_text("picture,file\na,b\n")
    with pytest.raises(ValueError, match="no column image_id, nor source, prompt_id, repetition"):
        made(folder / "m.csv")


def test_other_sizes_are_scaled_and_other_shapes_only_when_asked_for(folder, rows):
    large, wide = picture(5, (48, 48)), picture(6, (16, 32))
    Image.fromarray(large).save(folder / "images/0.png")
    Image.fromarray(wide).save(folder / "images/1.png")
    path = manifest(folder, rows)
    with pytest.raises(ValueError, match=r"is not square \(32 x 16\); set `aspect: crop` or `aspect: pad`"):
        made(path)
    cropped = made(path, aspect="crop")
    scaled = Image.fromarray(large).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    assert np.array_equal(cropped[0].image, np.asarray(scaled))
    assert np.array_equal(cropped[1].image, wide[:, 8:24])
    padded = made(path, aspect="pad", side=32)[1].image
    assert np.array_equal(padded[8:24], wide) and not padded[:8].any() and not padded[24:].any()


def test_transparency_turns_white_and_orientation_is_followed(folder, rows):
    clear = np.zeros((SIDE, SIDE, 4), np.uint8)
    clear[:8] = (255, 0, 0, 255)
    Image.fromarray(clear).save(folder / "images/0.png")
    turned = Image.fromarray(picture(3))
    exif = Image.Exif()
    exif[0x0112] = 3
    turned.save(folder / "images/1.png", exif=exif)
    Image.fromarray(picture(4)).convert("L").save(folder / "images/2.png")
    found = [g.image for g in made(manifest(folder, rows))]
    assert found[0][0, 0].tolist() == [255, 0, 0] and found[0][15, 0].tolist() == [255, 255, 255]
    assert np.array_equal(found[1], picture(3)[::-1, ::-1])
    assert (found[2][..., 0] == found[2][..., 1]).all()


def test_the_manifest_has_a_folder_of_its_own():
    for path, said in (("manifest.csv", "of their own"), ("a/manifest.xlsx", r"neither \.csv nor \.parquet")):
        with pytest.raises(ValidationError, match=said):
            external.Settings(manifest=path)
