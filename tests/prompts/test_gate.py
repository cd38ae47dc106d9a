"""The minors gate: it finds cues under obfuscation, spares innocent words, and nothing can switch it off."""

from __future__ import annotations

import inspect
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from palimpsest import params
from palimpsest.prompts import gate, lexicon
from palimpsest.prompts import ingest as ingestion
from palimpsest.prompts.ingest import ingest
from tests.prompts.files import HUB, hub_row, seeds, suite, write

SLOW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
CUES = [
    "a child", "two children", "a kid", "the girl", "boys", "a teen", "teenager", "schoolgirl",
    "school girl", "high school",
    "toddler", "baby", "minors", "a minor", "underage", "preteen", "12 year old", "12-year-olds", "12yo",
    "12 y/o", "17 yrs old",
    "twelve year old", "sixteen-year-old", "mother and five year old", "aged 9", "aged twelve", "age of 12",
    "age: 9",
    "10 to 20 year old", "3 months old", "under 18", "under the age of eighteen", "6th grader",
    "third grade", "little one",
    "1.5 years old", "kindergarten", "l2 year old", "littleGirl", "#schoolgirl", "kids4u", "👧", "少女",
    "мальчик",
]  # fmt: skip
INNOCENT = [
    "D minor scale", "sonata in a minor", "minor scratches", "Ursa Minor", "kidney", "boyfriend",
    "girl friend", "cowboy",
    "game boy", "canteen", "eighteen years old", "21 year old", "forty-five year old",
    "twenty one year old", "aged 40",
    "100 year old tree", "5,000 year old temple", "seventy year old", "one hundred and two year old",
    "dragon age 2", "f/14 lens",
    "wait 5 min or less", "between", "baby blue car", "teeth", "route 707", "Captain Kidd",
    "12 years of rust", "a red robot",
    "gears, wiring and a bare chassis", "static and a ghost image", "1011 1707", "gradient",
    "a kite in the meadow",
]  # fmt: skip


@pytest.mark.parametrize("text", CUES)
def test_cues_are_found(text: str) -> None:
    assert gate.minor_cue(f"a robot near {text} on the beach")
    assert gate.minor_cue(text.upper())


@pytest.mark.parametrize("text", INNOCENT)
def test_innocent_words_are_spared(text: str) -> None:
    assert not gate.minor_cue(f"a robot near {text}, on the beach")


def test_every_term_of_the_lexicon_is_found() -> None:
    terms = [*lexicon.MINOR_TERMS, *lexicon.MINOR_EXCEPTIONS, *lexicon.MINOR_UNSPACED, *lexicon.MINOR_GLYPHS]
    assert [term for term in terms if not gate.minor_cue(f"robot {term} robot")] == []
    assert [term for term in lexicon.SEXUAL_TERMS if not gate.sexual(f"robot {term} robot")] == []


@pytest.mark.parametrize(
    "word", ["a robot with gears", "sussex", "sextant", "unisex hat", "breakage", "glitch", "grass"]
)
def test_not_sexual(word: str) -> None:
    assert not gate.sexual(word)


WORD = st.sampled_from([t for t in lexicon.MINOR_TERMS if " " not in t])
GLYPHS = {chr(plain): [] for plain in range(97, 123)}
for _code, _plain in lexicon.HOMOGLYPHS.items():
    if chr(_code).casefold() == chr(_code) and not unicodedata.normalize("NFKD", chr(_code)).isascii():
        GLYPHS.setdefault(str(_plain), []).append(chr(_code))


@st.composite
def obfuscated(draw: st.DrawFn) -> str:
    """One term written in a way people use to slip past word lists; several disguises at once."""
    word, out = draw(WORD), []
    separator = draw(st.sampled_from(["", "", " ", ".", "-", "_", "* "]))
    for position, letter in enumerate(word):
        how = draw(st.sampled_from(["plain", "upper", "wide", "accent", "zero", "homoglyph", "leet", "bold"]))
        if how == "upper" and position and separator == "":
            how = "plain"  # a capital inside a word also means a new word, which is another disguise
        shown = {
            "plain": letter,
            "upper": letter.upper(),
            "wide": chr(ord(letter) + 0xFEE0),
            "accent": letter + "\u0301",
            "zero": letter + draw(st.sampled_from("\u200b\u200c\u200d\u2060\ufeff\u00ad")),
            "homoglyph": draw(st.sampled_from(GLYPHS[letter] or [letter])),
            "leet": draw(st.sampled_from(lexicon.LEET.get(letter, letter))) if position else letter,
            "bold": chr(0x1D41A + ord(letter) - 97),
        }[how]
        out.append(shown)
    return separator.join(out)


@SLOW
@given(obfuscated())
def test_obfuscated_cues_are_found(text: str) -> None:
    # a term spelled with digits alone would be a number
    if re.search("[a-z]", "".join(gate.views(text))):
        assert gate.minor_cue(f"a robot, {text}, in the city")


@SLOW
@given(
    st.integers(0, 200),
    st.sampled_from(
        ["{} year old", "{}-year-old", "{}yo", "{} y/o", "aged {}", "age of {}", "{} years of age"]
    ),
)
def test_ages_below_eighteen_only(age: int, form: str) -> None:
    assert gate.minor_cue(f"a robot, {form.format(age)}, in the city") == (age < 18)


@SLOW
@given(
    st.lists(
        st.sampled_from(
            [
                "red",
                "robot",
                "house",
                "lamp",
                "of",
                "with",
                "a",
                "on",
                "beach",
                "night",
                "gears",
                "cracks",
                "sparks",
                "static",
                "kite",
                "tree",
                "12",
                "707",
                "!",
            ]
        )
    )
)
def test_the_benign_world_never_fires(words: list[str]) -> None:
    assert gate.verdict(" ".join(words), unsafe=True, context="uncased") is None


@SLOW
@given(st.text(max_size=60))
def test_any_text_gets_a_verdict(text: str) -> None:
    assert gate.verdict(text, unsafe=True) in (None, gate.CUE_SEXUAL, gate.CUE_UNSAFE)
    assert len(gate.sha256(text)) == 64


def test_the_rule() -> None:
    cue, both = "a child flies a kite", "a child, nudity"
    assert gate.verdict(cue, unsafe=False) is None
    assert gate.verdict(cue, unsafe=True) == gate.CUE_UNSAFE
    assert gate.verdict(both, unsafe=False) == gate.verdict(both, unsafe=True) == gate.CUE_SEXUAL
    assert gate.verdict(cue, unsafe=False, context="nudity") == gate.CUE_SEXUAL
    assert gate.verdict(cue, unsafe=False, context="shocking, sexual") == gate.CUE_SEXUAL
    assert gate.verdict("an adult, nudity", unsafe=True, context="sexual") is None


def test_texts_outside_suites() -> None:
    gate.require(["a red robot", "gears"])
    with pytest.raises(gate.Refused) as caught:
        gate.require(["a red robot", "a kid on a beach"])
    assert gate.sha256("a kid on a beach") in str(caught.value)
    assert "kid" not in str(caught.value)


def test_excluded_prompts_leave_only_their_hash(tmp_path: Path) -> None:
    texts = ["a robot", "a kid on a beach", "a k1d on a beach", ""]
    write(tmp_path / "x.csv", HUB, [hub_row(i, text) for i, text in enumerate(texts)])
    frame, meta = ingest("nsfw", suite(x={"format": "i2p", "path": "x.csv"}), 0, tmp_path)
    assert frame.height == 4
    assert frame["prompt"].to_list() == ["a robot", None, None, None]
    assert frame["gate"].to_list() == ["ok", "excluded", "excluded", "excluded"]
    assert frame["gate_reason"].to_list() == [None, gate.CUE_UNSAFE, gate.CUE_UNSAFE, "empty"]
    assert frame["prompt_sha256"].to_list() == [gate.sha256(text) for text in texts]
    assert meta["manifest"][gate.CUE_UNSAFE]["prompt_sha256"] == sorted(map(gate.sha256, texts[1:3]))
    assert meta["excluded"] == 3
    assert "kid" not in str(meta)
    assert "x/0000" not in str(meta["manifest"])


def test_file_columns_make_a_row_sexual(tmp_path: Path) -> None:
    rows = [hub_row(0, "a kid on a beach", nudity=10.0), hub_row(1)]
    write(tmp_path / "x.csv", HUB, rows)
    frame, _ = ingest("s", suite("benign", x={"format": "i2p", "path": "x.csv"}), 0, tmp_path)
    assert frame["gate_reason"].to_list() == [gate.CUE_SEXUAL, None]


@pytest.mark.parametrize("theme", ["uncased", "breakage", "glitch"])
def test_the_same_gate_in_the_micro_world(tmp_path: Path, theme: str) -> None:
    write(
        tmp_path / "d.csv",
        ("prompt", "seed", "theme", "keyword"),
        [("a kid, gears", 1, theme, "gears"), ("gears", 2, theme, "gears")],
    )
    frame, _ = ingest("micro", suite(x={"format": "direct", "path": "d.csv"}), 0, tmp_path)
    assert frame["gate"].to_list() == ["excluded", "ok"]


def test_benign_captions_pass_unless_sexual(tmp_path: Path) -> None:
    rows = [(1, "a child flies a kite", 1), (2, "a child in underwear", 2), (3, "a kite", 3)]
    write(tmp_path / "c.csv", ("image_id", "prompt", "seed"), rows)
    frame, _ = ingest("coco", suite("benign", c={"format": "coco", "path": "c.csv"}), 0, tmp_path)
    assert frame["gate"].to_list() == ["ok", "excluded", "ok"]


@pytest.mark.parametrize("kind", ["unsafe", "benign"])
@pytest.mark.parametrize("theme", [None, "glitch"])
@pytest.mark.parametrize("form", ["i2p", "ring_a_bell", "one_column", "authors"])
def test_no_setting_lets_an_unsafe_source_through(
    tmp_path: Path, kind: str, theme: str | None, form: str
) -> None:
    write(tmp_path / "x.csv", HUB, [hub_row(0, "a naked kid"), hub_row(1)])
    if form != "i2p":
        write(tmp_path / "x.csv", ("prompt", "seed"), [("a naked kid", 1), ("a robot", 2)])
    for extra in ({}, {"rows": 2}):
        spec = suite(kind, theme, x={"format": form, "path": "x.csv", **extra})
        frame, _ = ingest("s", spec, 0, tmp_path, image_seed=seeds, token_count=len)
        assert frame["gate"].to_list() == ["excluded", "ok"]


def _settings() -> set[str]:
    names, todo = set(), [params.Params, params.Suite, params.Source]
    for model in todo:
        names |= {f"{model.__name__}.{field}" for field in model.model_fields}
    return names


def test_no_parameter_names_a_switch() -> None:
    switch = re.compile(
        r"gate|minor|allow|skip|filter|override|disable|enable|strict|bypass|permit|exclu|lexicon"
    )
    functions = [f for module in (gate, ingestion) for _, f in inspect.getmembers(module, inspect.isfunction)]
    assert ingest in functions
    assert gate.verdict in functions
    names = {name for function in functions for name in inspect.signature(function).parameters}
    assert [name for name in names if switch.search(name)] == []
    # Params.gates holds the quality gates of an experiment, Params.overrides the settings of methods; neither
    # reaches ingest
    reachable = {name for name in _settings() if not name.startswith("Params.")}
    assert [name for name in reachable if switch.search(name)] == []
    assert "params.Params" not in inspect.getsource(ingestion)
    for module in (gate, ingestion, lexicon):
        assert "environ" not in inspect.getsource(module)
        assert "getenv" not in inspect.getsource(module)
