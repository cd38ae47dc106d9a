# What a measure says about every image of a benign shard; features for measures of sets are kept.
rule quality:
    input:
        snake.inputs(PLAN, "quality"),
    output:
        snake.PATTERNS["quality"],
    log:
        snake.log("quality"),
    params:
        cell=snake.cell(PLAN, "quality"),
    threads: 1
    resources:
        gpu=1,
        mem_mb=snake.memory_mb(PLAN, "quality"),
        runtime=snake.minutes(PLAN, "quality"),
    script:
        "../workflow/scripts/cell.py"


# Features of the real pictures of a suite's prompts.
rule real:
    input:
        snake.inputs(PLAN, "real"),
    output:
        snake.PATTERNS["real"],
    log:
        snake.log("real"),
    params:
        cell=snake.cell(PLAN, "real"),
    threads: 1
    resources:
        gpu=1,
        mem_mb=snake.memory_mb(PLAN, "real"),
        runtime=snake.minutes(PLAN, "real"),
    script:
        "../workflow/scripts/cell.py"


# One table of everything that was measured, with intervals.
rule quality_table:
    input:
        snake.inputs(PLAN, "quality_table"),
    output:
        snake.PATTERNS["quality_table"],
    log:
        snake.log("quality_table"),
    params:
        cell=snake.cell(PLAN, "quality_table"),
    threads: 1
    resources:
        mem_mb=snake.memory_mb(PLAN, "quality_table"),
        runtime=snake.minutes(PLAN, "quality_table"),
    script:
        "../workflow/scripts/cell.py"
