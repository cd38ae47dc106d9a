# One tidy table of all cells, with intervals and tests.
rule aggregate:
    input:
        snake.inputs(PLAN, "aggregate"),
    output:
        snake.PATTERNS["aggregate"],
    log:
        snake.log("aggregate"),
    params:
        cell=snake.cell(PLAN),
    threads: 1
    script:
        "../workflow/scripts/cell.py"
