# Images of one method, variant and suite shard.
rule generate:
    input:
        snake.inputs(PLAN, "generate"),
    output:
        snake.PATTERNS["generate"],
    log:
        snake.log("generate"),
    params:
        cell=snake.cell(PLAN),
    threads: 1
    resources:
        gpu=1,
    script:
        "../workflow/scripts/cell.py"
