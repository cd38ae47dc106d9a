"""Every rule with its id, section, definition, thresholds and the table it reads. docs/conclusions.md says the same with its reasons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from palimpsest.reports.conclusions import (
    comparison,
    erasure,
    guidance,
    levels,
    preservation,
    prompts,
    side_effects,
)
from palimpsest.reports.conclusions.study import Study
from palimpsest.reports.evidence import Takeaway

SECTIONS = (
    "prompts and judges",
    "erasing the target",
    "sensitivity to training data",
    "robustness",
    "preservation",
    "cost and coverage",
)


@dataclass(frozen=True)
class Rule:
    """One rule. reads: the table of the study; thresholds: the numbers that decide, by name."""

    id: str
    section: str
    reads: str
    definition: str
    apply: Callable[[Study], list[Takeaway]]
    thresholds: tuple[tuple[str, float], ...] = ()


CELLS, BENIGN, ATTACKS = "EP on unsafe suites", "benign suites", "EP on suites of adversarial prompts"
RULES = (
    Rule(
        "toxicity",
        SECTIONS[0],
        "toxicity of prompts and verdicts on the base's images",
        "Toxicity tells little of the image when its rank correlation with the share of unsafe images is weak.",
        prompts.toxicity,
        (("weak", prompts.WEAK),),
    ),
    Rule(
        "judge_choice",
        SECTIONS[0],
        "detectors against human labels",
        "The detector of highest mean F1 over themes.",
        prompts.judge_choice,
    ),
    Rule(
        "best",
        SECTIONS[1],
        CELLS,
        "The best variant per theme, and every method that cannot be told apart from it.",
        erasure.best_methods,
    ),
    Rule(
        "no_effect",
        SECTIONS[1],
        CELLS,
        "Variants whose interval contains 0 or lies below it.",
        erasure.without_effect,
    ),
    Rule(
        "hardest",
        SECTIONS[1],
        CELLS,
        "The theme of lowest mean EP over variants that every theme has.",
        erasure.hardest_theme,
    ),
    Rule(
        "stages",
        SECTIONS[1],
        CELLS,
        "Mean EP of methods that fit nothing against fitted ones.",
        comparison.stages,
    ),
    Rule(
        "barely",
        SECTIONS[1],
        CELLS,
        "Methods whose EP, all themes erased, lies below a least amount with its whole interval.",
        comparison.barely,
        (("barely", comparison.BARELY),),
    ),
    Rule(
        "best_fitted",
        SECTIONS[1],
        CELLS,
        "The fitted method of highest EP, and the rank of its fitting time.",
        comparison.best_fitted,
    ),
    Rule(
        "strength",
        SECTIONS[1],
        "EP, GRD and benign suites",
        "The course of every measure along settings that differ in strength only.",
        preservation.strength,
    ),
    Rule(
        "consistency",
        SECTIONS[2],
        CELLS,
        "Range of EP over themes, fitting nothing against fitted.",
        comparison.consistency,
    ),
    Rule(
        "hardest_fitted",
        SECTIONS[2],
        CELLS,
        "The theme that fitted methods erase least.",
        comparison.hardest_for_fitted,
    ),
    Rule(
        "keyword_sets",
        SECTIONS[2],
        CELLS,
        "Detailed against concise keywords, mean over matched pairs.",
        erasure.keyword_sets,
    ),
    Rule(
        "keywords_comparable",
        SECTIONS[2],
        CELLS,
        "Methods whose EP differs little between keyword sets.",
        comparison.keywords_comparable,
        (("comparable", comparison.COMPARABLE),),
    ),
    Rule(
        "training_images",
        SECTIONS[2],
        CELLS,
        "Largest against smallest training set, mean over matched pairs.",
        erasure.training_images,
    ),
    Rule(
        "data_scale",
        SECTIONS[2],
        CELLS,
        "Methods whose EP differs little between training sets.",
        comparison.data_scale,
        (("comparable", comparison.COMPARABLE),),
    ),
    Rule(
        "limited_benefit",
        SECTIONS[2],
        CELLS,
        "Whether more data raises EP noticeably for fewer than half of the methods.",
        comparison.limited_benefit,
        (("comparable", comparison.COMPARABLE),),
    ),
    Rule(
        "one_or_all",
        SECTIONS[2],
        CELLS,
        "Erasing all themes at once against the theme alone.",
        erasure.one_or_all,
    ),
    Rule("robust", SECTIONS[3], ATTACKS, "The most robust fitted methods.", preservation.robust),
    Rule(
        "excessive",
        SECTIONS[4],
        "GRD",
        "The highest and the lowest.",
        preservation.excessive,
    ),
    Rule(
        "generation",
        SECTIONS[4],
        BENIGN,
        "The best and the worst method per aspect, all themes erased.",
        preservation.generation,
    ),
    Rule(
        "scale_and_quality",
        SECTIONS[4],
        BENIGN,
        "Image quality with the largest against the smallest training set.",
        preservation.scale_and_quality,
    ),
    Rule(
        "trade_off",
        SECTIONS[4],
        "EP and benign suites",
        "Rank correlation of EP with every aspect over methods.",
        preservation.trade_off,
    ),
    Rule(
        "none_excels",
        SECTIONS[4],
        "levels",
        "Methods of level 1 under every criterion.",
        preservation.none_excels,
    ),
    Rule("balanced", SECTIONS[4], "levels", "Methods without a level 3.", preservation.balanced),
    Rule(
        "refusals",
        SECTIONS[4],
        BENIGN,
        "Variants that leave benign prompts without an image.",
        side_effects.refusals,
    ),
    Rule(
        "false_alarms",
        SECTIONS[4],
        BENIGN,
        "Benign images that show the theme after erasing and not before.",
        side_effects.false_alarms,
    ),
    Rule("drift", SECTIONS[4], BENIGN, "Least and most drift of benign images.", side_effects.drift),
    Rule(
        "induction",
        SECTIONS[4],
        CELLS,
        "Variants that draw the theme where the base did not.",
        side_effects.induction,
    ),
    Rule(
        "cost",
        SECTIONS[5],
        CELLS,
        "The cheapest of the methods that cannot be told apart from the best.",
        side_effects.cost,
    ),
    Rule(
        "unranked",
        SECTIONS[5],
        CELLS,
        "Themes with too few unsafe images of the base.",
        side_effects.unranked,
    ),
    Rule("incomplete", SECTIONS[5], "all rows", "Rows without a number.", side_effects.incomplete),
)


def takeaways(study: Study) -> list[Takeaway]:
    """All sentences, in the order of the rules."""
    return [sentence for rule in RULES for sentence in rule.apply(study)]


def by_section(study: Study) -> list[tuple[str, list[Takeaway]]]:
    """All sentences by section; sections without any are left out."""
    found = [
        (name, [sentence for rule in RULES if rule.section == name for sentence in rule.apply(study)])
        for name in SECTIONS
    ]
    return [(name, sentences) for name, sentences in found if sentences]


def as_json(found: Sequence[Takeaway]) -> list[dict[str, Any]]:
    """For takeaways.json."""
    return [asdict(item) for item in found]


def conclusions(study: Study) -> dict[str, Any]:
    """Levels, guidance and the takeaways of every section, as plain data."""
    sections: dict[str, list[dict[str, Any]]] = {name: [] for name in SECTIONS}
    for rule in RULES:
        described = {
            "rule": rule.id,
            "definition": rule.definition,
            "reads": rule.reads,
            "thresholds": dict(rule.thresholds),
        }
        sections[rule.section].append({**described, "says": as_json(rule.apply(study))})
    advice = [{"sentence": guidance.sentence(one), **asdict(one)} for one in guidance.guidance(study)]
    return {
        "study": study.name,
        "published": study.published,
        "measures": [{**asdict(one), "definition": study.definition(one.key)} for one in study.measures],
        "levels": [asdict(one) for one in levels.levels(study)],
        "guidance": advice,
        "takeaways": sections,
    }
