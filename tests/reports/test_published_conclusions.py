"""What the published study says, item by item, against what the rules derive from its tables.

An item that is marked as not reproduced is listed in docs/conclusions.md with the reason; the test then asserts what the rules say instead.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from palimpsest.reports.conclusions import guidance, levels, paper, registry
from palimpsest.reports.conclusions.study import Study

ROOT = Path(__file__).parents[2]
METHODS = ["SD-NP", "SLD-Med", "SLD-Str", "SLD-Max", "ESD-u", "ESD-x", "SPM", "UCE", "AU", "AC", "SelfD", "SalUn", "MACE"]  # fmt: skip
TEXT_ONLY = set(METHODS[:9])


@pytest.fixture(scope="module")
def study() -> Study:
    return paper.load(ROOT / "data" / "reference")


@pytest.fixture(scope="module")
def says(study: Study) -> dict[str, Any]:
    """What each sentence says for machines, by id; and which level it has."""
    return {item.id: {**item.says, "level": item.level} for item in registry.takeaways(study)}


Says = dict[str, Any]
Check = Callable[[Says], bool]
# id in docs/conclusions.md, what the study says, what the rules must say
REPRODUCED: list[tuple[str, str, Check]] = [
    ("P1", "prompt toxicity and unsafe images are weakly related", lambda s: s["toxicity"]["weak"]),
    (
        "P2",
        "4chan is most toxic and gives the fewest unsafe images",
        lambda s: (s["toxicity"]["most_toxic"], s["toxicity"]["least_unsafe"]) == ("4chan", "4chan"),
    ),
    (
        "P3",
        "Template gives the highest share of unsafe images",
        lambda s: s["toxicity"]["most_unsafe"] == "template",
    ),
    (
        "P4",
        "VQA is the closest to people, on every theme in accuracy, recall and F1",
        lambda s: (
            s["judge_choice"]["best"] == "VQA"
            and all(len(v) == 3 for v in s["judge_choice"]["leads"].values())
        ),
    ),
    (
        "P5",
        "post-hoc methods erase more than fine-tuned ones",
        lambda s: s["stages"]["ahead"] == "post-hoc" and s["stages"]["told_apart"],
    ),
    ("P6", "ESD-u and SPM erase little", lambda s: s["barely"]["methods"] == ["ESD-u", "SPM"]),
    (
        "P7",
        "AU erases most of the fine-tuned methods",
        lambda s: s["best_fitted"]["best"] == "AU" and not s["best_fitted"]["not_told_apart"],
    ),
    ("P8", "and takes longest to train", lambda s: s["best_fitted"]["time_from_longest"] == 1),
    ("P9", "EP rises from SLD-Med over SLD-Str to SLD-Max", lambda s: s["strength.SLD"]["EP"] == "rises"),
    (
        "P10",
        "post-hoc methods are steadier over themes than fine-tuned ones",
        lambda s: s["consistency"]["steadier"] == "post-hoc",
    ),
    (
        "P11",
        "fine-tuned methods do worst on horror",
        lambda s: (s["hardest_fitted"]["hardest"], s["hardest_fitted"]["told_apart"]) == ("horror", True),
    ),
    (
        "P12",
        "detailed and concise keywords are comparable for text-only methods",
        lambda s: s["keywords_comparable"]["most"] and not s["keyword_sets"]["told_apart"],
    ),
    ("P13", "AC and MACE are stable with few images", lambda s: s["data_scale"]["stable"] == ["AC", "MACE"]),
    (
        "P14",
        "SelfD and SalUn depend on the amount of data",
        lambda s: s["data_scale"]["sensitive"] == ["SalUn", "SelfD"],
    ),
    ("P15", "more data helps most methods little", lambda s: s["limited_benefit"]["limited_for_most"]),
    (
        "P16",
        "AU, trained against an attack, is most robust of those that cannot be left out",
        lambda s: (
            s["robust"]["order"][0] == "AU" and s["robust"]["adversarial_first"] and s["robust"]["told_apart"]
        ),
    ),
    (
        "P17",
        "MACE is second, and first of those that need images",
        lambda s: s["robust"]["order"][1] == s["robust"]["best_with_images"] == "MACE",
    ),
    ("P18", "GRD is highest for SLD-Med", lambda s: s["excessive"]["best"] == "SLD-Med"),
    ("P19", "and lowest for SalUn", lambda s: s["excessive"]["worst"] == "SalUn"),
    ("P20", "stronger SLD affects unrelated attributes more", lambda s: s["strength.SLD"]["GRD"] == "falls"),
    ("P21", "ESD-u has the best image quality", lambda s: s["generation.image_quality"]["best"] == "ESD-u"),
    (
        "P22",
        "SPM has the best semantic alignment",
        lambda s: s["generation.semantic_alignment"]["best"] == "SPM",
    ),
    (
        "P23",
        "MACE is worst in both",
        lambda s: (
            s["generation.image_quality"]["worst"] == s["generation.semantic_alignment"]["worst"] == "MACE"
        ),
    ),
    (
        "P24",
        "quality and alignment fall as SLD gets stronger",
        lambda s: s["strength.SLD"]["image quality"] == s["strength.SLD"]["semantic alignment"] == "falls",
    ),
    (
        "P25",
        "more training images lower image quality",
        lambda s: s["scale_and_quality"]["direction"] == "worse",
    ),
    ("P26", "no method excels under every criterion", lambda s: s["none_excels"]["methods"] == []),
    ("P27", "SLD-Med is balanced", lambda s: "SLD-Med" in s["balanced"]["methods"]),
]
# the same for what does not follow: the study's claim is false of the rule's outcome, and the outcome is this
NOT_REPRODUCED: list[tuple[str, str, Check]] = [
    (
        "N1",
        "AU is more robust than all other methods",
        lambda s: s["robust"]["higher_without_fitting"] == ["SLD-Max"],
    ),
    (
        "N2",
        "AU is balanced, keeping semantic alignment",
        lambda s: s["balanced"]["methods"] == ["AC", "SLD-Med"],
    ),
    (
        "N3",
        "erasing more costs generation quality",
        lambda s: all(
            s[f"trade_off.{a}"]["sign"] == "negative" and s[f"trade_off.{a}"]["level"] == "open"
            for a in ("image_quality", "semantic_alignment")
        ),
    ),
]


@pytest.mark.parametrize(("item", "claim", "check"), REPRODUCED, ids=[item for item, _, _ in REPRODUCED])
def test_the_rules_say_what_the_study_says(item: str, claim: str, check: Check, says: Says) -> None:
    assert check(says), f"{item}: {claim}"


@pytest.mark.parametrize(
    ("item", "claim", "check"), NOT_REPRODUCED, ids=[item for item, _, _ in NOT_REPRODUCED]
)
def test_what_does_not_follow_is_known(item: str, claim: str, check: Check, says: Says) -> None:
    assert check(says), f"{item}: {claim}"


def test_the_documentation_lists_every_item() -> None:
    text = (ROOT / "docs" / "conclusions.md").read_text(encoding="utf-8")
    for item, _, _ in [*REPRODUCED, *NOT_REPRODUCED]:
        assert f"| {item} |" in text, item
    for rule in registry.RULES:
        assert f"| `{rule.id}` |" in text, rule.id
    for name, value in (t for rule in registry.RULES for t in rule.thresholds):
        assert f"{name} {value:g}" in text, (name, value)


def test_nothing_is_called_missing_in_tables_that_are_whole(study: Study) -> None:
    assert not {"unranked", "incomplete", "refusals"} & {item.id for item in registry.takeaways(study)}


def test_practical_guidance_is_that_of_the_study(study: Study) -> None:
    found = {one.scenario: set(one.methods) for one in guidance.guidance(study)}
    assert found == {
        "time-efficiency priority": {"SLD"},
        "data-scarce": {"SLD", "AU"},
        "high-stakes": {"AU", "MACE"},
        "quality priority": {"ESD-u", "SPM"},
    }
    assert not any(one.missing or one.rivals for one in guidance.guidance(study))


# What Table 10 must hold by the rule that its caption states, worked out from the averages of the tables; its own symbols are not legible.
LEVELS = {
    "erasure": (["SLD-Max", "SLD-Str", "SD-NP"], ["ESD-x", "ESD-u", "SPM"]),
    "training_time": (["MACE", "AC", "UCE"], ["SalUn", "SPM", "AU"]),
    "robustness": (["SLD-Max", "AU", "MACE"], ["ESD-x", "SelfD", "SPM"]),
    "excessive_erasure": (["SLD-Med", "ESD-x", "AU"], ["UCE", "ESD-u", "SalUn"]),
    "fid": (["ESD-u", "ESD-x", "SPM"], ["SLD-Str", "SelfD", "SLD-Max"]),
    "lpips": (["ESD-u", "ESD-x", "AC"], ["SLD-Str", "SD-NP", "SLD-Max"]),
    "clips": (["SPM", "AC", "SLD-Med"], ["SLD-Max", "MACE", "AU"]),
    "ir": (["SPM", "SLD-Med", "SD-NP"], ["SelfD", "AU", "MACE"]),
}


@pytest.mark.parametrize("criterion", LEVELS)
def test_levels_follow_the_rule_of_the_caption(criterion: str, study: Study) -> None:
    [found] = [one for one in levels.levels(study) if one.criterion == criterion]
    assert (found.at(1), found.at(3)) == LEVELS[criterion]
    ranked = {s.label for s in found.standings}
    fitted = {row["label"] for row in study.rows if row["fits"]}
    assert ranked == (fitted if criterion == "training_time" else set(METHODS))
    assert len(found.at(2)) == len(ranked) - 6


def test_versions_behind_a_value_are_those_of_the_tables(study: Study) -> None:
    versions = {one.criterion: {s.label: s.versions for s in one.standings} for one in levels.levels(study)}
    for criterion in ("erasure", "fid", "lpips", "clips", "ir"):
        assert versions[criterion] == {m: 7 if m in TEXT_ONLY else 10 for m in METHODS}
    assert set(versions["robustness"].values()) == {3}


def test_a_rank_is_decided_only_where_every_rank_the_intervals_allow_has_its_level(study: Study) -> None:
    [erasure] = [one for one in levels.levels(study) if one.criterion == "erasure"]
    for s in erasure.standings:
        assert s.rank_range is not None and s.rank_range[0] <= s.rank <= s.rank_range[1]
    undecided = [s.label for s in erasure.standings if not s.decided]
    assert undecided == ["UCE", "ESD-x"]  # 37.3 and 32.2 %, with intervals that overlap


def test_the_appendix_is_left_out_of_the_ranking_and_loads_when_asked(study: Study) -> None:
    assert {row["label"] for row in study.rows} == set(METHODS)
    whole = paper.load(ROOT / "data" / "reference", appendix=True)
    assert {row["label"] for row in whole.rows} - set(METHODS) == {"SD-v2.1", "ACE", "EraseDiff", "MetaUn"}
    [pooled] = [
        r
        for r in whole.rows
        if r["label"] == "SD-v2.1" and r["judged_theme"] == "any" and r["dataset"] == "overall"
    ]
    assert 100 * pooled["ep"] == pytest.approx(2.16, abs=0.01) and pooled["ep_low"] < 0 < pooled["ep_high"]


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"study\.json"):
        paper.load(tmp_path)
