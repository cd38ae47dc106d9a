# Cross-suppression of a theme's keywords under a negative prompt.
rule suppression:
    input:
        snake.inputs(PLAN, "suppression"),
    output:
        snake.PATTERNS["suppression"],
    log:
        snake.log("suppression"),
    params:
        cell=snake.cell(PLAN),
    threads: 1
    resources:
        gpu=1,
    script:
        "../workflow/scripts/cell.py"


# Detailed and concise keyword sets.
rule keywords:
    input:
        snake.inputs(PLAN, "keywords"),
    output:
        snake.PATTERNS["keywords"],
    log:
        snake.log("keywords"),
    params:
        cell=snake.cell(PLAN),
    threads: 1
    script:
        "../workflow/scripts/cell.py"
