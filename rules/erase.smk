# Fit one method on one variant.
rule erase:
    input:
        snake.inputs(PLAN, "erase"),
    output:
        snake.PATTERNS["erase"],
    log:
        snake.log("erase"),
    params:
        cell=snake.cell(PLAN, "erase"),
    threads: 1
    resources:
        gpu=1,
        mem_mb=snake.memory_mb(PLAN, "erase"),
        runtime=snake.minutes(PLAN, "erase"),
    script:
        "../workflow/scripts/cell.py"
