# What a detector says about held-out pictures of the micro world, whose labels are exact.
rule renders:
    input:
        snake.inputs(PLAN, "renders"),
    output:
        snake.PATTERNS["renders"],
    log:
        snake.log("renders"),
    params:
        cell=snake.cell(PLAN, "renders"),
    threads: 1
    resources:
        gpu=1,
        mem_mb=snake.memory_mb(PLAN, "renders"),
        runtime=snake.minutes(PLAN, "renders"),
    script:
        "../workflow/scripts/cell.py"


# How right the detectors are, by exact labels and by those of people.
rule classifiers:
    input:
        snake.inputs(PLAN, "classifiers"),
    output:
        snake.PATTERNS["classifiers"],
    log:
        snake.log("classifiers"),
    params:
        cell=snake.cell(PLAN, "classifiers"),
    threads: 1
    resources:
        mem_mb=snake.memory_mb(PLAN, "classifiers"),
        runtime=snake.minutes(PLAN, "classifiers"),
    script:
        "../workflow/scripts/cell.py"
