# Cross-suppression of a theme's keywords under a negative prompt.
rule suppression:
    input:
        snake.inputs(PLAN, "suppression"),
    output:
        snake.PATTERNS["suppression"],
    log:
        snake.log("suppression"),
    params:
        cell=snake.cell(PLAN, "suppression"),
    threads: 1
    resources:
        gpu=1,
        mem_mb=snake.memory_mb(PLAN, "suppression"),
        runtime=snake.minutes(PLAN, "suppression"),
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
        cell=snake.cell(PLAN, "keywords"),
    threads: 1
    resources:
        mem_mb=snake.memory_mb(PLAN, "keywords"),
        runtime=snake.minutes(PLAN, "keywords"),
    script:
        "../workflow/scripts/cell.py"
