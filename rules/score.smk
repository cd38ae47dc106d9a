# What a detector says about every image of a shard.
rule score:
    input:
        snake.inputs(PLAN, "score"),
    output:
        snake.PATTERNS["score"],
    log:
        snake.log("score"),
    params:
        cell=snake.cell(PLAN),
    threads: 1
    resources:
        gpu=1,
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
        cell=snake.cell(PLAN),
    threads: 1
    script:
        "../workflow/scripts/cell.py"
