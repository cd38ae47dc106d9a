# What a detector says about every image of a shard.
rule score:
    input:
        snake.inputs(PLAN, "score"),
    output:
        snake.PATTERNS["score"],
    log:
        snake.log("score"),
    params:
        cell=snake.cell(PLAN, "score"),
    threads: 1
    resources:
        gpu=1,
        mem_mb=snake.memory_mb(PLAN, "score"),
        runtime=snake.minutes(PLAN, "score"),
    script:
        "../workflow/scripts/cell.py"


# The unerased images at the size of comparison: with them and the scores, a new method needs no image of the base.
rule reference:
    input:
        snake.inputs(PLAN, "reference"),
    output:
        snake.PATTERNS["reference"],
    log:
        snake.log("reference"),
    params:
        cell=snake.cell(PLAN, "reference"),
    threads: 1
    resources:
        mem_mb=snake.memory_mb(PLAN, "reference"),
        runtime=snake.minutes(PLAN, "reference"),
    script:
        "../workflow/scripts/cell.py"


# Change of every image against the unerased one, and pairs to look at.
rule compare:
    input:
        snake.inputs(PLAN, "compare"),
    output:
        snake.PATTERNS["compare"],
    log:
        snake.log("compare"),
    params:
        cell=snake.cell(PLAN, "compare"),
    threads: 1
    resources:
        mem_mb=snake.memory_mb(PLAN, "compare"),
        runtime=snake.minutes(PLAN, "compare"),
    script:
        "../workflow/scripts/cell.py"
