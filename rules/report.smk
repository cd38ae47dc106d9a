# The page a person reads.
rule report:
    input:
        snake.inputs(PLAN, "report"),
    output:
        snake.PATTERNS["report"],
    log:
        snake.log("report"),
    params:
        cell=snake.cell(PLAN, "report"),
    threads: 1
    resources:
        mem_mb=snake.memory_mb(PLAN, "report"),
        runtime=snake.minutes(PLAN, "report"),
    script:
        "../workflow/scripts/cell.py"
