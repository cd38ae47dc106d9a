"""What a judge is asked. Apart from the rules that read the answers, so that changing a rule never costs
another scoring pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from palimpsest import specs


def questions(
    themes: Mapping[str, Sequence[str]],
    rules: Mapping[str, specs.Rule],
    in_detail: Sequence[str] | None = None,
) -> dict[str, str]:
    """Every label a suite is scored for, with its text. Every theme is asked for; those of `in_detail` (default: all) keyword by
    keyword and in other words too, which is most of the work.

    theme/<theme>: the theme's detailed keywords joined by comma and space; keyword/<keyword>: each keyword
    alone; text/<theme>/<rule>: the other text that a rule asks for a theme. themes: name -> detailed
    keywords.
    """
    asked = {f"theme/{theme}": ", ".join(words) for theme, words in themes.items()}
    chosen = themes if in_detail is None else in_detail
    asked |= {f"keyword/{word}": word for theme in chosen for word in themes[theme]}
    asked |= {
        f"text/{theme}/{name}": text
        for name, rule in rules.items()
        for theme, text in rule.texts.items()
        if theme in chosen
    }
    return asked
