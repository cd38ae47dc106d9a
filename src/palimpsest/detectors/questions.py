"""What a judge is asked. Apart from the rules that read the answers, so that changing a rule never costs
another scoring pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from palimpsest import specs


def questions(themes: Mapping[str, Sequence[str]], rules: Mapping[str, specs.Rule]) -> dict[str, str]:
    """Every label a suite is scored for, with its text.

    theme/<theme>: the theme's detailed keywords joined by comma and space; keyword/<keyword>: each keyword
    alone; text/<theme>/<rule>: the other text that a rule asks for a theme. themes: name -> detailed
    keywords.
    """
    asked = {f"theme/{theme}": ", ".join(words) for theme, words in themes.items()}
    asked |= {f"keyword/{word}": word for words in themes.values() for word in words}
    asked |= {
        f"text/{theme}/{name}": text for name, rule in rules.items() for theme, text in rule.texts.items()
    }
    return asked
