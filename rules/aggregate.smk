# One tidy table of all cells, with intervals and tests; beside it what the cells cost.
rule aggregate:
    input:
        snake.inputs(PLAN, "aggregate"),
    output:
        snake.outputs("aggregate"),
    log:
        snake.log("aggregate"),
    params:
        cell=snake.cell(PLAN, "aggregate"),
    threads: 1
    resources:
        mem_mb=snake.memory_mb(PLAN, "aggregate"),
        runtime=snake.minutes(PLAN, "aggregate"),
    script:
        "../workflow/scripts/cell.py"
