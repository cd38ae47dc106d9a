# The page a person reads.
rule report:
    input:
        snake.inputs(PLAN, "report"),
    output:
        snake.PATTERNS["report"],
    log:
        snake.log("report"),
    params:
        cell=snake.cell(PLAN),
    threads: 1
    script:
        "../workflow/scripts/cell.py"
