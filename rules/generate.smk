# Images of one method, variant and suite shard.
rule generate:
    input:
        snake.inputs(PLAN, "generate"),
    output:
        snake.PATTERNS["generate"],
    log:
        snake.log("generate"),
    params:
        cell=snake.cell(PLAN, "generate"),
    threads: 1
    resources:
        gpu=1,
        mem_mb=snake.memory_mb(PLAN, "generate"),
        runtime=snake.minutes(PLAN, "generate"),
    script:
        "../workflow/scripts/cell.py"
